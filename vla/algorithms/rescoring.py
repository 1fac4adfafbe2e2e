"""The guard before the first update: a decision scored again must have the probability it was made with."""

import torch

from vla.types import Rollout, Stochastic


@torch.no_grad()
def require_same_scores(policy: Stochastic, decisions: Rollout, minibatch: int = 256, tolerance: float = 1e-3) -> None:
    """RuntimeError, naming the largest deviation, unless every probability ratio is within `tolerance` of 1.

    What breaks it: scoring at another temperature than sampling, dropout, other weights than those that played, or a
    latent that does not hold all that was drawn.
    """
    worst = torch.zeros(())
    for some in decisions.split(minibatch):
        some = some.to(next(policy.parameters()).device)
        ratio = (policy.log_prob(some.obs, some.action) - some.action.log_prob).exp()
        worst = torch.maximum(worst, (ratio - 1).abs().nan_to_num(torch.inf).max().cpu())
    if worst >= tolerance:
        raise RuntimeError(
            f"scoring the stored decisions again gives other probabilities: |ratio - 1| is up to {worst:.3g}, allowed "
            f"is {tolerance}. Were they made with these weights and this temperature, and without dropout?"
        )
