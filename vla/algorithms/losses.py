"""Losses of a batch of decisions, and what they are measured by: pure functions of log-probabilities."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.algorithms.together import rank_and_count, total
from vla.types import Rollout

PerGroup = float | Float[Tensor, " groups"]  # the same for all, or one for each


def masked_mean(x: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """The mean where `mask` is True, 0 if nowhere; what is masked may be anything, even nan, and gets no gradient.

    In several processes, all of which must call it, it is what averaged over them gives the mean over all their rows.
    """
    _, processes = rank_and_count()
    return torch.where(mask, x, 0).sum() * processes / total(mask.sum()).clamp(min=1)


def unpadded_mean(
    loss: Float[Tensor, "batch horizon"], padded: Bool[Tensor, "batch horizon"] | None
) -> Float[Tensor, " batch"]:
    """The mean over the commands of each chunk, or over their tokens, that are not padding; 0 where all are."""
    if padded is None:
        return loss.mean(-1)
    return (loss * ~padded).sum(-1) / (~padded).sum(-1).clamp(min=1)


def executed_factors(decisions: Rollout) -> Bool[Tensor, "*batch factors"]:
    """Which factors led to commands that were executed before the episode ended; the others earned nothing.

    Factors come command by command, as many for each; all factors of a head that cannot say so count.
    """
    horizon = decisions.action.commands.shape[-2]
    log_prob = decisions.action.log_prob
    if decisions.num_steps is None or log_prob.shape[-1] % horizon:
        return torch.ones_like(log_prob, dtype=torch.bool)
    command = torch.arange(horizon, device=log_prob.device)
    return (command < decisions.num_steps[..., None]).repeat_interleave(log_prob.shape[-1] // horizon, -1)


def regroup(
    log_prob: Float[Tensor, "batch factors"],
    mask: Bool[Tensor, "batch factors"],
    granularity: str,
    horizon: int,
) -> tuple[Float[Tensor, "batch groups"], Bool[Tensor, "batch groups"]]:
    """Log-probabilities summed over what one ratio is formed of; masked factors add nothing.

    ValueError if the factors of this head cannot be told apart by command.
    """
    log_prob = torch.where(mask, log_prob, 0)
    if granularity == "factor":
        return log_prob, mask
    if granularity == "chunk":
        return log_prob.sum(-1, keepdim=True), mask.any(-1, keepdim=True)
    if granularity != "command":
        raise ValueError(f"granularity must be 'factor', 'command' or 'chunk', got {granularity!r}")
    if log_prob.shape[-1] % horizon:
        raise ValueError(
            f"this policy's {log_prob.shape[-1]} factors are not those of {horizon} commands: use granularity 'factor' "
            "or 'chunk'"
        )
    return log_prob.unflatten(-1, (horizon, -1)).sum(-1), mask.unflatten(-1, (horizon, -1)).any(-1)


def clipped_loss(
    log_ratio: Float[Tensor, "batch groups"],
    advantage: Float[Tensor, "batch advantages"],
    mask: Bool[Tensor, "batch groups"],
    clip: tuple[PerGroup, PerGroup],
    dual_clip: float | None = None,
) -> Float[Tensor, ""]:
    """The clipped surrogate of PPO (Schulman et al. 2017), one ratio per group, between 1 - low and 1 + high.

    With `dual_clip` (Ye et al. 2020; 3, say) no decision that did harm weighs more than that many times its advantage,
    however much likelier it has become.
    """
    ratio, (low, high) = log_ratio.exp(), clip
    gain = torch.minimum(ratio * advantage, ratio.clamp(min=1 - low).clamp(max=1 + high) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, gain.maximum(dual_clip * advantage), gain)
    return -masked_mean(gain, mask)


def draw_discounts(draws: int, discount: float) -> Float[Tensor, " draws"]:
    """What a chain's draws are worth, the first and noisiest first; 1 is the last one's (DPPO, Ren et al. 2024)."""
    return discount ** torch.arange(draws - 1, -1, -1).float()


def draw_clips(draws: int, first: float, rate: float = 3.0) -> Float[Tensor, " draws"]:
    """How far the draws of a chain may go, growing exponentially from `first` to 1, the last one's (DPPO; its rate)."""
    grown = torch.expm1(rate * torch.linspace(0, 1, draws)) / math.expm1(rate)
    return first + (1 - first) * grown


def value_loss(
    value: Float[Tensor, "*batch"],
    old: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "*batch"],
    clip: float | None = None,
) -> Float[Tensor, ""]:
    """The squared error; with `clip` that of a value that has moved by no more than that, if it is the larger."""
    error = (value - target).square()
    if clip is not None:
        error = error.maximum((old + (value - old).clamp(-clip, clip) - target).square())
    return masked_mean(error, mask)


def importance_loss(
    log_ratio: Float[Tensor, "batch groups"],
    advantage: Float[Tensor, "batch groups"],
    mask: Bool[Tensor, "batch groups"],
) -> Float[Tensor, ""]:
    """The importance-sampled policy gradient; at ratio 1 its gradient is that of `-log_prob * advantage`."""
    return -masked_mean(log_ratio.exp() * advantage, mask)


def kl(p: Float[Tensor, "*batch choices"], q: Float[Tensor, "*batch choices"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) of categorical distributions given as log-probabilities."""
    return (p.exp() * (p - q)).sum(-1)


def sampled_kl(log_ratio: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """KL(old || new), estimated from samples of the old policy, `log_ratio` being new - old; never negative (k3)."""
    return masked_mean(log_ratio.exp() - 1 - log_ratio, mask)


def k3_loss(
    log_ratio: Float[Tensor, "batch groups"],
    to_teacher: Float[Tensor, "batch groups"],
    mask: Bool[Tensor, "batch groups"],
) -> Float[Tensor, ""]:
    """KL(student || teacher) of samples of the one who played, each weighed by the ratio to it (Skill-SD, 2026).

    `log_ratio` is the student's log-probability less the player's, `to_teacher` the student's less the teacher's. The
    gradient through the ratio is what makes it that of the reverse KL; without the ratio it would be the forward one's.
    """
    return masked_mean(log_ratio.exp() * (torch.exp(-to_teacher) - 1 + to_teacher), mask)
