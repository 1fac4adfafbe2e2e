"""The scripted plan for LIBERO: bring the object of the next unmet goal to its place; where there is none, stay.

The simulator tells the boxes around the object and the place, so one plan serves all of them: a thing narrow enough
is held across its narrower side, a bowl or a mug by its rim.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.moves import STROKE, Grip, Plan, Scene, Skill, either, nearest, pointing_down, put
from vla import geometry

WIDEST = 0.074  # metres: what fits between the fingers with some room
REACH = 0.04  # metres from the top of a thing down to where the fingers hold it, at most
RIM = 0.006  # metres from the outside of a hollow thing to the middle of its wall
RIM_DOWN = 0.018  # metres from the top of a rim down to where it is held
ROOM_AROUND = 0.5  # how far the fingers are open on their way to a rim, with something else beside it perhaps
STANDS_HIGH = 0.1  # metres above its place: in a drawer perhaps, which has room to its sides only
WALL = 0.005  # metres between fingers that hold a wall
DEEP, FALL = 0.03, 0.03  # metres: into a place deeper than that, a thing falls the last bit, clear of the walls
ON_ITS_WAY = 0.23  # metres above its place at which a thing is carried, to clear a drawer
QUARTER = torch.pi / 2


def bring(scene: Scene) -> Plan:
    thing, place = scene.objects["object"], scene.objects["place"]
    sides, room = upright(thing, scene.objects["object_size"]), upright(place, scene.objects["place_size"])
    hollow = (scene.objects["object_depth"][:, 0] > 0.02) & (2 * sides.across.min(-1).values > WIDEST)
    grip, width = _where(hollow, _by_rim(scene, thing, sides), _across(scene, thing, sides))
    fall = torch.where(room.height > DEEP, FALL, 0.0)
    spot = place[:, :3] + torch.stack([0 * fall, 0 * fall, room.height + sides.height + fall], -1)
    held = torch.cat([grip[:, :3], thing[:, 3:]], -1)  # the point that is held stands for the thing
    scene = replace(scene, objects={**scene.objects, "held": held}, grips={"held": Grip(width)})
    spread = torch.where(hollow, ROOM_AROUND, 1.0)
    brought = put(scene, "held", grip, spot, aligned=0.012, clear=ON_ITS_WAY, of="object", spread=spread)
    told = scene.objects["object_size"].any(-1)  # otherwise the task is not to move a thing
    return either(told, brought, (scene.commanded, torch.ones_like(scene.opening)))


class Sides:
    """Half sizes (metres) of a box standing on the table: its height, its two horizontal sides and their yaw."""

    def __init__(self, height: Tensor, across: Tensor, yaw: Tensor):
        self.height, self.across, self.yaw = height, across, yaw


def upright(pose: Float[Tensor, "batch 7"], size: Float[Tensor, "batch 3"]) -> Sides:
    """Which of a box's sides is its height as it stands, or lies, now; `yaw` is that of the first horizontal side."""
    axes = torch.stack([geometry.rotate(pose[:, 3:], axis.expand(len(pose), 3)) for axis in torch.eye(3)], 1)
    vertical = axes[..., 2].abs().argmax(-1)
    first = (vertical == 0).long()  # the first axis that is horizontal
    second = 2 - (vertical == 2).long()
    row = torch.arange(len(pose))
    across = torch.stack([size[row, first], size[row, second]], -1)
    along = axes[row, first]
    return Sides(size[row, vertical], across, torch.atan2(along[:, 1], along[:, 0]))


def _across(scene: Scene, thing: Float[Tensor, "batch 7"], sides: Sides) -> tuple[Tensor, Tensor]:
    """Across the narrower side, not far below the top."""
    first = sides.across[:, 0] <= sides.across[:, 1]
    yaw = torch.where(first, sides.yaw - QUARTER, sides.yaw)  # of the tool, whose fingers close across it
    square = (sides.across[:, 0] - sides.across[:, 1]).abs() < 0.004
    yaw = nearest(scene, yaw, torch.where(square, QUARTER, torch.pi))
    height = thing[:, 2] + (sides.height - REACH).clamp(min=0)
    grip = torch.cat([thing[:, :2], height[:, None], pointing_down(yaw)], -1)
    return grip, 2 * sides.across.min(-1).values


def _by_rim(scene: Scene, thing: Float[Tensor, "batch 7"], sides: Sides) -> tuple[Tensor, Tensor]:
    """One finger inside, one outside, on the side that the tool is nearer to, as the fingers already close.

    In a drawer there is room only nearer to the robot or further from it.
    """
    deep = (thing[:, 2] > scene.objects["place"][:, 2] + STANDS_HIGH) & (scene.opening > 0.3)  # not yet held
    away = nearest(scene, sides.yaw + QUARTER * ((QUARTER - sides.yaw) / QUARTER).round(), torch.pi)
    yaw = torch.where(deep, away, nearest(scene, sides.yaw, QUARTER))
    outward = torch.stack([-yaw.sin(), yaw.cos()], -1)  # the direction in which the fingers close
    turns = ((yaw + QUARTER - sides.yaw) / QUARTER).round().long() % 2
    radius = sides.across.gather(-1, turns[:, None]).squeeze(-1) - RIM
    nearer = (outward * (scene.tcp[:, :2] - thing[:, :2])).sum(-1)  # to the tool: it stays so when held
    side = torch.where(nearer < 0, -1.0, 1.0)[:, None]
    point = thing[:, :2] + side * outward * radius[:, None]
    height = thing[:, 2] + sides.height - RIM_DOWN
    return torch.cat([point, height[:, None], pointing_down(yaw)], -1), torch.full_like(radius, WALL)


def _where(chosen: Bool[Tensor, " batch"], first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]):
    return torch.where(chosen[:, None], first[0], second[0]), torch.where(chosen, first[1], second[1]).clamp(max=STROKE)


PLANS = {"LIBERO": Skill(bring)}
