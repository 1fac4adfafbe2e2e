"""Conventions of policies trained elsewhere, applied to our observations."""

from torch import Tensor

from vla.types import Observation


def mirrored(obs: Observation) -> Observation:
    """With left and right of all pictures exchanged, as public LIBERO checkpoints were trained.

    Their pictures were robosuite's, stored bottom-up, turned by 180 degrees: upright, but mirrored. Ours are not.
    """
    return obs.replace(images=obs.images.apply(_flipped))


def _flipped(pictures: Tensor) -> Tensor:
    return pictures.flip(-2)
