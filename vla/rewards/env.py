"""The reward the environment paid."""

from jaxtyping import Float
from torch import Tensor

from vla.types import Rollout


class EnvReward:
    """Leaves the reward of a rollout as it is."""

    def __call__(self, rollout: Rollout) -> Float[Tensor, "time env"]:
        return rollout.reward
