"""On-policy distillation: the student plays, and a frozen teacher grades every token it chose (VLA-OPD, 2026).

The student learns in the states its own mistakes lead to, as in DAgger (Ross et al. 2011), but towards the teacher's
whole distribution instead of its best answer: the objective is KL(student || teacher) in the student's states.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from vla.algorithms.advantages import teacher_advantage
from vla.algorithms.losses import executed_factors, importance_loss, kl, masked_mean
from vla.algorithms.minibatches import in_order, shuffled
from vla.algorithms.rescoring import require_same_scores
from vla.types import Metrics, Rollout, Stochastic

Divergence = Literal["reverse_sampled", "reverse_exact"]


class Distill:
    """`teacher` is called with the student once and must give something that scores the student's own decisions.

    `reverse_sampled` is the paper's: a policy gradient whose advantage is the teacher's minus the student's
    log-probability of each token, with an importance ratio, so that several minibatches and epochs are sound;
    `clip` bounds the advantage. `reverse_exact` differentiates the KL over all tokens instead: the same gradient
    in expectation without its noise, for policies with a `distribution`.
    """

    def __init__(
        self,
        policy: Stochastic,
        teacher: Callable[[Stochastic], Stochastic],
        lr: float = 3e-4,
        divergence: Divergence = "reverse_sampled",
        epochs: int = 1,
        minibatch: int = 256,
        clip: float | None = 10.0,
        max_grad_norm: float = 1.0,
    ):
        self.policy = policy
        self.teacher = teacher(policy)
        self.loss = {"reverse_sampled": self._sampled, "reverse_exact": self._exact}.get(divergence)
        if self.loss is None:
            raise ValueError(f"divergence must be 'reverse_sampled' or 'reverse_exact', got {divergence!r}")
        for side in (policy, self.teacher) if divergence == "reverse_exact" else ():
            if not hasattr(side, "distribution"):
                raise ValueError(
                    f"reverse_exact needs a `distribution`, {type(side).__name__} has none: use reverse_sampled"
                )
        self.epochs = epochs
        self.minibatch = minibatch
        self.clip = clip
        self.max_grad_norm = max_grad_norm
        self.trainable = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=lr, weight_decay=0.0, fused=True)
        self.device = self.trainable[0].device
        self.parts = {"policy": policy, "optimizer": self.optimizer}
        self.scores_checked = False

    def update(self, rollout: Rollout) -> Metrics:
        decisions = rollout[rollout.valid]
        if not self.scores_checked:
            require_same_scores(self.policy, decisions, self.minibatch, self.device)
            self.scores_checked = True
        counts = executed_factors(decisions)
        log_ratio = self._grade(decisions)
        advantage = log_ratio if self.clip is None else log_ratio.clamp(-self.clip, self.clip)
        metrics = defaultdict(list)
        for _ in range(self.epochs):
            for some in shuffled(self.minibatch, self.device, decisions, advantage, counts):
                for name, x in self._step(*some).items():
                    metrics[name].append(x)
        return {
            "reverse_kl": -masked_mean(log_ratio, counts).item(),
            "student_log_prob": masked_mean(decisions.action.log_prob, counts).item(),
            **{name: sum(xs) / len(xs) for name, xs in metrics.items()},
        }

    @torch.no_grad()
    def _grade(self, decisions: Rollout) -> Float[Tensor, "batch factors"]:
        """The teacher sees what the student saw and chose, after the fact; it never acts."""
        graded = [
            teacher_advantage(self.teacher.log_prob(some.obs, some.action), some.action.log_prob)
            for some in in_order(self.minibatch, self.device, decisions)
        ]
        return torch.cat(graded).cpu()

    def _step(
        self, some: Rollout, advantage: Float[Tensor, "batch factors"], counts: Bool[Tensor, "batch factors"]
    ) -> Metrics:
        loss = self.loss(some, advantage, counts)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = clip_grad_norm_(self.trainable, self.max_grad_norm)
        self.optimizer.step()
        return {"distill_loss": loss.item(), "grad_norm": grad_norm.item()}

    def _sampled(self, some: Rollout, advantage: Tensor, counts: Tensor) -> Float[Tensor, ""]:
        log_prob = self.policy.log_prob(some.obs, some.action)
        return importance_loss(log_prob - some.action.log_prob, advantage, counts)

    def _exact(self, some: Rollout, _: Tensor, counts: Tensor) -> Float[Tensor, ""]:
        tokens = some.action.latent["tokens"]
        with torch.no_grad():
            teacher = self.teacher.distribution(some.obs, tokens)
        return masked_mean(kl(self.policy.distribution(some.obs, tokens), teacher), counts)
