"""What scripted plans are made of: what is where, and the moves that most tasks share.

A move looks only at the present, so a plan made of them goes on from a miss, a drop or another policy's mess.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla import geometry

HOVER = 0.07  # metres above a thing before going down to it
STROKE = 0.08  # metres between the Panda's open fingers


@dataclass(frozen=True)
class Grip:
    """How a thing is held: metres between the fingers, and the point held, in metres in the frame of the thing."""

    width: float | Float[Tensor, " batch"]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """What is where, for a batch: poses in the robot's base frame, opening of the gripper from 0 to 1."""

    tcp: Float[Tensor, "batch 7"]
    commanded: Float[Tensor, "batch 7"]
    opening: Float[Tensor, " batch"]
    objects: dict[str, Float[Tensor, "batch 7"]]
    grips: Mapping[str, Grip] = field(default_factory=dict)  # of what is ever grasped

    def holds(self, name: str) -> Bool[Tensor, " batch"]:
        """Whether the fingers are shut on the object, near the point of its grip."""
        return self.around(name) & (self.opening < self.grips[name].width / STROKE + 0.08)

    def around(self, name: str) -> Bool[Tensor, " batch"]:
        """Whether the tool is where closing the fingers would grasp the object."""
        offset = self.grip_point(name) - self.tcp[:, :3]
        return (offset[:, :2].norm(dim=-1) < 0.018) & (offset[:, 2].abs() < 0.018)

    def grip_point(self, name: str) -> Float[Tensor, "batch 3"]:
        """Where the tool's centre is when it holds the object."""
        return point_of(self.objects[name], self.grips[name].at)


Plan = tuple[Float[Tensor, "batch 7"], Float[Tensor, " batch"]]  # the tool's next pose, the gripper


@dataclass(frozen=True)
class Skill:
    """How a task is done: from what is where to where the tool goes next, and what it grasps on the way."""

    plan: Callable[[Scene], Plan]
    grips: Mapping[str, Grip] = field(default_factory=dict)


def grasp_then(scene: Scene, name: str, cube: Tensor, carry: Tensor, obstacle: Tensor) -> Plan:
    """Grasp a cube across two of its faces, clear of the obstacle; once it is held, go to `carry`."""
    grip = torch.cat([cube[:, :3], across_faces(scene, cube, obstacle)], -1)
    return fetch(scene, name, grip, carry)


def either(chosen: Bool[Tensor, " batch"], first: Plan, second: Plan) -> Plan:
    """`first` where chosen, else `second`."""
    return torch.where(chosen[:, None], first[0], second[0]), torch.where(chosen, first[1], second[1])


def let_go(scene: Scene, height: Float[Tensor, " batch"], name: str | None = None) -> Plan:
    """Open the fingers where they are; once they are open, wide around `name`, rise to `height` (metres)."""
    away = torch.cat([scene.tcp[:, :2], height[:, None], scene.tcp[:, 3:]], -1)
    width = scene.grips[name].width if name is not None else 0.0
    wide = (torch.as_tensor(width) / STROKE + 0.2).clamp(0.7, 0.93)
    target = torch.where((scene.opening > wide)[:, None], away, scene.commanded)
    return target, torch.ones_like(scene.opening)


def fetch(
    scene: Scene,
    name: str,
    grip: Float[Tensor, "batch 7"],
    carry: Float[Tensor, "batch 7"],
    spread: float | Float[Tensor, " batch"] = 1.0,
) -> Plan:
    """Come down to `grip` through a funnel, open to `spread` (0 to 1), and close; once it is held, go to `carry`."""
    inside, held = scene.around(name), scene.holds(name)
    turn = geometry.turn_between(scene.tcp[:, 3:], grip[:, 3:]).norm(dim=-1)
    target = through_funnel(scene, grip, turn)
    target = torch.where(inside[:, None], steady(scene, grip), target)
    return torch.where(held[:, None], carry, target), torch.where(inside, 0.0, spread)


