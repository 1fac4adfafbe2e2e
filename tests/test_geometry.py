"""Rotations against scipy, and the commanded pose against its definition."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vla import geometry as g
from vla.types import Command

RANDOM = Rotation.random(64, random_state=0)
OTHER = Rotation.random(64, random_state=1)


def tensor(x):
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def test_products_turns_and_rotation_vectors_agree_with_scipy():
    a, b = tensor(RANDOM.as_quat()), tensor(OTHER.as_quat())
    v = torch.randn(64, 3, dtype=torch.float64)
    torch.testing.assert_close(g.multiply(a, b), g.normalise(tensor((RANDOM * OTHER).as_quat())))
    torch.testing.assert_close(g.rotate(a, v), tensor(RANDOM.apply(v.numpy())))
    torch.testing.assert_close(g.to_rotation_vector(a), tensor(RANDOM.as_rotvec()))
    torch.testing.assert_close(g.from_rotation_vector(tensor(RANDOM.as_rotvec())), g.normalise(a))
    torch.testing.assert_close(g.turn_between(a, b), tensor((OTHER * RANDOM.inv()).as_rotvec()))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 3.1])
def test_a_rotation_vector_survives_the_way_there_and_back(angle):
    r = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64) * angle
    torch.testing.assert_close(g.to_rotation_vector(g.from_rotation_vector(r)), r)


def test_quaternion_orders_differ_only_in_where_w_stands():
    q = tensor(RANDOM.as_quat())
    wxyz = tensor(RANDOM.as_quat(scalar_first=True))
    torch.testing.assert_close(g.wxyz_to_xyzw(wxyz), g.normalise(q))
    torch.testing.assert_close(g.xyzw_to_wxyz(q), wxyz)


def test_a_pose_seen_from_itself_is_the_identity():
    pose = torch.cat([torch.randn(64, 3, dtype=torch.float64), tensor(RANDOM.as_quat())], -1)
    expected = torch.tensor([0, 0, 0, 0, 0, 0, 1.0], dtype=torch.float64).expand(64, 7)
    torch.testing.assert_close(g.to_frame(pose, pose), expected)
    seen = g.to_frame(pose, torch.cat([pose[:, :3] + tensor(RANDOM.apply([1, 2, 3])), pose[:, 3:]], -1))
    torch.testing.assert_close(seen[:, :3], torch.tensor([1.0, 2, 3], dtype=torch.float64).expand(64, 3))


def test_limits_shorten_motion_without_turning_it():
    meaning = Command("ee_delta", 7, max_translation=0.05, max_rotation=0.2)
    limited = g.limit_ee_delta(torch.tensor([[0.3, 0.4, 0, 0, 0, 0.1, 1.7]]), meaning)
    torch.testing.assert_close(limited, torch.tensor([[0.03, 0.04, 0, 0, 0, 0.1, 1.0]]))


def test_commands_add_up_on_the_commanded_pose_however_far_the_arm_lags():
    measured = torch.tensor([0.4, 0, 0.2, 1, 0, 0, 0])
    commanded = measured
    for _ in range(4):
        commanded = g.advance(commanded, measured, torch.tensor([0.01, 0, 0, 0, 0, 0.1, 1.0]), leash=(0.1, 0.8))
    torch.testing.assert_close(commanded[:3], torch.tensor([0.44, 0, 0.2]))
    torch.testing.assert_close(g.turn_between(measured[3:], commanded[3:]), torch.tensor([0, 0, 0.4]))


def test_a_blocked_arm_winds_up_no_further_than_its_leash():
    measured = torch.tensor([0.4, 0, 0.2, 1, 0, 0, 0])
    commanded = measured
    for _ in range(50):
        commanded = g.advance(commanded, measured, torch.tensor([0, 0, -0.02, 0.1, 0, 0, 1.0]), leash=(0.05, 0.3))
        commanded[0] = 0.43  # sideways it was sent elsewhere, and must stay so
    torch.testing.assert_close(commanded[:3], torch.tensor([0.43, 0, 0.15]))
    torch.testing.assert_close(g.turn_between(measured[3:], commanded[3:]), torch.tensor([0.3, 0, 0]))


def test_the_delta_between_two_poses_leads_from_one_to_the_other():
    start = torch.tensor([0.4, 0, 0.2, 1, 0, 0, 0])
    end = torch.cat(
        [torch.tensor([0.42, 0.01, 0.19]), g.multiply(g.from_rotation_vector(torch.tensor([0.1, 0.2, 0.0])), start[3:])]
    )
    command = g.delta_between(start, end, torch.ones(1))
    torch.testing.assert_close(g.advance(start, start, command, leash=(1.0, 1.0)), end)
