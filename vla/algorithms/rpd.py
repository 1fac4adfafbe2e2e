"""Refined policy distillation (2025): PPO that is also drawn to what a teacher would do in the states it comes to.

The teacher is asked once per state and update, after the fact, and never acts. Its pull may fade, so that the student,
which learns from reward, is not held at a teacher that it has passed.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.algorithms.losses import masked_mean
from vla.algorithms.minibatches import in_order
from vla.algorithms.ppo import PPO
from vla.models.action_tokens import command_range
from vla.types import Actor, EnvSpec, Imitator, Metrics, Rollout, Stochastic

DISTANCES = ("mse", "l1", "nll")


class RPD(PPO):
    """PPO with `weight` times the distance to what `adviser`, which is called with the policy once, would do.

    `mse` and `l1` are between the policy's most likely command (`mode`, which must be differentiable) and the
    adviser's, in units of half a command's range, so that a gripper does not count more than metres; `nll` is the
    policy's own imitation loss and does for any head. With `until` the weight falls along half a cosine and is 0 from
    that update on. ValueError for advice in commands of another meaning, or in shorter chunks.
    """

    def __init__(
        self,
        policy: Stochastic,
        critic: Callable[[Stochastic], nn.Module],
        adviser: Callable[[Stochastic], Actor],
        weight: float = 1.0,
        until: int | None = None,
        distance: str = "mse",
        **options: Any,
    ):
        if weight < 0 or (until is not None and until < 1):
            raise ValueError(f"need weight >= 0 and until >= 1 (or null), got {weight} and {until}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        if distance == "nll" and not isinstance(policy, Imitator):
            raise TypeError(f"{type(policy).__name__} has no imitation loss, as distance=nll needs")
        super().__init__(policy, critic, **options)
        self.adviser, self.weight, self.until, self.distance = adviser(policy), weight, until, distance
        low, high = command_range(cast(EnvSpec, cast(Any, policy).spec).command)
        self.half = ((high - low) / 2).to(self.device)

    @property
    def pull(self) -> float:
        """The weight in the update that is under way."""
        done = self.progress.updates - 1  # the first update has all of it
        if self.until is None:
            return self.weight
        return self.weight * (0.5 * math.cos(math.pi * done / self.until) + 0.5 if done < self.until else 0.0)

    @torch.no_grad()
    def _more(self, decisions: Rollout) -> tuple[Tensor, ...]:
        """The adviser's chunk for each decision, and which of the decision's commands were executed."""
        obs = in_order(self.minibatch, self.device, decisions.obs)
        advice = torch.cat([self.adviser.act(some).commands.cpu() for some in obs])
        horizon = decisions.action.commands.shape[-2]
        if advice.shape[-2] < horizon:
            raise ValueError(f"the adviser gives chunks of {advice.shape[-2]} commands, the student of {horizon}")
        steps = decisions.num_steps
        executed = torch.ones(len(decisions), horizon).bool() if steps is None else _before(steps, horizon)
        return advice[:, :horizon], executed

    def _guide(self, some: Rollout, *more: Tensor) -> tuple[Float[Tensor, ""] | float, Metrics]:
        advice, executed = more
        if self.distance == "nll":
            found = cast(Imitator, self.policy).imitation_loss(some.obs, advice, ~executed).mean()
        else:
            off = (cast(Any, self.policy).mode(some.obs).commands - advice) / self.half
            if not off.requires_grad:
                raise TypeError(f"the mode of {type(self.policy).__name__} has no gradient: use distance=nll")
            found = masked_mean((off.square() if self.distance == "mse" else off.abs()).mean(-1), executed)
        return self.pull * found, {"advice_distance": found.item(), "advice_weight": self.pull}


def _before(steps: Tensor, horizon: int) -> Bool[Tensor, "batch horizon"]:
    return torch.arange(horizon) < steps[:, None]
