"""How much better a decision was than expected: pure functions of rewards, values and log-probabilities."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GROUPINGS = ("std", "mean", "leave_one_out")


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


def gae_per_command(
    reward: Float[Tensor, "time env horizon"],
    value: Float[Tensor, "time env horizon"],
    terminated: Bool[Tensor, "time env"],
    num_steps: Int[Tensor, "time env"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "time env horizon"]:
    """The same for each executed command of a chunk, 0 for others; `num_steps` is 0 where a row is not valid.

    All values of a chunk were guessed when it began: `value[t, :, i]` is that before its command i. After the last
    executed one comes the first of the next row.
    """
    advantage = torch.zeros_like(value)
    for t in reversed(range(len(value) - 1)):
        after, later = value[t + 1, :, 0] * ~terminated[t], advantage[t + 1, :, 0] * ~terminated[t]
        for i in reversed(range(value.shape[-1])):
            executed = i < num_steps[t]
            now = reward[t, :, i] + gamma * (after + lam * later) - value[t, :, i]
            advantage[t, :, i] = torch.where(executed, now, 0)
            after, later = (torch.where(executed, x, y) for x, y in ((value[t, :, i], after), (now, later)))
    return advantage


def group_advantage(returns: Float[Tensor, "group episode"], kind: str = "std") -> Float[Tensor, "group episode"]:
    """How much better an episode went than the others that began alike; `returns[:, i]` are those of one beginning.

    `std`: from the mean, in standard deviations (GRPO, Shao et al. 2024); `mean`: from the mean (Dr. GRPO, Liu et al.
    2025); `leave_one_out`: from the mean of the others (RLOO, Ahmadian et al. 2024). Exactly 0 where all are alike.
    """
    if kind not in GROUPINGS:
        raise ValueError(f"the advantage in a group must be one of {', '.join(GROUPINGS)}, got {kind!r}")
    if len(returns) < 2:
        raise ValueError(f"a group needs at least 2 episodes, got {len(returns)}")
    difference = returns - returns.mean(0)
    difference = torch.where((returns == returns[0]).all(0), 0.0, difference)
    if kind == "std":
        return difference / (returns.std(0) + 1e-6)
    return difference * len(returns) / (len(returns) - 1) if kind == "leave_one_out" else difference


def normalised(advantage: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """With mean 0 and standard deviation 1; all zero if they are all the same."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
