"""Scripted plans for robosuite's tasks."""

import torch

from policies.moves import (
    Grip,
    Plan,
    Scene,
    Skill,
    across,
    across_faces,
    along,
    grasp_then,
    heading,
    nothing,
    pointing_down,
    put,
    steady,
)
from vla import geometry

CUBE_A, CUBE_B = 0.04, 0.05  # edges of the cubes in Stack, metres
PEG_TOP = 0.1  # metres above the middle of a peg
QUARTER = torch.pi / 2


def lift(scene: Scene) -> Plan:
    cube = scene.objects["cube"]
    up = steady(scene, torch.cat([scene.tcp[:, :2], scene.tcp[:, 2:3] + 0.1, scene.tcp[:, 3:]], -1))
    return grasp_then(scene, "cube", cube, up, nothing(scene))


def stack(scene: Scene) -> Plan:
    base = scene.objects["cubeB"]
    spot = base[:, :3] + base.new_tensor([0, 0, (CUBE_A + CUBE_B) / 2])
    grip = torch.cat([scene.objects["cubeA"][:, :3], across_faces(scene, scene.objects["cubeA"], base)], -1)
    return put(scene, "cubeA", grip, spot, aligned=0.01)


def can(scene: Scene) -> Plan:
    """Let the can fall a little: its bin's bottom is lower than the fingers should go."""
    place = scene.objects["goal"]
    spot = place[:, :3] + place.new_tensor([0, 0, 0.09])
    tool = scene.objects["Can"][:, :3] + place.new_tensor([0, 0, 0.01])
    return put(
        scene, "Can", torch.cat([tool, pointing_down(torch.zeros(len(tool)))], -1), spot, aligned=0.04, clear=0.16
    )


def square(scene: Scene) -> Plan:
    """Hold the nut by its handle, turn it until its hole is square with the peg, and let it down."""
    nut, handle, peg = (scene.objects[name] for name in ("SquareNut", "SquareNut_handle", "peg1"))
    grip = torch.cat([handle[:, :3], across(scene, heading(along(handle)))], -1)
    missing = heading(along(peg)) - heading(along(nut))
    missing = missing - QUARTER * (missing / QUARTER).round()
    turn = geometry.from_rotation_vector(torch.stack([0 * missing, 0 * missing, missing], -1))
    spot = peg[:, :3] + peg.new_tensor([0, 0, -0.03])
    return put(scene, "SquareNut_handle", grip, spot, aligned=0.004, clear=PEG_TOP + 0.06, of="SquareNut", turn=turn)


PLANS = {
    "Lift": Skill(lift, {"cube": Grip(0.042)}),
    "Stack": Skill(stack, {"cubeA": Grip(CUBE_A)}),
    "PickPlaceCan": Skill(can, {"Can": Grip(0.052, (0.0, 0.0, 0.01))}),
    "NutAssemblySquare": Skill(square, {"SquareNut_handle": Grip(0.03)}),
}
PLANS |= {"Can": PLANS["PickPlaceCan"], "Square": PLANS["NutAssemblySquare"]}
