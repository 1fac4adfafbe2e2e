"""Moves and plans of scripted experts on an ideal arm, which is at once where it is sent and holds without slipping."""

import math

import torch

from policies.moves import Grip, Scene, across, carrying, compose, heading, insertion, let_go, point_of, set_down
from policies.plans_maniskill import PLANS, stack_pyramid
from vla import geometry

DOWN = torch.tensor([1.0, 0, 0, 0])


def poses(count: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    position, turn = torch.randn(count, 3, generator=rng), torch.randn(count, 3, generator=rng)
    return torch.cat([position, geometry.from_rotation_vector(turn)], -1)


def yawed(x, y, z, yaw=0.0):
    return torch.tensor([[x, y, z, 0, 0, math.sin(yaw / 2), math.cos(yaw / 2)]])


def scene_at(tcp, objects, opening=0.5, grips=None):
    return Scene(tcp, tcp, torch.full((len(tcp),), opening), objects, grips or {})


def step(scene, target, name):
    """The ideal arm after one command of at most 5 cm and 0.2 rad, with what it holds."""
    move = geometry.limit_norm(target[:, :3] - scene.tcp[:, :3], 0.05)
    turn = geometry.limit_norm(geometry.turn_between(scene.tcp[:, 3:], target[:, 3:]), 0.2)
    rotation = geometry.multiply(geometry.from_rotation_vector(turn), scene.tcp[:, 3:])
    tcp = torch.cat([scene.tcp[:, :3] + move, rotation], -1)
    carried = compose(tcp, geometry.to_frame(scene.tcp, scene.objects[name]))
    return scene_at(tcp, {**scene.objects, name: carried}, grips=scene.grips)


def test_composing_undoes_what_seeing_from_a_frame_does():
    a, b = poses(5), poses(5, seed=1)
    torch.testing.assert_close(compose(a, geometry.to_frame(a, b)), b, atol=1e-5, rtol=0)
    torch.testing.assert_close(point_of(a, (0.0, 0.0, 0.0)), a[:, :3])
    quarter = yawed(1.0, 2.0, 3.0, math.pi / 2)
    torch.testing.assert_close(point_of(quarter, (0.5, 0.0, 0.0)), torch.tensor([[1.0, 2.5, 3.0]]))


def test_carrying_takes_a_held_thing_where_it_is_wanted():
    tcp, thing, wanted = poses(4), poses(4, seed=1), poses(4, seed=2)
    scene = scene_at(tcp, {"thing": thing})
    tool = carrying(scene, "thing", wanted)
    torch.testing.assert_close(compose(tool, geometry.to_frame(tcp, thing)), wanted, atol=1e-5, rtol=0)


def test_the_tool_turns_to_the_nearer_of_two_that_look_the_same():
    for now, wanted, expected in ((0.1, 3.0, 3.0 - math.pi), (0.1, 1.0, 1.0), (-1.5, 1.5, 1.5 - math.pi)):
        turned = geometry.multiply(yawed(0, 0, 0, now)[:, 3:], DOWN[None])
        scene = scene_at(torch.cat([torch.zeros(1, 3), turned], -1), {})
        found = across(scene, torch.tensor([wanted]))
        x_axis = geometry.rotate(found, torch.tensor([[1.0, 0, 0]]))
        assert abs(heading(x_axis).item() - expected) < 1e-5
        assert abs(geometry.rotate(found, torch.tensor([[0.0, 0, 1]]))[0, 2].item() + 1) < 1e-5


def test_a_held_thing_is_put_down_from_above_and_reaches_its_spot():
    spot = torch.tensor([[0.6, 0.2, 0.02]])
    cube = yawed(0.5, -0.1, 0.02)
    scene = scene_at(torch.cat([cube[:, :3], DOWN[None]], -1), {"cube": cube})
    for _ in range(30):
        now = scene.objects["cube"]
        aside = (now[:, :2] - spot[:, :2]).norm().item()
        assert now[0, 2] > 0.05 or aside < 0.02 or aside > 0.13  # high above whatever stands around the spot
        scene = step(scene, set_down(scene, "cube", spot), "cube")
    torch.testing.assert_close(scene.objects["cube"][:, :3], spot, atol=1e-4, rtol=0)


def test_fingers_open_before_they_rise():
    tcp = torch.cat([torch.tensor([[0.5, 0.0, 0.1]]), DOWN[None]], -1)
    for opening, height in ((0.5, 0.1), (0.9, 0.3)):
        target, gripper = let_go(scene_at(tcp, {}, opening), torch.tensor([0.3]))
        assert gripper.item() == 1
        assert abs(target[0, 2].item() - height) < 1e-6


def test_a_head_comes_to_its_hole_in_line_and_goes_in_only_straight():
    goal = yawed(0.6, 0.3, 0.1, 1.4)
    head = yawed(0.5, -0.2, 0.03, 0.6)
    depth, slack = torch.tensor([0.1]), 0.003
    scene = scene_at(torch.cat([head[:, :3] - 0.1, DOWN[None]], -1), {"head": head})
    for _ in range(60):
        local = geometry.to_frame(goal, scene.objects["head"])[0]
        tilt = geometry.to_rotation_vector(local[3:]).norm()
        if local[0] > -depth:
            assert local[1:3].norm() + 0.1 * tilt < 2 * slack
        scene = step(scene, insertion(scene, scene.objects["head"], goal, depth, slack), "head")
    local = geometry.to_frame(goal, scene.objects["head"])[0]
    assert -0.001 < local[0] < 0.011
    assert local[1:3].norm() < 1e-3


def test_the_red_cube_goes_beside_the_green_one_clear_of_it_and_of_the_blue_one():
    grips = PLANS["StackPyramid-v1"].grips
    for i in range(20):
        yaw = 0.08 * i
        red, green = yawed(0.4, -0.2, 0.15), yawed(0.62, 0.1, 0.02, yaw)
        for x, y in ((0.56, 0.1), (0.68, 0.1), (0.62, 0.16)):
            blue = yawed(x, y, 0.02)
            objects = {"cubeA": red, "cubeB": green, "cubeC": blue}
            tcp = torch.cat([red[:, :3], DOWN[None]], -1)
            target, gripper = stack_pyramid(scene_at(tcp, objects, grips=grips))
            apart = (target - green)[0, :2].norm().item()
            assert gripper.item() == 0
            assert 0.02 * (1 + abs(math.cos(yaw)) + abs(math.sin(yaw))) < apart < 0.0566 + 0.005
            assert (target - blue)[0, :2].norm() > 0.06


def test_a_thing_is_held_where_its_grip_says_not_at_its_middle():
    peg = yawed(0.5, 0.0, 0.02, math.pi / 2)
    tcp = torch.cat([torch.tensor([[0.5, -0.07, 0.02]]), DOWN[None]], -1)
    for at, held in ((-0.07, True), (0.0, False)):
        scene = scene_at(tcp, {"peg": peg}, 0.6, {"peg": Grip(0.05, (at, 0.0, 0.0))})
        assert scene.holds("peg").item() is held
