"""Poses of one arm by MuJoCo's own functions: microseconds where batched tensors of one pose take a hundred times that.

A pose is float64[7], x y z and then a quaternion as MuJoCo has it, w first. What is done to poses is what
`vla.geometry` does, function by function.
"""

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vla.types import Command

Native = NDArray[np.float64]


def pose_of(position: Native, rotation: Native) -> Native:
    """`rotation` is a quaternion, or a matrix of nine numbers."""
    pose = np.empty(7)
    pose[:3] = position
    if len(rotation) == 4:
        pose[3:] = rotation
    else:
        mujoco.mju_mat2Quat(pose[3:], rotation)
    return pose


def to_tensor(pose: Native) -> Float[Tensor, "1 7"]:
    """In the order and sign of our observations: x y z w, w >= 0."""
    ours = pose[[0, 1, 2, 4, 5, 6, 3]]
    if ours[6] < 0:
        ours[3:] *= -1
    return torch.from_numpy(ours).float()[None]


def compose(a: Native, b: Native) -> Native:
    """The pose `b`, given in the frame `a`, in the frame that `a` is given in."""
    pose = np.empty(7)
    mujoco.mju_mulPose(pose[:3], pose[3:], a[:3], a[3:], b[:3], b[3:])
    return pose


def inverse(pose: Native) -> Native:
    result = np.empty(7)
    mujoco.mju_negPose(result[:3], result[3:], pose[:3], pose[3:])
    return result


def rotate(quaternion: Native, vector: Native) -> Native:
    """The vector turned by the quaternion, w first."""
    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, vector, quaternion)
    return turned


def turn(rotation_vector: Native, pose: Native) -> Native:
    """The quaternion of `pose` after a turn (radians) about axes of the frame it is given in."""
    angle = float(np.linalg.norm(rotation_vector))
    by, quaternion = np.empty(4), np.empty(4)
    mujoco.mju_axisAngle2Quat(by, rotation_vector / max(angle, 1e-12), angle)
    mujoco.mju_mulQuat(quaternion, by, pose[3:])
    return quaternion / np.linalg.norm(quaternion)


def turn_between(start: Native, end: Native) -> Native:
    """The rotation vector that leads from the rotation of `start` to that of `end`."""
    back, between, vector = np.empty(4), np.empty(4), np.empty(3)
    mujoco.mju_negQuat(back, start[3:])
    mujoco.mju_mulQuat(between, end[3:], back)
    mujoco.mju_quat2Vel(vector, between, 1.0)
    return vector


def delta_between(start: Native, end: Native) -> Native:
    """Translation and rotation vector that lead from `start` to `end`."""
    return np.concatenate([end[:3] - start[:3], turn_between(start, end)])


def advance(commanded: Native, measured: Native, delta: Native, leash: tuple[float, float]) -> Native:
    """The next commanded pose, as `vla.geometry.advance` has it."""
    position = measured[:3] + np.clip(commanded[:3] + delta[:3] - measured[:3], -leash[0], leash[0])
    wanted = pose_of(position, turn(delta[3:6], commanded))
    return pose_of(position, turn(_limited(turn_between(measured, wanted), leash[1]), measured))


def limit_ee_delta(command: Native, meaning: Command) -> Native:
    """An `ee_delta` command within its limits: the norms of translation and rotation, and the gripper in 0..1."""
    motion = [
        _limited(command[:3], meaning.max_translation or np.inf),
        _limited(command[3:6], meaning.max_rotation or np.inf),
    ]
    return np.concatenate([*motion, np.clip(command[6:], 0, 1)])


def _limited(vector: Native, limit: float) -> Native:
    return vector * min(1.0, limit / max(float(np.linalg.norm(vector)), 1e-12))
