"""Plans for ManiSkill's tasks."""

import torch

from policies.moves import (
    HOVER,
    Grip,
    Plan,
    Scene,
    Skill,
    about_y,
    either,
    fetch,
    grasp_then,
    let_go,
    nothing,
    pointing_down,
    steady,
    through_funnel,
)
from vla import geometry

CUBE = 0.04  # edge of ManiSkill's cubes


def pick_cube(scene: Scene) -> Plan:
    cube, goal = scene.objects["cube"], scene.objects["goal_site"]
    carry = torch.cat([scene.tcp[:, :3] + goal[:, :3] - cube[:, :3], scene.tcp[:, 3:]], -1)
    carry = steady(scene, carry)
    return grasp_then(scene, "cube", cube, carry, nothing(scene))


def stack_cube(scene: Scene) -> Plan:
    cube, base = scene.objects["cubeA"], scene.objects["cubeB"]
    offset = cube[:, :3] - base[:, :3]
    aligned = offset[:, :2].norm(dim=-1) < 0.012
    height = base[:, 2] + CUBE + torch.where(aligned, 0.0, HOVER)
    above = torch.cat([base[:, :2], height[:, None]], -1)
    rising = ~aligned & (offset[:, 2] < CUBE + 0.02) & (offset[:, :2].norm(dim=-1) < 0.12)
    above = torch.where(rising[:, None], torch.cat([cube[:, :2], height[:, None]], -1), above)
    carry = steady(scene, torch.cat([scene.tcp[:, :3] + above - cube[:, :3], scene.tcp[:, 3:]], -1))
    stacked = (offset[:, :2].norm(dim=-1) < 0.025) & ((offset[:, 2] - CUBE).abs() < 0.006)
    target, gripper = grasp_then(scene, "cubeA", cube, carry, base)
    return either(stacked, let_go(scene, base[:, 2] + CUBE + HOVER), (target, gripper))


def push_cube(scene: Scene) -> Plan:
    return _slide(scene, side=-1.0)


def pull_cube(scene: Scene) -> Plan:
    return _slide(scene, side=1.0)


def lift_peg(scene: Scene) -> Plan:
    """Grasp the lying peg across its middle and turn it up; the hand leans forward first and backward in the end.

    A quarter turn to either side alone is beyond the wrist's limits.
    """
    peg, half_length = scene.objects["peg"], 0.12
    axis = geometry.rotate(peg[:, 3:], peg.new_tensor([1, 0, 0]).expand(len(peg), 3))
    upright = axis[:, 2].abs().clamp(max=1).arcsin()
    missing = torch.pi / 2 - upright
    floor = half_length * upright.sin() + 0.025 * upright.cos()  # the middle's height with one end on the table
    done = missing < torch.where(peg[:, 2] < half_length + 0.04, 0.1, 0.05)  # on its way down it may lean a little
    clear = (peg[:, 2] > floor + 0.02) | done  # with an end on the table, the peg would turn in the fingers
    height = torch.where(done, half_length, floor + 0.06)
    position = torch.stack([torch.full_like(height, 0.5), scene.tcp[:, 1], scene.tcp[:, 2] + height - peg[:, 2]], -1)
    end = torch.where(axis[:, 2].abs() > 0.3, axis[:, 2].sign(), -axis[:, 0].sign())  # of the axis: up or down
    across = torch.linalg.cross(axis, end[:, None] * axis.new_tensor([0, 0, 1]))
    turn = across * (missing / across.norm(dim=-1).clamp(min=1e-6) * clear)[:, None]
    rotation = geometry.multiply(geometry.from_rotation_vector(turn), scene.tcp[:, 3:])
    carry = torch.cat([position, rotation], -1)
    down = pointing_down(torch.zeros(len(peg)))
    grip = torch.cat([peg[:, :3], geometry.multiply(about_y(torch.full_like(missing, -0.75)), down)], -1)
    return fetch(scene, "peg", grip, carry)


def _slide(scene: Scene, side: float) -> Plan:
    """Put the shut fingers down beside the cube (`side` along x, seen from the cube) and slide it to the goal."""
    cube, goal = scene.objects["cube"], scene.objects["goal_region"]
    down = pointing_down(torch.zeros(len(cube)))
    start = torch.cat([cube[:, :3] + cube.new_tensor([side * 0.06, 0, 0]), down], -1)
    beside = side * (scene.tcp[:, 0] - cube[:, 0])
    aligned = (scene.tcp[:, 1] - cube[:, 1]).abs() < 0.015
    ready = (scene.tcp[:, 2] < CUBE) & aligned & (beside > 0.02) & (beside < 0.08)
    onward = (goal[:, 0] - cube[:, 0]).clamp(-0.03, 0.03)
    push = torch.stack([scene.commanded[:, 0] + onward, cube[:, 1], cube[:, 2]], -1)
    target = torch.where(
        ready[:, None], torch.cat([push, down], -1), through_funnel(scene, start, torch.zeros(len(cube)))
    )
    return target, torch.zeros(len(cube))


PLANS = {
    "PickCube-v1": Skill(pick_cube, {"cube": Grip(CUBE)}),
    "StackCube-v1": Skill(stack_cube, {"cubeA": Grip(CUBE)}),
    "PushCube-v1": Skill(push_cube),
    "PullCube-v1": Skill(pull_cube),
    "LiftPegUpright-v1": Skill(lift_peg, {"peg": Grip(0.05)}),
}
