"""Keeping count of what the commands of a chunk lead to, for environments that play whole chunks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla.types import Observation, Step


class Tally:
    """The sums and verdicts of one chunk so far; a column counts only as long as its episode is alive."""

    def __init__(self, chunk: Float[Tensor, "env horizon action"]):
        n = len(chunk)
        self.executed = torch.zeros_like(chunk)
        self.rewards = torch.zeros(chunk.shape[:2])
        self.num_steps, self.steps_to_success = (torch.zeros(n, dtype=torch.long) for _ in range(2))
        self.success, self.success_at_end, self.terminated, self.truncated = torch.zeros(4, n, dtype=torch.bool)

    @property
    def over(self) -> Bool[Tensor, " env"]:
        """Whose episode ended in this chunk."""
        return self.terminated | self.truncated

    def add(
        self,
        alive: Bool[Tensor, " env"],
        executed: Float[Tensor, "env action"],
        reward: Float[Tensor, " env"],
        success: Bool[Tensor, " env"],
        terminated: Bool[Tensor, " env"],
        *,
        out_of_time: bool,
    ) -> None:
        """Count one command. A column that is alive has executed all commands so far, so their place is its count."""
        env = alive.nonzero().squeeze(-1)
        self.executed[env, self.num_steps[env]] = executed[env]
        self.rewards[env, self.num_steps[env]] = reward[env]
        self.num_steps += alive
        self.steps_to_success = torch.where(alive & success & ~self.success, self.num_steps, self.steps_to_success)
        self.success |= success & alive
        self.success_at_end = torch.where(alive, success, self.success_at_end)
        self.terminated |= terminated & alive
        self.truncated |= alive & ~terminated & out_of_time

    def step(self, obs: Observation) -> Step:
        """All of it as the answer to the chunk."""
        return Step(
            obs=obs,
            reward=self.rewards.sum(-1),
            rewards=self.rewards,
            success=self.success,
            terminated=self.terminated,
            truncated=self.truncated,
            executed=self.executed,
            success_at_end=self.success_at_end,
            steps_to_success=self.steps_to_success,
            num_steps=self.num_steps,
            batch_size=[len(self.rewards)],
        )