def put(
    scene: Scene,
    name: str,
    grip: Float[Tensor, "batch 7"],
    spot: Float[Tensor, "batch 3"],
    *,
    aligned: float,
    clear: float = 0.1,
    of: str | None = None,
    turn: Float[Tensor, "batch 4"] | None = None,
    spread: float | Float[Tensor, " batch"] = 1.0,
) -> Plan:
    """Fetch a thing by `grip`, carry it `clear` metres above `spot` until it is within `aligned` metres, let it down.

    It is the thing `of` that must come to `spot`, where `name` is only what is held of it; `turn` is the rotation it
    still lacks (base frame). Once it is there, the fingers open and rise.
    """
    thing = scene.objects[of or name]
    offset = spot - thing[:, :3]
    away = offset[:, :2].norm(dim=-1)
    lacks = geometry.to_rotation_vector(turn).norm(dim=-1) if turn is not None else torch.zeros_like(away)
    above = (away < aligned) & (lacks < 0.06)
    entered = (away < 2 * aligned + 0.004) & (offset[:, 2] > -clear + 0.03)  # on its way down it may drift a little
    goes_down = above | entered
    height = spot[:, 2] + torch.where(goes_down, 0.0, clear)
    low = ~goes_down & (thing[:, 2] < height - 0.03)
    target = torch.cat([torch.where(low[:, None], thing[:, :2], spot[:, :2]), height[:, None]], -1)
    rotation = scene.commanded[:, 3:]
    if turn is not None:
        rotation = torch.where(low[:, None], rotation, geometry.multiply(turn, scene.tcp[:, 3:]))
        arm = geometry.rotate(turn, thing[:, :3] - scene.tcp[:, :3])  # the thing turns about the tool, not about itself
        turned = torch.cat([target - arm, rotation], -1)
        carry = torch.where(low[:, None], torch.cat([scene.tcp[:, :3] + target - thing[:, :3], rotation], -1), turned)
    else:
        carry = torch.cat([scene.tcp[:, :3] + target - thing[:, :3], rotation], -1)
    opened = scene.opening > scene.grips[name].width / STROKE + 0.06  # once it lets go, it does not change its mind
    there = (away < 2 * aligned + 0.004) & (offset[:, 2] > torch.where(opened, -0.05, -0.012))
    return either(there, let_go(scene, spot[:, 2] + clear, name), fetch(scene, name, grip, carry, spread))


def set_down(
    scene: Scene, name: str, spot: Float[Tensor, "batch 3"], aligned: float = 0.012
) -> Float[Tensor, "batch 7"]:
    """Where the tool takes what it holds to bring its middle to `spot` from above, within `aligned` metres of it."""
    thing = scene.objects[name]
    offset = thing[:, :3] - spot
    over = offset[:, :2].norm(dim=-1) < aligned
    height = spot[:, 2] + torch.where(over, 0.0, HOVER)
    above = torch.cat([spot[:, :2], height[:, None]], -1)
    rising = ~over & (offset[:, 2] < 0.02) & (offset[:, :2].norm(dim=-1) < 0.12)
    above = torch.where(rising[:, None], torch.cat([thing[:, :2], height[:, None]], -1), above)
    return steady(scene, torch.cat([scene.tcp[:, :3] + above - thing[:, :3], scene.tcp[:, 3:]], -1))


def carrying(scene: Scene, name: str, wanted: Float[Tensor, "batch 7"]) -> Float[Tensor, "batch 7"]:
    """Where the tool takes what it holds to bring it to the pose `wanted`."""
    return compose(wanted, geometry.to_frame(scene.objects[name], scene.tcp))


def insertion(
    scene: Scene,
    head: Float[Tensor, "batch 7"],
    goal: Float[Tensor, "batch 7"],
    depth: Float[Tensor, " batch"],
    slack: float,
) -> Float[Tensor, "batch 7"]:
    """Where the tool takes what it holds to bring its `head` along the x axis of `goal` to that pose.

    The mouth of the hole is `depth` metres before the goal. The head waits a little before it until it is within
    `slack` metres of the axis (0.1 rad of tilt count as 1 cm), and goes on only while it stays about as near.
    """
    local = geometry.to_frame(goal, head)
    turn = geometry.to_rotation_vector(local[:, 3:]).norm(dim=-1)
    error = local[:, 1:3].norm(dim=-1) + 0.1 * turn
    waits = (local[:, 0] < -depth - 0.002) & (error > slack)
    onward = local[:, 0] + min(0.03, 10 * slack) * (2 - error / slack).clamp(-1, 1)
    x = torch.where(waits, -depth - (0.02 + 0.5 * error).clamp(max=0.12), onward.clamp(max=0.01))
    straight = torch.zeros_like(local)
    straight[:, 0], straight[:, 6] = x, 1
    tool = compose(compose(goal, straight), geometry.to_frame(head, scene.tcp))
    return _precisely(scene, tool, along(goal))


