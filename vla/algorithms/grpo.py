"""Group-relative policy optimisation (GRPO, Shao et al. 2024; for VLAs SimpleVLA-RL and RLinf-VLA, 2025): no critic."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.algorithms.advantages import GROUPINGS, group_advantage
from vla.algorithms.descent import adamw, descend, device_of
from vla.algorithms.losses import executed_factors
from vla.algorithms.minibatches import decisions_of
from vla.algorithms.rescoring import require_same_scores
from vla.algorithms.surrogate import STILL, Surrogate, drawn_by, repeated
from vla.types import Metrics, Rollout, Stochastic


class GRPO:
    """Every episode of an update is played `group` times from the same reset; the best of its group are imitated.

    The columns of a rollout are then those of the first time, of the second, and so on. `advantage` is one of `std`,
    `mean` and `leave_one_out`. Groups of which a share below or above `keep` of the episodes succeeded teach nothing
    and are left out (None: all count). With `length_normalised` every episode counts alike, however long it took.
    Where older weights played, say `decoupled`.
    """

    def __init__(
        self,
        policy: Stochastic,
        group: int = 8,
        advantage: str = "std",
        keep: Sequence[float] | None = (0.1, 0.9),
        lr: float = 1e-4,
        clip: float | Sequence[float] = (0.2, 0.28),
        dual_clip: float | None = None,
        granularity: str = "command",
        chain_discount: float = 1.0,
        chain_clip: float = 1.0,
        epochs: int = 1,
        minibatch: int = 256,
        max_kl: float | None = None,
        max_grad_norm: float = 1.0,
        *,
        length_normalised: bool = True,
        decoupled: bool = False,
        max_weight: float = 2.0,
    ):
        if group < 2:
            raise ValueError(f"group must be at least 2, got {group}: an advantage is over the others of a group")
        if advantage not in GROUPINGS:
            raise ValueError(f"advantage must be one of {', '.join(GROUPINGS)}, got {advantage!r}")
        if keep is not None and not 0 <= keep[0] <= keep[1] <= 1:
            raise ValueError(f"keep must be two growing shares of success, such as [0.1, 0.9], got {keep}")
        self.policy, self.group, self.kind, self.keep = policy, group, advantage, keep
        self.surrogate = Surrogate(
            clip, dual_clip, granularity, chain_discount, chain_clip, drawn_by(policy), decoupled, max_weight
        )
        self.epochs, self.minibatch, self.max_kl, self.max_grad_norm = epochs, minibatch, max_kl, max_grad_norm
        self.length_normalised = length_normalised
        self.optimizer = adamw(policy, lr=lr)
        self.device = device_of(self.optimizer)
        self.parts = {"policy": policy, "optimizer": self.optimizer}
        self.scores_checked = False

    def update(self, rollout: Rollout) -> Metrics:
        if rollout.shape[1] % self.group:
            raise ValueError(f"{rollout.shape[1]} episodes are not groups of {self.group}")
        if not self.scores_checked:
            decisions = decisions_of(rollout)
            if not self.surrogate.decoupled:
                require_same_scores(self.policy, decisions, self.minibatch, self.device)
            self.scores_checked = True
        kept = self._kept(rollout)
        told: Metrics = {"kept": kept.float().mean().item()}
        if not kept.any():
            return {**told, **STILL, "grad_norm": 0.0, "epochs": 0}
        counted = rollout.valid & kept
        decisions, advantage = rollout[counted], self._advantage(rollout, kept)[counted][:, None]
        factors, where = executed_factors(decisions), (self.minibatch, self.device)
        decisions, advantage, stale = self.surrogate.centred(self.policy, decisions, advantage, factors, *where)
        columns = decisions, advantage, factors
        return {**told, **stale, **repeated(self._step, columns, self.epochs, self.minibatch, self.device, self.max_kl)}

    def _kept(self, rollout: Rollout) -> Bool[Tensor, " env"]:
        """Whether an episode teaches; a group of which one was lost with its simulator is left out whole."""
        lost = torch.zeros(rollout.shape[1], dtype=torch.bool)
        lost[rollout.lost()] = True
        whole = ~lost.view(self.group, -1).any(0)
        if self.keep is not None:
            share = rollout.success.any(0).view(self.group, -1).float().mean(0)
            whole &= (share >= self.keep[0]) & (share <= self.keep[1])
        return whole.repeat(self.group)

    def _advantage(self, rollout: Rollout, kept: Bool[Tensor, " env"]) -> Float[Tensor, "time env"]:
        returns = (rollout.reward * rollout.valid).sum(0).view(self.group, -1)
        advantage = group_advantage(returns, self.kind).flatten()
        if self.length_normalised:
            length = rollout.valid.sum(0).clamp(min=1)
            advantage = advantage * length[kept].float().mean() / length
        return advantage.expand(rollout.shape)

    def _step(
        self, some: Rollout, advantage: Float[Tensor, "batch advantages"], factors: Bool[Tensor, "batch factors"]
    ) -> Metrics:
        loss, told = self.surrogate(self.policy, some, advantage, factors)
        return {**told, "grad_norm": descend(self.optimizer, loss, self.max_grad_norm)}
