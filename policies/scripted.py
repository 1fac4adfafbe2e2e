"""Closed-loop experts on privileged state: teachers and demonstrators that know what to do from any state.

Each task is one function from what is where to where the tool should go next. It keeps no memory, so it recovers from
a miss, a drop or another policy's mess as it starts from anything else. A chunk is made by imagining what the first
commands will lead to.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor

from vla import geometry
from vla.types import Action, Observation

HOVER = 0.07  # metres above a thing before going down to it
CUBE = 0.04  # edge of ManiSkill's cubes
WIDTHS = {"cube": CUBE, "cubeA": CUBE, "peg": 0.05}  # between the fingers, of what is ever grasped
LAG = 0.4  # share of its way to the commanded pose that the imagined arm covers in a step, as measured
FINGER_SPEED = 0.5  # of the gripper's opening, per imagined step


@dataclass(frozen=True)
class Scene:
    """What is where, for a batch: poses in the robot's base frame, opening of the gripper from 0 to 1."""

    tcp: Float[Tensor, "batch 7"]
    commanded: Float[Tensor, "batch 7"]
    opening: Float[Tensor, " batch"]
    objects: dict[str, Float[Tensor, "batch 7"]]

    def holds(self, name: str) -> Bool[Tensor, " batch"]:
        """Whether the fingers are shut on the object, near its middle."""
        return self.around(name) & (self.opening < WIDTHS[name] / 0.08 + 0.08)

    def around(self, name: str) -> Bool[Tensor, " batch"]:
        """Whether the tool is where closing the fingers would grasp the object."""
        offset = self.objects[name][:, :3] - self.tcp[:, :3]
        return (offset[:, :2].norm(dim=-1) < 0.018) & (offset[:, 2].abs() < 0.018)


Plan = tuple[Float[Tensor, "batch 7"], Float[Tensor, " batch"]]  # the tool's next pose, the gripper


class ScriptedExpert:
    """The expert of `task`, deciding `horizon` `ee_delta` commands at a time.

    Limits are those of the environment's commands, in metres and radians per step. Raises ValueError for a task
    without an expert and for observations without privileged state.
    """

    def __init__(self, task: str, horizon: int = 1, max_translation: float = 0.05, max_rotation: float = 0.2):
        if task not in PLANS:
            raise ValueError(f"there is no scripted expert for {task!r}; there are for {', '.join(PLANS)}")
        self.plan = PLANS[task]
        self.horizon = horizon
        self.limits = (max_translation, max_rotation)

    def act(self, obs: Observation) -> Action:
        b = obs.batch_size
        scene = _scene(obs)
        commands = []
        for _ in range(self.horizon):
            command = self._command(scene)
            commands.append(command)
            scene = imagine(scene, command)
        return Action(
            commands=torch.stack(commands, 1).reshape(*b, self.horizon, 7),
            log_prob=obs.proprio.new_zeros(*b, 0),
            latent=TensorDict({}, b),
            batch_size=b,
        )

    def _command(self, scene: Scene) -> Float[Tensor, "batch 7"]:
        target, gripper = self.plan(scene)
        delta = geometry.delta_between(scene.commanded, target, gripper[:, None])
        translation = geometry.limit_norm(delta[:, :3], self.limits[0])
        return torch.cat([translation, geometry.limit_norm(delta[:, 3:6], self.limits[1]), delta[:, 6:]], -1)


