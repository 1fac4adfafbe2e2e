"""On-policy distillation: the student plays, and a frozen teacher grades every token it chose (VLA-OPD, 2026).

The student learns in the states its own mistakes lead to, as in DAgger (Ross et al. 2011), but towards the teacher's
whole distribution instead of its best answer: the objective is KL(student || teacher) in the student's states.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorClass
from torch import Tensor

from vla.algorithms.descent import adamw, descend, device_of
from vla.algorithms.losses import executed_factors, importance_loss, k3_loss, kl, masked_mean
from vla.algorithms.minibatches import decisions_of, in_order, shuffled
from vla.algorithms.rescoring import require_same_scores
from vla.algorithms.together import average
from vla.data.chunks import shifted
from vla.types import Metrics, Observation, Rollout, Stochastic

SAMPLED = ("reverse_sampled", "k3")
DIVERGENCES = (*SAMPLED, "reverse_exact", "forward_exact", "hard")


@runtime_checkable
class Categorical(Stochastic, Protocol):
    """Gives the log-probability of every token, not only of the chosen ones."""

    def distribution(
        self, obs: Observation, tokens: Int[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch tokens bins"]: ...


class Distill:
    """`teacher` is called with the student once and must give something that scores the student's own decisions.

    `reverse_sampled` is the paper's: a policy gradient whose advantage is the teacher's minus the student's
    log-probability of each token, never normalised, since its size is the objective. The student's is the current one,
    with an importance ratio, so the gradient stays that of the KL over several minibatches and epochs. `clip` bounds
    the advantage: far from what it knows, a teacher is confident noise.
    `reverse_exact` differentiates the KL over all tokens instead: the same gradient in expectation without its noise,
    for policies with a `distribution`. It needs only the states, so those of the last `replay` updates can be learned
    from again, an update's worth drawn from all of them (as DAgger aggregates). `shift` moves pictures by up to so many
    pixels at random.
    `forward_exact` turns the KL around: the student spreads over all that the teacher might do, as in imitation, but in
    its own states. `hard` imitates the teacher's likeliest token there (DAgger). `k3` is Skill-SD's estimate, never
    negative: its gradient is that of `reverse_sampled`, sample by sample.
    """

    def __init__(
        self,
        policy: Stochastic,
        teacher: Callable[[Stochastic], Stochastic],
        lr: float = 3e-4,
        divergence: str = "reverse_sampled",
        epochs: int = 1,
        minibatch: int = 256,
        clip: float | None = 10.0,
        max_grad_norm: float = 1.0,
        replay: int = 0,
        shift: int = 0,
    ):
        self.policy = policy
        self.teacher = teacher(policy)
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {DIVERGENCES}, got {divergence!r}")
        self.divergence, sampled = divergence, divergence in SAMPLED
        self.grade, self.loss = (self._scores, self._sampled) if sampled else (self._distribution, self._exact)
        for side in () if sampled else (policy, self.teacher):
            if not isinstance(side, Categorical):
                raise TypeError(
                    f"{type(side).__name__} has no `distribution`, as {divergence} needs: use reverse_sampled or k3"
                )
        if replay < 0 or shift < 0 or (replay and sampled):
            raise ValueError(
                f"need replay >= 0 and shift >= 0, got {replay} and {shift}; replay goes with an exact divergence only"
            )
        self.memory = Memory(replay + 1)
        self.shift = shift
        self.epochs = epochs
        self.minibatch = minibatch
        self.clip = clip
        self.max_grad_norm = max_grad_norm
        self.optimizer = adamw(policy, lr=lr)
        self.device = device_of(self.optimizer)
        self.parts = {"policy": policy, "optimizer": self.optimizer, **({"memory": self.memory} if replay else {})}
        self.scores_checked = False

    def update(self, rollout: Rollout) -> Metrics:
        decisions = decisions_of(rollout)
        if not self.scores_checked:
            require_same_scores(self.policy, decisions, self.minibatch, self.device)
            self.scores_checked = True
        counts = executed_factors(decisions)
        self.memory.add(Graded(_needed(decisions), self._graded(decisions), counts, batch_size=decisions.batch_size))
        metrics = defaultdict(list)
        for _ in range(self.epochs):
            some = self.memory.draw(len(decisions))
            for part, offset in shuffled(self.minibatch, self.device, some, self._offsets(len(some))):
                for name, x in self._step(part, offset).items():
                    metrics[name].append(x)
        return {
            "student_log_prob": masked_mean(decisions.action.log_prob, counts).item(),
            **{name: average(sum(xs) / len(xs)) for name, xs in metrics.items()},
        }

    @torch.no_grad()
    def _graded(self, decisions: Rollout) -> Tensor:
        """The teacher sees what the student saw and chose, once and after the fact; it never acts."""
        return torch.cat([self.grade(some).cpu() for some in in_order(self.minibatch, self.device, decisions)])

    def _offsets(self, count: int) -> Int[Tensor, "batch 2"]:
        """How far pictures move; drawn for all rows at once, so that several processes draw alike."""
        shift = self.shift
        return torch.randint(-shift, shift + 1, (count, 2)) if shift else torch.zeros(count, 2, dtype=torch.long)

    def _step(self, some: "Graded", offset: Int[Tensor, "batch 2"]) -> Metrics:
        if self.shift:
            move(some.decisions.obs, offset)
        loss, divergence = self.loss(some.decisions, some.grades, some.counts)
        grad_norm = descend(self.optimizer, loss, self.max_grad_norm)
        return {"distill_loss": loss.item(), "reverse_kl": divergence.item(), "grad_norm": grad_norm}

    def _scores(self, some: Rollout) -> Float[Tensor, "batch tokens"]:
        return self.teacher.log_prob(some.obs, some.action)

    def _sampled(
        self, some: Rollout, grades: Float[Tensor, "batch tokens"], counts: Bool[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        log_prob = self.policy.log_prob(some.obs, some.action).float()
        advantage = grades.float() - log_prob.detach()
        bounds = (None, None) if self.clip is None else (-self.clip, self.clip)
        ratio, reverse = log_prob - some.action.log_prob, -masked_mean(advantage, counts)
        if self.divergence == "k3":
            return k3_loss(ratio, _within(log_prob - grades.float(), bounds), counts), reverse
        return importance_loss(ratio, _within(advantage, bounds), counts), reverse

    def _distribution(self, some: Rollout) -> Float[Tensor, "batch tokens bins"]:
        return cast(Categorical, self.teacher).distribution(some.obs, some.action.latent["tokens"])

    def _exact(
        self, some: Rollout, grades: Float[Tensor, "batch tokens bins"], counts: Bool[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        student = cast(Categorical, self.policy).distribution(some.obs, some.action.latent["tokens"])
        reverse = masked_mean(kl(student, grades), counts)
        if self.divergence == "hard":
            likeliest = grades.argmax(-1, keepdim=True)
            return -masked_mean(student.gather(-1, likeliest).squeeze(-1), counts), reverse.detach()
        loss = masked_mean(kl(grades, student), counts) if self.divergence == "forward_exact" else reverse
        return loss, reverse.detach()


def _within(x: Float[Tensor, "*batch"], bounds: tuple[float | None, float | None]) -> Float[Tensor, "*batch"]:
    return x if bounds == (None, None) else x.clamp(*bounds)


class Graded(TensorClass):
    """Decisions and what the teacher made of them."""

    decisions: Rollout
    grades: Tensor
    counts: Bool[Tensor, "*batch tokens"]


class Memory:
    """The graded decisions of the last `updates` updates, oldest first; a checkpoint holds them, texts included."""

    def __init__(self, updates: int):
        self.updates = updates
        self.kept: list[Graded] = []

    def add(self, graded: Graded) -> None:
        self.kept = [*self.kept, graded][-self.updates :]

    def draw(self, count: int) -> Graded:
        """`count` of them at random, or all there are if there are no more."""
        together = Graded.cat(self.kept) if len(self.kept) > 1 else self.kept[0]
        return together if len(together) <= count else together[torch.randperm(len(together))[:count]]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [x.to_dict() for x in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = [Graded.from_dict(x, batch_size=[len(x["grades"])]) for x in state["kept"]]


def move(obs: Observation, offset: Int[Tensor, "batch 2"]) -> None:
    """Move the pictures by so many pixels, each observation's alike."""
    for name, pictures in obs.images.items():
        obs.images[name] = shifted(cast(Tensor, pictures), offset.to(pictures.device))


def _needed(decisions: Rollout) -> Rollout:
    """Without what only the teacher was allowed to see, and without what never differs."""
    return decisions.replace(obs=decisions.obs.replace(privileged=None), failed=None, version=None)
