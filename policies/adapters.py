"""Conventions of policies trained elsewhere, applied to our observations."""

import torch
from jaxtyping import Float
from torch import Tensor

from vla.geometry import from_matrix
from vla.types import EnvSpec, Observation

LIBERO_UNIT = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0)  # what 1 of its actions is: m, rad, a gripper from 0, closed, to 1
FINGER = 0.04  # how far each finger of the Panda goes, m


def mirrored(obs: Observation) -> Observation:
    """With left and right of all pictures exchanged, as public LIBERO checkpoints were trained.

    Their pictures were robosuite's, stored bottom-up, turned by 180 degrees: upright, but mirrored. Ours are not.
    """
    return obs.replace(images=obs.images.apply(_flipped))


def libero_proprio(proprio: Float[Tensor, "batch proprio"], spec: EnvSpec) -> Float[Tensor, "batch 8"]:
    """What LIBERO's data tell of the arm: position in the world (m), rotation vector, both fingers (m).

    robosuite's rotation vectors are not the shortest ones: their quaternion goes on through a half turn, about which
    the hand points down, so that its x never changes sign. ValueError where the world is not told (`env.base=true`).
    """
    parts = {name: proprio[..., spec.proprio_slice(name)] for name, _ in spec.proprio}
    lacking = {"position", "rotation", "gripper", "base_position"} - parts.keys()
    if lacking:
        raise ValueError(
            f"the policy needs {', '.join(sorted(lacking))} in proprio, which has {', '.join(parts)}: "
            "env.base=true tells base_position; proprio=false is for checkpoints that were told nothing"
        )
    x, y = parts["rotation"].split(3, -1)
    q = from_matrix(torch.stack([x, y, torch.linalg.cross(x, y)], -1))
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = torch.linalg.vector_norm(q[..., :3], dim=-1, keepdim=True)
    turn = 2 * torch.atan2(sine, q[..., 3:]) * q[..., :3] / sine.clamp_min(1e-9)
    fingers = FINGER * parts["gripper"] * proprio.new_tensor([1.0, -1.0])
    return torch.cat([parts["position"] + parts["base_position"], turn, fingers], -1)


def _flipped(pictures: Tensor) -> Tensor:
    return pictures.flip(-2)
