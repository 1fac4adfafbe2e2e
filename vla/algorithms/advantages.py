"""How much better a decision was than expected: pure functions of rewards, values and log-probabilities."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    reward: Float[Tensor, "time env"],
    value: Float[Tensor, "time env"],
    terminated: Bool[Tensor, "time env"],
    valid: Bool[Tensor, "time env"],
    discount: Float[Tensor, "time env"],
    lam: float,
) -> Float[Tensor, "time env"]:
    """Generalised advantages (Schulman et al. 2016), 0 where invalid.

    `discount` is what the next state is worth per decision: gamma to the power of the commands executed. After a
    termination nothing is worth anything; after a time limit, the value of the state it ended in.
    """
    advantage = torch.zeros_like(reward)
    for t in reversed(range(len(reward) - 1)):
        error = reward[t] + discount[t] * value[t + 1] * ~terminated[t] - value[t]
        advantage[t] = (error + discount[t] * lam * advantage[t + 1]) * valid[t]
    return advantage


def normalised(advantage: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """With mean 0 and standard deviation 1; all zero if they are all the same."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
