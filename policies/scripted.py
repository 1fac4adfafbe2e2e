"""Closed-loop experts on privileged state: teachers and demonstrators that know what to do from any state.

Each task is one function from what is where to where the tool should go next. It keeps no memory, so it recovers from
a miss, a drop or another policy's mess as it starts from anything else. A chunk is made by imagining what the first
commands will lead to.
"""

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from policies import plans_libero, plans_maniskill, plans_robosuite
from policies.moves import STROKE, Scene, Skill
from vla import geometry
from vla.types import Action, Observation

LAG = 0.4  # share of its way to the commanded pose that the imagined arm covers in a step, as measured
FINGER_SPEED = 0.5  # of the gripper's opening, per imagined step


class ScriptedExpert:
    """The expert of `task`, deciding `horizon` `ee_delta` commands at a time.

    Limits are those of the environment's commands, in metres and radians per step. Raises ValueError for a task
    without an expert and for observations without privileged state.
    """

    def __init__(self, task: str, horizon: int = 1, max_translation: float = 0.05, max_rotation: float = 0.2):
        if task not in PLANS:
            raise ValueError(f"there is no scripted expert for {task!r}; there are for {', '.join(PLANS)}")
        self.skill = PLANS[task]
        self.horizon = horizon
        self.limits = (max_translation, max_rotation)

    def act(self, obs: Observation) -> Action:
        b = obs.batch_size
        scene = _scene(obs, self.skill)
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
        target, gripper = self.skill.plan(scene)
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
    for name, grip in scene.grips.items():
        local = geometry.to_frame(scene.tcp, objects[name])
        position = tcp[:, :3] + geometry.rotate(tcp[:, 3:], local[:, :3])
        carried = torch.cat([position, geometry.multiply(tcp[:, 3:], local[:, 3:])], -1)
        objects[name] = torch.where(scene.holds(name)[:, None], carried, objects[name])
        stop = torch.where(scene.around(name), grip.width / STROKE, stop)
    wanted = torch.maximum(command[:, 6], stop)
    opening = scene.opening + (wanted - scene.opening).clamp(-FINGER_SPEED, FINGER_SPEED)
    return replace(scene, tcp=tcp, commanded=commanded, opening=opening, objects=objects)


PLANS: dict[str, Skill] = {**plans_maniskill.PLANS, **plans_robosuite.PLANS, **plans_libero.PLANS}


def _scene(obs: Observation, skill: Skill) -> Scene:
    if obs.privileged is None or "tcp" not in obs.privileged:
        raise ValueError("a scripted expert needs privileged state; this environment gives none")
    poses = {name: cast(Tensor, pose).reshape(-1, pose.shape[-1]) for name, pose in obs.privileged.items()}
    tcp, commanded, gripper = (poses.pop(name) for name in ("tcp", "commanded", "gripper"))
    return Scene(tcp, commanded, gripper[:, 0], poses, skill.grips)
