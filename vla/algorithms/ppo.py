"""Proximal policy optimisation (Schulman et al. 2017) over whole episodes of chunked decisions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.algorithms.advantages import gae, gae_per_command, normalised
from vla.algorithms.descent import adamw, add_to, descend, device_of
from vla.algorithms.losses import executed_factors, masked_mean, value_loss
from vla.algorithms.minibatches import decisions_of, in_order
from vla.algorithms.rescoring import require_same_scores
from vla.algorithms.surrogate import STILL, Surrogate, drawn_by, repeated
from vla.types import Metrics, Observation, Rollout, Stochastic


class PPO:
    """`critic` is called with the policy once and must give a module that maps observations to values.

    Where it gives one per command of a chunk (`per_command`) so is the advantage, otherwise one per decision. `gamma`
    is per command, so a chunk of n executed ones discounts by gamma^n; `lam` is per value. A ratio is formed per
    `factor`, `command` or `chunk`; `clip` is one number or two, low and high. With `max_kl` an update ends after the
    epoch that moved further than that from the policy that played. In the first `critic_only` updates the policy stays.
    Where older weights played, say `decoupled`: an update then keeps near the policy as it began (values are not
    corrected for that).
    """

    def __init__(
        self,
        policy: Stochastic,
        critic: Callable[[Stochastic], nn.Module],
        lr: float = 3e-4,
        critic_lr: float | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        clip: float | Sequence[float] = 0.2,
        dual_clip: float | None = None,
        value_clip: float | None = None,
        granularity: str = "chunk",
        chain_discount: float = 1.0,
        chain_clip: float = 1.0,
        epochs: int = 4,
        minibatch: int = 256,
        max_kl: float | None = None,
        critic_only: int = 0,
        value_coef: float = 0.5,
        max_grad_norm: float = 1.0,
        *,
        decoupled: bool = False,
        max_weight: float = 2.0,
    ):
        self.policy = policy
        self.gamma, self.lam, self.value_clip = gamma, lam, value_clip
        self.surrogate = Surrogate(
            clip, dual_clip, granularity, chain_discount, chain_clip, drawn_by(policy), decoupled, max_weight
        )
        self.epochs, self.minibatch, self.max_kl = epochs, minibatch, max_kl
        self.value_coef, self.max_grad_norm = value_coef, max_grad_norm
        self.optimizer = adamw(policy, lr=lr)
        self.device = device_of(self.optimizer)
        self.critic = critic(policy).to(self.device)
        add_to(self.optimizer, self.critic, lr=lr if critic_lr is None else critic_lr)
        self.progress = Progress(critic_only)
        self.parts = {"policy": policy, "critic": self.critic, "optimizer": self.optimizer, "progress": self.progress}
        self.scores_checked = False

    def update(self, rollout: Rollout) -> Metrics:
        decisions = decisions_of(rollout)
        if not (self.surrogate.decoupled or self.scores_checked):
            require_same_scores(self.policy, decisions, self.minibatch, self.device)
            self.scores_checked = True
        value, advantage, counts = self._judge(rollout)
        target = value + advantage
        better = torch.zeros_like(advantage)
        better[counts] = normalised(advantage[counts])
        factors, where = executed_factors(decisions), (self.minibatch, self.device)
        decisions, better, stale = self.surrogate.centred(self.policy, decisions, better, factors, *where)
        columns = decisions, better, value, target, counts, factors, *self._more(decisions)
        self.progress.updates += 1
        metrics = repeated(self._step, columns, self.epochs, self.minibatch, self.device, self.max_kl)
        unexplained = (target - value)[counts].var(correction=0) / target[counts].var(correction=0).clamp(min=1e-8)
        return {**metrics, **stale, "explained_variance": 1 - unexplained.item()}

    def _more(self, decisions: Rollout) -> tuple[Tensor, ...]:
        """What else each decision is learned from: columns for `_guide`."""
        return ()

    def _guide(self, some: Rollout, *more: Tensor) -> tuple[Float[Tensor, ""] | float, Metrics]:
        """What is added to the loss of the policy, and what to tell of it."""
        return 0.0, {}

    def _judge(
        self, rollout: Rollout
    ) -> tuple[Float[Tensor, "batch values"], Float[Tensor, "batch values"], Bool[Tensor, "batch values"]]:
        """Of each decision, or of each of its commands: its value, its advantage, and whether it was executed."""
        value = self._values(rollout.obs)
        valid, ended = rollout.valid, rollout.terminated
        num_steps = valid.long() if rollout.num_steps is None else rollout.num_steps * valid
        if value.ndim == 2:
            discount = self.gamma ** num_steps.float()
            advantage = gae(rollout.reward, value, ended, valid, discount, self.lam)
            return value[valid][:, None], advantage[valid][:, None], torch.ones_like(value[valid][:, None]).bool()
        if rollout.rewards is None:
            raise ValueError("values per command need the reward of each command, and this environment gives sums only")
        advantage = gae_per_command(rollout.rewards, value, ended, num_steps, self.gamma, self.lam)
        executed = torch.arange(value.shape[-1]) < num_steps[..., None]
        return value[valid], advantage[valid], executed[valid]

    @torch.no_grad()
    def _values(self, obs: Observation) -> Float[Tensor, "time env *horizon"]:
        values = [self.critic(some) for some in in_order(self.minibatch, self.device, obs.reshape(-1))]
        return torch.cat(values).cpu().unflatten(0, obs.batch_size)

    def _step(
        self,
        some: Rollout,
        advantage: Float[Tensor, "batch advantages"],
        old: Float[Tensor, "batch values"],
        target: Float[Tensor, "batch values"],
        counts: Bool[Tensor, "batch values"],
        factors: Bool[Tensor, "batch factors"],
        *more: Tensor,
    ) -> Metrics:
        value = self.critic(some.obs).reshape_as(target)
        loss = self.value_coef * value_loss(value, old, target, counts, self.value_clip)
        told = {"value_loss": masked_mean((value.detach() - target).square(), counts).item()}
        if self.progress.updates > self.progress.critic_only:
            policy_loss, moved = self.surrogate(self.policy, some, advantage, factors)
            guide_loss, guided = self._guide(some, *more)
            loss, told = loss + policy_loss + guide_loss, {**moved, **told, **guided}
        else:
            told = {**STILL, **told}
        return {**told, "grad_norm": descend(self.optimizer, loss, self.max_grad_norm)}


class Progress:
    """How many updates there have been."""

    def __init__(self, critic_only: int):
        if critic_only < 0:
            raise ValueError(f"critic_only must be a number of updates, at least 0, got {critic_only}")
        self.critic_only, self.updates = critic_only, 0

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.updates = state["updates"]
