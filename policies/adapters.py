"""What stands between a policy trained elsewhere and our observations: its conventions are options here, not ours."""

from torch import Tensor

from vla.types import Action, Actor, Observation


class Mirrored:
    """An actor that sees the pictures of public LIBERO checkpoints: left and right exchanged.

    Their training pictures were robosuite's, stored bottom-up, turned by 180 degrees: upright, but left and right
    exchanged. Ours are upright and not mirrored, so what such a policy must see is ours mirrored.
    """

    def __init__(self, actor: Actor):
        self.actor = actor

    def act(self, obs: Observation) -> Action:
        return self.actor.act(obs.replace(images=obs.images.apply(_mirrored)))


def _mirrored(pictures: Tensor) -> Tensor:
    return pictures.flip(-2)
