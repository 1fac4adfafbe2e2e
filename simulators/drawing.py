"""How ManiSkill's cameras see: from where, and with how much care for light.

Compiling the simulator's own shaders for a software renderer costs 20 s of processor time in every process, ours under
one; a robot with a twentieth of its triangles is drawn several times faster. At the size of pictures that policies see,
both look alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vla import geometry
from vla.types import Camera

DRAWINGS = ("full", "light")
MATTE = Path(__file__).parent / "shaders" / "matte"
Point = Sequence[float | int]


@dataclass(frozen=True)
class View:
    """A change to one of the task's cameras: its vertical field of view (radians), and for one that stands still where
    it is and what it looks at (metres, in the robot's base frame). `source` is the simulator's name for it, if ours is
    another."""

    field_of_view: float | None = None
    eye: Point | None = None
    target: Point | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if (self.eye is None) != (self.target is None):
            raise ValueError(f"a camera is moved by eye and target together, got {self.eye} and {self.target}")
        if self.eye is not None and self.target is not None and (len(self.eye), len(self.target)) != (3, 3):
            raise ValueError(f"eye and target are three metres each, got {self.eye} and {self.target}")


Views = Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None


def views_of(cameras: Views) -> dict[str, View] | None:
    """By camera, what to change; None where all cameras are wanted. ValueError for what a view does not have."""
    if cameras is None:
        return None
    named = cameras if isinstance(cameras, Mapping) else dict.fromkeys(cameras)
    try:
        return {name: View(**(options or {})) for name, options in named.items()}
    except TypeError as error:
        raise ValueError(f"a camera may be given field_of_view, eye, target and source: {error}") from None


def sensor_configs(drawing: str, size: int, views: Mapping[str, View] | None) -> dict[str, Any]:
    """ManiSkill's `sensor_configs` for pictures of `size` pixels square; ValueError for an unknown `drawing`."""
    if drawing not in DRAWINGS:
        raise ValueError(f"drawing must be one of {', '.join(DRAWINGS)}, got {drawing!r}")
    configs: dict[str, Any] = {"width": size, "height": size}
    configs |= {"shader_pack": "minimal"} if drawing == "full" else {"shader_config": _matte()}
    for name, view in (views or {}).items():
        if view.field_of_view is not None:
            configs[name] = {"fov": view.field_of_view}
    return configs


def chosen(sensors: Mapping[str, Any], views: Mapping[str, View] | None) -> dict[str, View]:
    """How each camera sees, of the task's or of those asked for; ValueError for one that cannot be as it should."""
    for name, view in (views or {}).items():
        if view.source is not None:
            raise ValueError(
                f"camera {name}: ManiSkill's cameras keep their names, source={view.source} is not possible"
            )
        if name not in sensors:
            raise ValueError(f"no camera {name}; this task and robot have {', '.join(sensors)}")
        if view.eye is not None and sensors[name].camera.mount is not None:
            raise ValueError(f"camera {name} is carried by the robot: only its field_of_view can be changed")
    return dict.fromkeys(sensors, View()) if views is None else dict(views)


def place(camera: Any, view: View, base: Any) -> None:
    """Move a camera that stands still to where `view` says, `base` being the robot's pose in the simulator's world."""
    from mani_skill.utils import sapien_utils

    if view.eye is not None:
        camera.set_local_pose(base[0].sp * sapien_utils.look_at(view.eye, view.target).sp)  # alike in every copy


def describe(name: str, sensor: Any, base: Float[Tensor, "env 7"]) -> Camera:
    """What a policy is told of a camera: its pose (in the frame `base`) only if it stands still."""
    matrix = sensor.get_params()["intrinsic_cv"][0].cpu().tolist()
    mounted = sensor.config.mount is not None or sensor.config.entity_uid is not None
    pose = None if mounted else _optical_pose(sensor, base[:1])
    return Camera(name, sensor.config.height, sensor.config.width, tuple(map(tuple, matrix)), pose)


def _optical_pose(sensor: Any, base: Float[Tensor, "1 7"]) -> tuple[float, ...]:
    """SAPIEN cameras look along x with z up; turned to look along z with y down, as intrinsics expect."""
    turn = torch.tensor([[-0.5, 0.5, -0.5, 0.5]])
    native = sensor.camera.get_global_pose().raw_pose[:1].cpu()
    pose = geometry.to_frame(base, torch.cat([native[:, :3], geometry.wxyz_to_xyzw(native[:, 3:])], -1))
    return (*pose[0, :3].tolist(), *geometry.multiply(pose[:, 3:], turn)[0].tolist())


def _matte() -> Any:
    import sapien
    from mani_skill.render.shaders import ShaderConfig

    sapien.render.set_picture_format("Color", "r8g8b8a8unorm")
    return ShaderConfig(str(MATTE), {"Color": ["rgb"]}, texture_transforms={"Color": lambda x: {"rgb": x[..., :3]}})
