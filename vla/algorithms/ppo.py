"""Proximal policy optimisation (Schulman et al. 2017) over whole episodes of chunked decisions."""

from collections import defaultdict
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.algorithms.advantages import gae, normalised
from vla.algorithms.descent import adamw, descend, device_of
from vla.algorithms.losses import clipped_loss, executed_factors, masked_mean, regroup, sampled_kl
from vla.algorithms.minibatches import decisions_of, in_order, shuffled
from vla.algorithms.rescoring import require_same_scores
from vla.types import Metrics, Observation, Rollout, Stochastic


class PPO:
    """`critic` is called with the policy once and must give a module that maps observations to values.

    `gamma` is per command, so a chunk of n executed ones discounts by gamma^n; `lam` is per decision. A ratio is
    formed per `factor`, `command` or `chunk`. With `max_kl` an update ends after the epoch that moved further than
    that from the policy that played.
    """

    def __init__(
        self,
        policy: Stochastic,
        critic: Callable[[Stochastic], nn.Module],
        lr: float = 3e-4,
        gamma: float = 0.99,
        lam: float = 0.95,
        clip: float = 0.2,
        granularity: str = "chunk",
        epochs: int = 4,
        minibatch: int = 256,
        max_kl: float | None = None,
        value_coef: float = 0.5,
        max_grad_norm: float = 1.0,
    ):
        self.policy = policy
        self.critic = critic(policy)
        self.gamma, self.lam, self.clip, self.granularity = gamma, lam, clip, granularity
        self.epochs, self.minibatch, self.max_kl = epochs, minibatch, max_kl
        self.value_coef, self.max_grad_norm = value_coef, max_grad_norm
        self.optimizer = adamw(policy, self.critic, lr=lr)
        self.device = device_of(self.optimizer)
        self.parts = {"policy": policy, "critic": self.critic, "optimizer": self.optimizer}
        self.scores_checked = False

    def update(self, rollout: Rollout) -> Metrics:
        decisions = decisions_of(rollout)
        if not self.scores_checked:
            require_same_scores(self.policy, decisions, self.minibatch, self.device)
            self.scores_checked = True
        value = self._values(rollout.obs)
        num_steps = rollout.num_steps if rollout.num_steps is not None else torch.ones_like(value)
        advantage = gae(
            rollout.reward, value, rollout.terminated, rollout.valid, self.gamma ** num_steps.float(), self.lam
        )
        target = (advantage + value)[rollout.valid]
        advantage = normalised(advantage[rollout.valid])
        counts = executed_factors(decisions)
        metrics = defaultdict(list)
        for _ in range(self.epochs):
            steps = [
                self._step(*some)
                for some in shuffled(self.minibatch, self.device, decisions, advantage, target, counts)
            ]
            for name in steps[0]:
                metrics[name].append(sum(step[name] for step in steps) / len(steps))
            if self.max_kl is not None and metrics["kl"][-1] > self.max_kl:
                break
        explained = 1 - (target - value[rollout.valid]).var(correction=0) / target.var(correction=0).clamp(min=1e-8)
        means = {name: sum(xs) / len(xs) for name, xs in metrics.items()}
        return {**means, "explained_variance": explained.item(), "epochs": len(metrics["kl"])}

    @torch.no_grad()
    def _values(self, obs: Observation) -> Float[Tensor, "time env"]:
        values = [self.critic(some) for some in in_order(self.minibatch, self.device, obs.reshape(-1))]
        return torch.cat(values).cpu().unflatten(0, obs.batch_size)

    def _step(
        self,
        some: Rollout,
        advantage: Float[Tensor, " batch"],
        target: Float[Tensor, " batch"],
        counts: Bool[Tensor, "batch factors"],
    ) -> Metrics:
        difference = self.policy.log_prob(some.obs, some.action) - some.action.log_prob
        log_ratio, counts = regroup(difference, counts, self.granularity, some.action.commands.shape[-2])
        policy_loss = clipped_loss(log_ratio, advantage, counts, self.clip)
        value_loss = (self.critic(some.obs) - target).square().mean()
        grad_norm = descend(self.optimizer, policy_loss + self.value_coef * value_loss, self.max_grad_norm)
        with torch.no_grad():
            clipped = masked_mean(((log_ratio.exp() - 1).abs() > self.clip).float(), counts)
            divergence = sampled_kl(log_ratio, counts)
        return {
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "kl": divergence.item(),
            "clipped": clipped.item(),
            "grad_norm": grad_norm,
        }