def imagine(scene: Scene, command: Float[Tensor, "batch 7"]) -> Scene:
    """Roughly what a command leads to: the arm follows with a lag, and what is held goes along."""
    commanded = geometry.advance(scene.commanded, scene.tcp, command, (1.0, 3.0))
    position = scene.tcp[:, :3] + LAG * (commanded[:, :3] - scene.tcp[:, :3])
    turn = LAG * geometry.turn_between(scene.tcp[:, 3:], commanded[:, 3:])
    tcp = torch.cat([position, geometry.multiply(geometry.from_rotation_vector(turn), scene.tcp[:, 3:])], -1)
    objects = dict(scene.objects)
    stop = torch.zeros_like(scene.opening)
    for name in WIDTHS.keys() & objects.keys():
        local = geometry.to_frame(scene.tcp, objects[name])
        position = tcp[:, :3] + geometry.rotate(tcp[:, 3:], local[:, :3])
        carried = torch.cat([position, geometry.multiply(tcp[:, 3:], local[:, 3:])], -1)
        objects[name] = torch.where(scene.holds(name)[:, None], carried, objects[name])
        stop = torch.where(scene.around(name), WIDTHS[name] / 0.08, stop)
    wanted = torch.maximum(command[:, 6], stop)
    opening = scene.opening + (wanted - scene.opening).clamp(-FINGER_SPEED, FINGER_SPEED)
    return replace(scene, tcp=tcp, commanded=commanded, opening=opening, objects=objects)


def pick_cube(scene: Scene) -> Plan:
    cube, goal = scene.objects["cube"], scene.objects["goal_site"]
    carry = torch.cat([scene.tcp[:, :3] + goal[:, :3] - cube[:, :3], scene.tcp[:, 3:]], -1)
    carry = _steady(scene, carry)
    return _grasp_then(scene, "cube", cube, carry, _nothing(scene))


def stack_cube(scene: Scene) -> Plan:
    cube, base = scene.objects["cubeA"], scene.objects["cubeB"]
    offset = cube[:, :3] - base[:, :3]
    aligned = offset[:, :2].norm(dim=-1) < 0.012
    height = base[:, 2] + CUBE + torch.where(aligned, 0.0, HOVER)
    above = torch.cat([base[:, :2], height[:, None]], -1)
    rising = ~aligned & (offset[:, 2] < CUBE + 0.02) & (offset[:, :2].norm(dim=-1) < 0.12)
    above = torch.where(rising[:, None], torch.cat([cube[:, :2], height[:, None]], -1), above)
    carry = _steady(scene, torch.cat([scene.tcp[:, :3] + above - cube[:, :3], scene.tcp[:, 3:]], -1))
    stacked = (offset[:, :2].norm(dim=-1) < 0.025) & ((offset[:, 2] - CUBE).abs() < 0.006)
    target, gripper = _grasp_then(scene, "cubeA", cube, carry, base)
    away = torch.cat([scene.tcp[:, :2], (base[:, 2:3] + CUBE + HOVER), scene.tcp[:, 3:]], -1)
    let_go = torch.where((scene.opening > 0.7)[:, None], away, scene.commanded)
    return torch.where(stacked[:, None], let_go, target), torch.where(stacked, 1.0, gripper)


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
    down = _pointing_down(torch.zeros(len(peg)))
    grip = torch.cat([peg[:, :3], geometry.multiply(_about_y(torch.full_like(missing, -0.75)), down)], -1)
    return _fetch(scene, "peg", grip, carry)


PLANS: dict[str, Callable[[Scene], Plan]] = {
    "PickCube-v1": pick_cube,
    "StackCube-v1": stack_cube,
    "PushCube-v1": push_cube,
    "PullCube-v1": pull_cube,
    "LiftPegUpright-v1": lift_peg,
}


def _scene(obs: Observation) -> Scene:
    if obs.privileged is None or "tcp" not in obs.privileged:
        raise ValueError("a scripted expert needs privileged state; this environment gives none")
    poses = {name: cast(Tensor, pose).reshape(-1, pose.shape[-1]) for name, pose in obs.privileged.items()}
    tcp, commanded, gripper = (poses.pop(name) for name in ("tcp", "commanded", "gripper"))
    return Scene(tcp, commanded, gripper[:, 0], poses)


def _grasp_then(scene: Scene, name: str, cube: Tensor, carry: Tensor, obstacle: Tensor) -> Plan:
    grip = torch.cat([cube[:, :3], _across_faces(scene, cube, obstacle)], -1)
    return _fetch(scene, name, grip, carry)