def _precisely(
    scene: Scene, target: Float[Tensor, "batch 7"], axis: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch 7"]:
    """`target`; near it, what lacks across `axis` is added to the commanded pose, for the arm rests a little beside it.

    Along the axis nothing adds up: something may be in the way.
    """
    lacks = target[:, :3] - scene.tcp[:, :3]
    turn = geometry.turn_between(scene.tcp[:, 3:], target[:, 3:])
    near = (lacks.norm(dim=-1) < 0.03) & (turn.norm(dim=-1) < 0.1)
    across_axis = lacks - (lacks * axis).sum(-1, keepdim=True) * axis
    lead = scene.commanded[:, :3] - scene.tcp[:, :3]
    lead = lead - (lead * axis).sum(-1, keepdim=True) * axis
    position = target[:, :3] - across_axis + lead + 0.4 * across_axis
    rotation = geometry.multiply(geometry.from_rotation_vector(0.4 * turn), scene.commanded[:, 3:])
    return torch.where(near[:, None], torch.cat([position, rotation], -1), target)


def through_funnel(
    scene: Scene, goal: Float[Tensor, "batch 7"], turn: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 7"]:
    """The way down to `goal`, higher the further the tool is from above it (`turn`: rotation still missing, radians).

    The height changes smoothly with the error, so that a student who sees a little wrong does only a little wrong.
    """
    offset = (goal[:, :2] - scene.tcp[:, :2]).norm(dim=-1)
    height = goal[:, 2] + HOVER * torch.maximum((offset - 0.008) / 0.05, (turn - 0.15) / 0.4).clamp(0, 1)
    sideways = ((scene.tcp[:, 2] - height + 0.04) / 0.02).clamp(0, 1)[:, None]  # none while far too low
    position = scene.commanded[:, :2] + sideways * (goal[:, :2] - scene.commanded[:, :2])
    return torch.cat([position, height[:, None], goal[:, 3:]], -1)


def steady(scene: Scene, target: Float[Tensor, "batch 7"]) -> Float[Tensor, "batch 7"]:
    """`target` with the tool's rotation left as commanded."""
    return torch.cat([target[:, :3], scene.commanded[:, 3:]], -1)


def pointing_down(yaw: Float[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
    """The tool pointing straight down, its fingers closing along y turned by `yaw`."""
    down = torch.tensor([1.0, 0, 0, 0]).expand(len(yaw), 4)
    turn = torch.stack([torch.zeros_like(yaw), torch.zeros_like(yaw), yaw], -1)
    return geometry.multiply(geometry.from_rotation_vector(turn), down)


def about_y(angle: Float[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
    zero = torch.zeros_like(angle)
    return geometry.from_rotation_vector(torch.stack([zero, angle, zero], -1))


def across_faces(
    scene: Scene, cube: Float[Tensor, "batch 7"], obstacle: Float[Tensor, "batch 7"]
) -> Float[Tensor, "batch 4"]:
    """Pointing down with the fingers on the two faces nearest to the present yaw, unless an obstacle is in the way."""
    quarter = torch.pi / 2
    best = nearest(scene, heading(along(cube)), quarter)
    way = obstacle[:, :2] - cube[:, :2]
    fingers = torch.stack([-best.sin(), best.cos()], -1)
    near = way.norm(dim=-1) < 0.09
    blocked = near & ((way * fingers).sum(-1).abs() > way.norm(dim=-1) * 0.75)
    other = torch.where(heading(along(scene.tcp)) > best, best + quarter, best - quarter)
    return pointing_down(torch.where(blocked, other, best))


def nothing(scene: Scene) -> Float[Tensor, "batch 7"]:
    """An obstacle that is nowhere near."""
    return torch.full_like(scene.tcp, 100.0)


def compose(frame: Float[Tensor, "batch 7"], local: Float[Tensor, "batch 7"]) -> Float[Tensor, "batch 7"]:
    """The pose that is `local` as seen from `frame`."""
    position = frame[:, :3] + geometry.rotate(frame[:, 3:], local[:, :3])
    return torch.cat([position, geometry.multiply(frame[:, 3:], local[:, 3:])], -1)


def along(pose: Float[Tensor, "batch 7"], axis: int = 0) -> Float[Tensor, "batch 3"]:
    """The direction of one of a thing's own axes."""
    return geometry.rotate(pose[:, 3:], torch.eye(3)[axis].expand(len(pose), 3))


def heading(direction: Float[Tensor, "batch 3"]) -> Float[Tensor, " batch"]:
    """The angle of a direction about the vertical, from x towards y."""
    return torch.atan2(direction[:, 1], direction[:, 0])


def nearest(
    scene: Scene, yaw: Float[Tensor, " batch"], period: float | Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Of the angles `period` apart that look the same as `yaw`, the one nearest to the tool's x axis as it is now."""
    return yaw + period * ((heading(along(scene.tcp)) - yaw) / period).round()


def across(scene: Scene, yaw: Float[Tensor, " batch"], period: float = torch.pi) -> Float[Tensor, "batch 4"]:
    """Pointing down with the tool's x axis along `yaw`, or what is nearer to it as it is now and looks the same."""
    return pointing_down(nearest(scene, yaw, period))


def point_of(pose: Float[Tensor, "batch 7"], at: tuple[float, float, float]) -> Float[Tensor, "batch 3"]:
    """Where the point `at` of a thing's own frame (metres) is."""
    return pose[:, :3] + geometry.rotate(pose[:, 3:], pose.new_tensor(at).expand(len(pose), 3))
