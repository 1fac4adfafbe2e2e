"""The step that PPO and GRPO share: towards decisions with an advantage, near the policy that made them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.algorithms.losses import PerGroup, clipped_loss, draw_clips, draw_discounts, masked_mean, regroup, sampled_kl
from vla.algorithms.minibatches import shuffled
from vla.algorithms.rescoring import rescored
from vla.algorithms.together import average
from vla.types import Metrics, Rollout, Stochastic

GRANULARITIES = ("factor", "command", "chunk")
STILL: Metrics = {"policy_loss": 0.0, "kl": 0.0, "clipped": 0.0}  # what a step tells that leaves the policy alone


@dataclass(frozen=True)
class Surrogate:
    """One ratio per `granularity`, kept between 1 - clip and 1 + clip, or (low, high) apart.

    Where a decision is a chain of `num_drawn` draws, each may be weighed by itself (DPPO, Ren et al. 2024): the last
    has the whole advantage and the whole clip, every earlier one `chain_discount` times the advantage of the next, and
    the first, noisiest one `chain_clip` times the clip, which grows exponentially.

    Where older weights played, a `decoupled` one (Hilton et al. 2022) stays near the policy as it is when an update
    begins, instead of the one that played, and weighs what each ratio is formed of by how much likelier it has become
    in between, up to `max_weight`.
    """

    clip: float | Sequence[float] = 0.2
    dual_clip: float | None = None
    granularity: str = "chunk"
    chain_discount: float = 1.0
    chain_clip: float = 1.0
    num_drawn: int = 1  # the factors are the numbers of a command's first draw, then of its second and so on
    decoupled: bool = False
    max_weight: float = 2.0

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        low, high = self.bounds
        if not 0 < low <= 1 or high <= 0:
            raise ValueError(f"clip must be a number between 0 and 1, or two, low and high, got {self.clip}")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1 (3, say), got {self.dual_clip}; null for none")
        if not 0 <= self.chain_discount <= 1 or not 0 < self.chain_clip <= 1:
            raise ValueError(
                "chain_discount must be from 0 to 1 and chain_clip above 0 and up to 1 (1: off), got "
                f"{self.chain_discount} and {self.chain_clip}"
            )
        if self.chained and self.granularity != "factor":
            raise ValueError(
                "chain_discount and chain_clip tell the draws of a chain apart, which a ratio per "
                f"{self.granularity} sums: they need granularity 'factor'"
            )
        if self.chained and self.num_drawn < 2:
            raise ValueError(
                "chain_discount and chain_clip tell the draws of a chain apart, and this policy makes "
                f"{self.num_drawn}: they need several (a flow chain=noise, a diffusion eta=1)"
            )
        if not self.max_weight >= 1:
            raise ValueError(
                f"max_weight must be at least 1, which is what fresh decisions have, got {self.max_weight}"
            )

    @property
    def chained(self) -> bool:
        """Whether the draws of a chain differ in what they are worth or how far they may go."""
        return self.chain_discount < 1 or self.chain_clip < 1

    @property
    def bounds(self) -> tuple[float, float]:
        """How far below and above 1 a ratio may be."""
        low, high = self.clip if isinstance(self.clip, Sequence) else (self.clip, self.clip)
        return low, high

    def __call__(
        self,
        policy: Stochastic,
        some: Rollout,
        advantage: Float[Tensor, "batch advantages"],
        counts: Bool[Tensor, "batch factors"],
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The loss of some decisions, with one advantage each, one for each of their commands or one per ratio."""
        difference = policy.log_prob(some.obs, some.action) - some.action.log_prob
        log_ratio, counts = regroup(difference, counts, self.granularity, some.action.commands.shape[-2])
        advantage = self._per_ratio(advantage, log_ratio.shape[-1])
        worth, reach = self._per_factor(some)
        low, high = (reach * x for x in self.bounds)
        loss = clipped_loss(log_ratio, worth * advantage, counts, (low, high), self.dual_clip)
        with torch.no_grad():
            ratio = log_ratio.exp()
            clipped = masked_mean(((ratio < 1 - low) | (ratio > 1 + high)).float(), counts)
            kl = sampled_kl(log_ratio, counts)
        return loss, {"policy_loss": loss.item(), "kl": kl.item(), "clipped": clipped.item()}

    def centred(
        self,
        policy: Stochastic,
        decisions: Rollout,
        advantage: Float[Tensor, "batch advantages"],
        counts: Bool[Tensor, "batch factors"],
        minibatch: int,
        device: torch.device,
    ) -> tuple[Rollout, Float[Tensor, "batch weighed"], Metrics]:
        """If `decoupled`, decisions as if this policy had made them, and advantages weighed by how likely that was.

        Also how far it is from the policy that made them, and the share of weights that were cut.
        """
        if not self.decoupled:
            return decisions, advantage, {}
        scores = rescored(policy, decisions, minibatch, device)
        difference = scores - decisions.action.log_prob
        log_weight, counts = regroup(difference, counts, self.granularity, decisions.action.commands.shape[-2])
        if not log_weight[counts].isfinite().all():
            raise RuntimeError("decisions scored again have no finite probability: has the policy diverged?")
        weight = log_weight.exp()
        told = {
            "staleness_kl": sampled_kl(log_weight, counts).item(),
            "capped": masked_mean((weight > self.max_weight).float(), counts).item(),
        }
        decisions = decisions.replace(action=decisions.action.replace(log_prob=scores))
        return decisions, self._per_ratio(advantage, weight.shape[-1]) * weight.clamp(max=self.max_weight), told

    def _per_ratio(self, advantage: Float[Tensor, "batch advantages"], ratios: int) -> Float[Tensor, "batch ratios"]:
        if advantage.shape[-1] > 1 and self.granularity == "chunk":
            raise ValueError("an advantage per command needs a ratio per command or factor: set granularity")
        return advantage.repeat_interleave(ratios // advantage.shape[-1], -1)

    def _per_factor(self, some: Rollout) -> tuple[PerGroup, PerGroup]:
        """What share of the advantage and of the clip each has."""
        if not self.chained:
            return 1.0, 1.0
        shares = draw_discounts(self.num_drawn, self.chain_discount), draw_clips(self.num_drawn, self.chain_clip)
        horizon, log_prob = some.action.commands.shape[-2], some.action.log_prob
        numbers = log_prob.shape[-1] // (horizon * self.num_drawn)
        discount, clip = (x.to(log_prob.device).repeat_interleave(numbers).repeat(horizon) for x in shares)
        return discount, clip


def drawn_by(policy: Stochastic) -> int:
    """In how many draws, one from the other, this policy decides: 1 if it does not say."""
    return getattr(policy, "num_drawn", 1)


def repeated(
    step: Callable[..., Metrics],
    columns: Sequence[Any],
    epochs: int,
    minibatch: int,
    device: torch.device,
    max_kl: float | None,
) -> Metrics:
    """Take all rows in portions `epochs` times, or until after an epoch that moved further than `max_kl`; the means."""
    metrics = defaultdict(list)
    for _ in range(epochs):
        steps = [step(*some) for some in shuffled(minibatch, device, *columns)]
        for name in steps[0]:
            metrics[name].append(average(sum(told[name] for told in steps) / len(steps)))
        if max_kl is not None and metrics["kl"][-1] > max_kl:
            break
    return {**{name: sum(xs) / len(xs) for name, xs in metrics.items()}, "epochs": len(metrics["kl"])}
