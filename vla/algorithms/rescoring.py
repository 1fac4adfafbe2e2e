"""Decisions scored again: before the first update they must have the probability they were made with."""

import torch
from jaxtyping import Float
from torch import Tensor

from vla.algorithms.minibatches import in_order
from vla.types import Rollout, Stochastic


def require_same_scores(
    policy: Stochastic, decisions: Rollout, minibatch: int, device: torch.device, tolerance: float = 1e-3
) -> None:
    """RuntimeError, naming the largest deviation, unless every probability ratio is within `tolerance` of 1.

    What breaks it: scoring at another temperature than sampling, dropout, other weights than those that played, or a
    latent that does not hold all that was drawn.
    """
    ratio = (rescored(policy, decisions, minibatch, device) - decisions.action.log_prob).exp()
    worst = (ratio - 1).abs().nan_to_num(torch.inf).max().item()
    if worst >= tolerance:
        raise RuntimeError(
            f"scoring the stored decisions again gives other probabilities: |ratio - 1| is up to {worst:.3g}, allowed "
            f"is {tolerance}. Were they made with these weights and this temperature, and without dropout?"
        )


@torch.no_grad()
def rescored(
    policy: Stochastic, decisions: Rollout, minibatch: int, device: torch.device
) -> Float[Tensor, "batch factors"]:
    """Their log-probabilities by the policy as it is. ValueError if it decides without chance."""
    if decisions.action.log_prob.shape[-1] == 0:
        raise ValueError(
            f"{type(policy).__name__} decides without chance that could be scored: give it some (a flow chain=sde or "
            "noise, a diffusion eta=1), or learn by imitation"
        )
    scores = [policy.log_prob(some.obs, some.action).cpu() for some in in_order(minibatch, device, decisions)]
    return torch.cat(scores)
