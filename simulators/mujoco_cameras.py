"""Cameras of a MuJoCo simulator: upright pictures, where each camera stands, and how much care is taken of light."""

import atexit
import functools
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mujoco
import torch
from jaxtyping import Float
from torch import Tensor

from simulators.drawing import DRAWINGS, View
from simulators.mujoco_poses import Native, to_tensor
from vla import geometry
from vla.types import Camera

LOOKS_ALONG_Z = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # MuJoCo's cameras look along -z with y up


class Cameras:
    """The cameras `views` of one simulator, by our names; `base` is the robot's base in the world.

    `drawing="light"` leaves out what costs most on a CPU: multisampling, shadows and reflections.
    """

    def __init__(self, env: Any, views: Mapping[str, View], size: int, drawing: str, base: Native):
        if drawing not in DRAWINGS:
            raise ValueError(f"drawing must be one of {', '.join(DRAWINGS)}, got {drawing!r}")
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.views, self.size, self.light = views, size, drawing == "light"
        self.base = to_tensor(base)
        self.ids = {name: self._find(name, view) for name, view in views.items()}
        for name, view in views.items():
            self._place(self.ids[name], view)
        self.renderer: Any = None  # made with the first picture: a context costs memory and half a second

    def draw(self) -> dict[str, Tensor]:
        """Camera name -> uint8[1, size, size, 3]."""
        if self.renderer is None:
            self._open()
        pictures = {}
        for name, number in self.ids.items():
            self.renderer.update_scene(self.data, camera=number, scene_option=self.options)
            pictures[name] = torch.from_numpy(self.renderer.render().copy())[None]
        return pictures

    def describe(self) -> tuple[Camera, ...]:
        return tuple(self._describe(name, number) for name, number in self.ids.items())

    def close(self) -> None:
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None

    def _open(self) -> None:
        if self.light:
            self.model.vis.quality.offsamples = 0
        self.model.vis.global_.offwidth = max(self.model.vis.global_.offwidth, self.size)
        self.model.vis.global_.offheight = max(self.model.vis.global_.offheight, self.size)
        self.renderer = mujoco.Renderer(self.model, self.size, self.size)
        OPEN.add(self)
        _close_before_mujoco_does()
        self.options = mujoco.MjvOption()
        self.options.geomgroup[0] = 0  # robosuite keeps collision shapes there
        if self.light:
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def _find(self, name: str, view: View) -> int:
        names = [self.model.camera(i).name for i in range(self.model.ncam)]
        wanted = view.source or name
        if wanted not in names:
            raise ValueError(f"no camera {wanted}; this scene has {', '.join(names)}")
        number = names.index(wanted)
        if view.eye is not None and self.model.cam_bodyid[number] != 0:
            raise ValueError(f"camera {name} is carried by the robot: only its field_of_view can be changed")
        return number

    def _place(self, number: int, view: View) -> None:
        if view.field_of_view is not None:
            self.model.cam_fovy[number] = view.field_of_view * 180 / torch.pi
        if view.eye is None or view.target is None:
            return
        eye, target = (torch.tensor([view], dtype=torch.float32) for view in (view.eye, view.target))
        pose = _looking(eye, target)
        position = self.base[:, :3] + geometry.rotate(self.base[:, 3:], eye)
        rotation = geometry.multiply(self.base[:, 3:], pose)
        self.model.cam_pos[number] = position[0].numpy()
        self.model.cam_quat[number] = geometry.xyzw_to_wxyz(rotation)[0].numpy()
        self.model.cam_mode[number] = 0  # stands still

    def _describe(self, name: str, number: int) -> Camera:
        focal = self.size / 2 / torch.tan(torch.tensor(self.model.cam_fovy[number] * torch.pi / 360)).item()
        middle = self.size / 2
        intrinsics = ((focal, 0.0, middle), (0.0, focal, middle), (0.0, 0.0, 1.0))
        camera = Camera(name, self.size, self.size, intrinsics)
        return camera if self.model.cam_bodyid[number] != 0 else replace(camera, pose=self._optical_pose(number))

    def _optical_pose(self, number: int) -> tuple[float, ...]:
        position = torch.from_numpy(self.model.cam_pos[number]).float()[None]
        rotation = geometry.wxyz_to_xyzw(torch.from_numpy(self.model.cam_quat[number]).float()[None])
        world = torch.cat([position, geometry.multiply(rotation, LOOKS_ALONG_Z)], -1)
        return tuple(geometry.to_frame(self.base, world)[0].tolist())


OPEN: weakref.WeakSet[Cameras] = weakref.WeakSet()


@functools.cache
def _close_before_mujoco_does() -> None:
    """A renderer that outlives MuJoCo's display complains, and what was registered last runs first."""
    atexit.register(_close_all)


def _close_all() -> None:
    for cameras in list(OPEN):
        cameras.close()


def _looking(eye: Float[Tensor, "1 3"], target: Float[Tensor, "1 3"]) -> Float[Tensor, "1 4"]:
    """The rotation of a camera that looks along -z from `eye` to `target`, upright."""
    back = torch.nn.functional.normalize(eye - target, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([[0.0, 0.0, 1.0]]), back), dim=-1)
    matrix = torch.stack([right, torch.linalg.cross(back, right), back], -1)[0]
    return geometry.from_matrix(matrix[None])
