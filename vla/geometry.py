"""Rotations and poses as batched tensors, and the pose that `ee_delta` commands accumulate on.

Quaternions are x y z w with w >= 0. Rotation vectors are radians along the axis. A pose is x y z, quaternion.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vla.types import Command


def normalise(q: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The unit quaternion of the same rotation with w >= 0, so that equal rotations have equal numbers."""
    return q / torch.copysign(_norm(q), q[..., 3:])


def multiply(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The rotation that does `b` first, then `a`."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return normalise(torch.cat([vector, aw * bw - (av * bv).sum(-1, keepdim=True)], -1))


def conjugate(q: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The opposite rotation of a unit quaternion."""
    return q * q.new_tensor([-1, -1, -1, 1])


def rotate(q: Float[Tensor, "*batch 4"], v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The vector `v` turned by `q`."""
    t = 2 * torch.linalg.cross(q[..., :3], v)
    return v + q[..., 3:] * t + torch.linalg.cross(q[..., :3], t)


def from_rotation_vector(r: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """The quaternion that turns by |r| radians about r."""
    angle = _norm(r)
    scale = 0.5 * torch.sinc(angle / (2 * torch.pi))  # sin(angle / 2) / angle, finite at zero
    return normalise(torch.cat([r * scale, torch.cos(angle / 2)], -1))


def to_rotation_vector(q: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """Axis times angle, with the angle in [0, pi]."""
    q = normalise(q)
    sine = _norm(q[..., :3])
    angle = 2 * torch.atan2(sine, q[..., 3:])
    return q[..., :3] * torch.where(sine > 1e-6, angle / sine.clamp_min(1e-12), 2.0)


def from_matrix(m: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """The quaternion of a rotation matrix, by the largest of its four numbers (Shepperd 1978)."""
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, yz, zx = (m[..., 1, 0] + m[..., 0, 1], m[..., 2, 1] + m[..., 1, 2], m[..., 0, 2] + m[..., 2, 0])
    x, y, z = (m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1])
    rows = [[1 + xx - yy - zz, xy, zx, x], [xy, 1 - xx + yy - zz, yz, y], [zx, yz, 1 - xx - yy + zz, z]]
    rows.append([x, y, z, 1 + xx + yy + zz])
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = torch.stack([row[i] for i, row in enumerate(rows)], -1).argmax(-1)
    return normalise(candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2))


def turn_between(start: Float[Tensor, "*batch 4"], end: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """The rotation vector, in the base frame, that leads from `start` to `end`."""
    return to_rotation_vector(multiply(end, conjugate(start)))


def to_frame(base: Float[Tensor, "*batch 7"], pose: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 7"]:
    """A world pose as seen from the pose `base`."""
    inverse = conjugate(base[..., 3:])
    return torch.cat([rotate(inverse, pose[..., :3] - base[..., :3]), multiply(inverse, pose[..., 3:])], -1)


def wxyz_to_xyzw(q: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The quaternion of libraries that put w first (SAPIEN, MuJoCo) in our order and sign."""
    return normalise(torch.roll(q, -1, -1))


def xyzw_to_wxyz(q: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Our quaternion in the order of libraries that put w first."""
    return torch.roll(q, 1, -1)


def limit_norm(v: Float[Tensor, "*batch n"], limit: float) -> Float[Tensor, "*batch n"]:
    """`v`, shortened to length `limit` where it is longer; the direction stays."""
    return v * (limit / _norm(v).clamp_min(1e-12)).clamp_max(1)


def limit_ee_delta(command: Float[Tensor, "*batch 7"], meaning: Command) -> Float[Tensor, "*batch 7"]:
    """An `ee_delta` command within its limits: the norms of translation and rotation, and the gripper in 0..1."""
    return torch.cat(
        [
            limit_norm(command[..., :3], meaning.max_translation or math.inf),
            limit_norm(command[..., 3:6], meaning.max_rotation or math.inf),
            command[..., 6:].clamp(0, 1),
        ],
        -1,
    )


def advance(
    commanded: Float[Tensor, "*batch 7"],
    measured: Float[Tensor, "*batch 7"],
    command: Float[Tensor, "*batch 7"],
    leash: tuple[float, float],
) -> Float[Tensor, "*batch 7"]:
    """The next commanded pose: `commanded` moved by an `ee_delta` command, at most `leash` away from `measured`.

    Deltas accumulate on the commanded pose, so that a lagging arm still ends where it was sent. The leash (metres along
    each axis, radians) keeps a blocked arm from winding up a pose that it would leap to when it comes free; along the
    other axes it holds its course.
    """
    position = commanded[..., :3] + command[..., :3]
    position = measured[..., :3] + (position - measured[..., :3]).clamp(-leash[0], leash[0])
    rotation = multiply(from_rotation_vector(command[..., 3:6]), commanded[..., 3:])
    turn = limit_norm(turn_between(measured[..., 3:], rotation), leash[1])
    return torch.cat([position, multiply(from_rotation_vector(turn), measured[..., 3:])], -1)


def delta_between(
    start: Float[Tensor, "*batch 7"], end: Float[Tensor, "*batch 7"], gripper: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch 7"]:
    """The `ee_delta` command that leads from the pose `start` to the pose `end`."""
    return torch.cat([end[..., :3] - start[..., :3], turn_between(start[..., 3:], end[..., 3:]), gripper], -1)


def _norm(v: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 1"]:
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True)  # half the time of `v.norm`
