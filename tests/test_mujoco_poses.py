"""Poses by MuJoCo's functions are those of `vla.geometry`."""

import numpy as np
import pytest
import torch

from simulators import mujoco_poses as poses
from vla import geometry
from vla.types import Command

CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def drawn(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(count, 4))
    return list(np.concatenate([rng.normal(size=(count, 3)), unit / np.linalg.norm(unit, axis=1, keepdims=True)], 1))


A, B = drawn(40)[:20], drawn(40)[20:]


@pytest.mark.parametrize(("a", "b"), list(zip(A, B, strict=True)))
def test_frames_and_turns(a, b):
    ours, theirs = (poses.to_tensor(x) for x in (a, b))
    assert theirs[0, 6] >= 0
    seen = poses.to_tensor(poses.compose(poses.inverse(a), b))
    torch.testing.assert_close(seen, geometry.to_frame(ours, theirs), **CLOSE)
    turned = torch.from_numpy(poses.rotate(a[3:], b[:3])).float()[None]
    torch.testing.assert_close(turned, geometry.rotate(ours[:, 3:], theirs[:, :3]), **CLOSE)
    delta = torch.from_numpy(poses.delta_between(a, b)).float()[None]
    torch.testing.assert_close(delta, geometry.delta_between(ours, theirs, torch.zeros(1, 1))[:, :6], **CLOSE)
    by = poses.turn(np.array([0.3, -0.2, 0.1]), a)
    expected = geometry.multiply(geometry.from_rotation_vector(torch.tensor([[0.3, -0.2, 0.1]])), ours[:, 3:])
    torch.testing.assert_close(poses.to_tensor(poses.pose_of(a[:3], by))[:, 3:], expected, **CLOSE)


@pytest.mark.parametrize("size", [0.0, 0.02, 0.3, 3.0])
@pytest.mark.parametrize(("commanded", "measured"), list(zip(A[:5], B[:5], strict=True)))
def test_commands_within_their_limits_and_the_leash(commanded, measured, size):
    command = np.array([1.0, -2.0, 0.5, 0.3, 0.1, -0.4, 1.3]) * size
    meaning, leash = Command("ee_delta", 7, 0.05, 0.2), (0.05, 0.87)
    limited = poses.limit_ee_delta(command, meaning)
    told = geometry.limit_ee_delta(torch.from_numpy(command).float()[None], meaning)
    torch.testing.assert_close(torch.from_numpy(limited).float()[None], told, **CLOSE)
    near = np.concatenate([measured[:3] + 0.1 * commanded[:3], poses.turn(0.5 * commanded[:3], measured)])
    for start in (near, measured, commanded):
        wanted = poses.to_tensor(poses.advance(start, measured, limited, leash))
        expected = geometry.advance(poses.to_tensor(start), poses.to_tensor(measured), told, leash)
        same = torch.where((wanted * expected).sum(-1, keepdim=True) < 0, -wanted, wanted)[:, 3:]  # at w = 0
        torch.testing.assert_close(wanted[:, :3], expected[:, :3], **CLOSE)
        torch.testing.assert_close(same, expected[:, 3:], atol=1e-5, rtol=1e-5)
