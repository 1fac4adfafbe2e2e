"""What a frame of a dataset holds: the features as LeRobot describes them, and their values in an episode."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vla.types import Camera, EnvSpec, Rollout

PICTURES = "observation.images."
SMALLEST_VIDEO = 64  # pixels; on much smaller pictures the AV1 encoder ends the whole process


def features(
    spec: EnvSpec, images: str, beside: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Feature name -> dtype, shape and names of its numbers. `images` is `video` or `image`.

    What is kept `beside` it is of 64-bit numbers with these names.

    `action` is the command that was executed, `action.requested` the one the actor asked for. `next.done` is True in an
    episode's last frame, `next.terminated` only if the task ended there. `capture.time` is in seconds.
    """
    state = [f"{part}_{i}" for part, size in spec.proprio for i in range(size)]
    command = [f"command_{i}" for i in range(spec.action_dim)]
    if spec.command.kind == "ee_delta" and spec.action_dim == 7:
        command = ["x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper"]
    return {
        **{PICTURES + camera.name: _picture(camera, images) for camera in spec.cameras},
        "observation.state": _numbers("float32", state),
        "action": _numbers("float32", command),
        "action.requested": _numbers("float32", command),
        "next.reward": _numbers("float32"),
        "next.success": _numbers("bool"),
        "next.terminated": _numbers("bool"),
        "next.done": _numbers("bool"),
        "capture.time": _numbers("float64"),
        "source": _numbers("int64"),
        "seed": _numbers("int64"),
        **{name: _numbers("float64", list(names)) for name, names in beside.items()},
    }


def columns(
    episode: Rollout, spec: EnvSpec, beside: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Feature name -> one row per executed command. ValueError if the episode does not fit `spec`.

    What is kept `beside` it is part of the decision's latent, by the same name.

    The observation an episode ended in is not a frame: no command was given there. What the actor asked for is its
    `latent["requested"]` where it says so (an actor that disturbs its own commands), otherwise its commands.
    """
    rows = episode[:-1]
    if len(episode) < 2 or not rows.valid.all() or episode.valid[-1]:
        raise ValueError("an episode is one element of Rollout.episodes(): valid rows and then its last observation")
    if rows.executed is None or rows.executed.shape[-2] != 1:
        raise ValueError("a dataset has one frame per command: record with an actor of horizon 1")
    if missing := {camera.name for camera in spec.cameras} ^ set(rows.obs.images.keys()):
        raise ValueError(f"the episode and its spec do not have the same cameras: {sorted(missing)} is in only one")
    requested = rows.action.latent.get("requested", rows.action.commands)
    values = {PICTURES + camera.name: rows.obs.images[camera.name] for camera in spec.cameras}
    values["observation.state"] = rows.obs.proprio.float()
    values["action"] = rows.executed[:, 0].float()
    values["action.requested"] = requested[:, 0].float()
    values |= {name: rows.action.latent[name].double() for name in beside}
    for name, value in values.items():
        shape = tuple(features(spec, "image", beside)[name]["shape"])
        if tuple(value.shape[1:]) != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape[1:])} per frame, but its spec says {shape}")
    values["next.reward"] = rows.reward.float()
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} of this episode is not finite: it would spoil every statistic, so it is not kept")
    done = torch.arange(len(rows)) == len(rows) - 1
    return {**values, "next.success": rows.success, "next.terminated": rows.terminated, "next.done": done}


def instruction(episode: Rollout) -> str:
    """The one text of the episode; ValueError if it changed on the way."""
    texts = set(episode.obs.instruction)
    if len(texts) != 1:
        raise ValueError(f"an episode has one instruction, got {sorted(texts)}")
    return texts.pop()


def _picture(camera: Camera, images: str) -> dict[str, Any]:
    even = camera.height % 2 == camera.width % 2 == 0
    film = images == "video" and even and min(camera.height, camera.width) >= SMALLEST_VIDEO
    shape = (camera.height, camera.width, 3)
    return {"dtype": "video" if film else "image", "shape": shape, "names": ["height", "width", "channels"]}


def _numbers(dtype: str, names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (len(names) if names else 1,), "names": names}
