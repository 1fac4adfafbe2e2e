"""What a policy's eyes owe its head."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vla.data.normalise import Statistics
from vla.types import Observation


@runtime_checkable
class Encoder(Protocol):
    """A module that turns observations into `width` features, built from an `EnvSpec`."""

    width: int

    def __call__(self, obs: Observation) -> Float[Tensor, "batch width"]: ...
    def set_statistics(self, proprio: Statistics) -> None: ...