def _fetch(scene: Scene, name: str, grip: Float[Tensor, "batch 7"], carry: Float[Tensor, "batch 7"]) -> Plan:
    """Come down to `grip` through a funnel and close; once the object is held, go to `carry`."""
    inside, held = scene.around(name), scene.holds(name)
    turn = geometry.turn_between(scene.tcp[:, 3:], grip[:, 3:]).norm(dim=-1)
    target = _through_funnel(scene, grip, turn)
    target = torch.where(inside[:, None], _steady(scene, grip), target)
    return torch.where(held[:, None], carry, target), torch.where(inside, 0.0, 1.0)


def _through_funnel(
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


def _slide(scene: Scene, side: float) -> Plan:
    """Put the shut fingers down beside the cube (`side` along x, seen from the cube) and slide it to the goal."""
    cube, goal = scene.objects["cube"], scene.objects["goal_region"]
    down = _pointing_down(torch.zeros(len(cube)))
    start = torch.cat([cube[:, :3] + cube.new_tensor([side * 0.06, 0, 0]), down], -1)
    beside = side * (scene.tcp[:, 0] - cube[:, 0])
    aligned = (scene.tcp[:, 1] - cube[:, 1]).abs() < 0.015
    ready = (scene.tcp[:, 2] < CUBE) & aligned & (beside > 0.02) & (beside < 0.08)
    onward = (goal[:, 0] - cube[:, 0]).clamp(-0.03, 0.03)
    push = torch.stack([scene.commanded[:, 0] + onward, cube[:, 1], cube[:, 2]], -1)
    target = torch.where(
        ready[:, None], torch.cat([push, down], -1), _through_funnel(scene, start, torch.zeros(len(cube)))
    )
    return target, torch.zeros(len(cube))


def _steady(scene: Scene, target: Float[Tensor, "batch 7"]) -> Float[Tensor, "batch 7"]:
    """`target` with the tool's rotation left as commanded."""
    return torch.cat([target[:, :3], scene.commanded[:, 3:]], -1)


def _pointing_down(yaw: Float[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
    """The tool pointing straight down, its fingers closing along y turned by `yaw`."""
    down = torch.tensor([1.0, 0, 0, 0]).expand(len(yaw), 4)
    turn = torch.stack([torch.zeros_like(yaw), torch.zeros_like(yaw), yaw], -1)
    return geometry.multiply(geometry.from_rotation_vector(turn), down)


def _about_y(angle: Float[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
    zero = torch.zeros_like(angle)
    return geometry.from_rotation_vector(torch.stack([zero, angle, zero], -1))


def _across_faces(
    scene: Scene, cube: Float[Tensor, "batch 7"], obstacle: Float[Tensor, "batch 7"]
) -> Float[Tensor, "batch 4"]:
    """Pointing down with the fingers on the two faces nearest to the present yaw, unless an obstacle is in the way."""
    side = geometry.rotate(cube[:, 3:], torch.tensor([1.0, 0, 0]).expand(len(cube), 3))
    yaw = torch.atan2(side[:, 1], side[:, 0])
    closing = geometry.rotate(scene.tcp[:, 3:], torch.tensor([0.0, 1, 0]).expand(len(cube), 3))
    present = torch.atan2(-closing[:, 1], -closing[:, 0]) - torch.pi / 2  # pointing down with yaw 0 closes along -y
    quarter = torch.pi / 2
    turns = ((present - yaw) / quarter).round()
    best = yaw + turns * quarter
    way = obstacle[:, :2] - cube[:, :2]
    fingers = torch.stack([-best.sin(), best.cos()], -1)
    near = way.norm(dim=-1) < 0.09
    blocked = near & ((way * fingers).sum(-1).abs() > way.norm(dim=-1) * 0.75)
    other = torch.where(present > best, best + quarter, best - quarter)
    return _pointing_down(torch.where(blocked, other, best))


def _nothing(scene: Scene) -> Float[Tensor, "batch 7"]:
    """An obstacle that is nowhere near."""
    return torch.full_like(scene.tcp, 100.0)
