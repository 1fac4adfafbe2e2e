"""Recordings as episodes of ours: the command at a frame is the motion to the next frame's pose."""

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla import geometry
from vla.data.importers.source import Recording
from vla.types import Action, Camera, Command, EnvSpec, Observation, Rollout

PROPRIO = (("position", 3), ("rotation", 6), ("gripper", 1))


def spec_of(recording: Recording, *, control_hz: float) -> EnvSpec:
    """What a recording shows. Its frame is its own, not a robot's base, and the spec says so."""
    return EnvSpec(
        num_envs=1,
        control_hz=control_hz,
        max_steps=len(recording.position) - 1,
        cameras=tuple(Camera(name, *picture.shape[1:3]) for name, picture in recording.images.items()),
        proprio=PROPRIO,
        command=Command("ee_delta", 7, frame="recording"),
    )


def as_episode(recording: Recording, *, instruction: str, max_width: float, success: bool) -> Rollout:
    """The recording as an element of `Rollout.episodes()`; a gripper `max_width` metres wide counts as open.

    Success is the caller's word and goes to the last command. ValueError for a gripper that opens wider.
    """
    pose, opening = poses(recording), torch.as_tensor(recording.width) / max_width
    if opening.max() > 1:
        raise ValueError(f"the gripper opens {recording.width.max():.4f} m: gripper_width={max_width} is too small")
    steps = len(pose) - 1
    commands = torch.cat([geometry.delta_between(pose[:-1], pose[1:], opening[1:]), torch.zeros(1, 7).double()]).float()
    b, valid = [steps + 1], torch.arange(steps + 1) < steps
    return Rollout(
        obs=_observations(recording, pose, opening, instruction),
        action=Action(commands=commands[:, None], log_prob=torch.zeros(*b, 0), latent=TensorDict({}, b), batch_size=b),
        reward=torch.zeros(b),
        success=(torch.arange(steps + 1) == steps - 1) & success,
        terminated=torch.zeros(b, dtype=torch.bool),
        valid=valid,
        executed=commands[:, None].clone(),
        num_steps=valid.long(),
        batch_size=b,
    )


def poses(recording: Recording) -> Float[Tensor, "time 7"]:
    """Position (m) and quaternion of every frame, in double precision."""
    rotation = geometry.from_rotation_vector(torch.as_tensor(recording.rotation))
    return torch.cat([torch.as_tensor(recording.position), rotation], -1)


def drift(episode: Rollout, recording: Recording) -> tuple[float, float]:
    """How far the commands, added up from the first pose, come off the recorded poses at most: metres and radians."""
    truth = poses(recording)
    pose, worst = truth[0], torch.zeros(2, dtype=torch.float64)
    for command, wanted in zip(episode.action.commands[:-1, 0].double(), truth[1:], strict=True):
        turned = geometry.multiply(geometry.from_rotation_vector(command[3:6]), pose[3:])
        pose = torch.cat([pose[:3] + command[:3], turned])
        off = torch.stack([(pose[:3] - wanted[:3]).norm(), geometry.turn_between(pose[3:], wanted[3:]).norm()])
        worst = torch.maximum(worst, off)
    return worst[0].item(), worst[1].item()


def _observations(recording: Recording, pose: Tensor, opening: Tensor, instruction: str) -> Observation:
    n = len(pose)
    axes = [geometry.rotate(pose[:, 3:], torch.eye(3).double()[i].expand(n, 3)) for i in (0, 1)]
    return Observation(
        images=TensorDict({name: torch.as_tensor(picture) for name, picture in recording.images.items()}, [n]),
        proprio=torch.cat([pose[:, :3], *axes, opening], -1).float(),
        instruction=[instruction] * n,
        batch_size=[n],
    )
