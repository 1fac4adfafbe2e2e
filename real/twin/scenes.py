"""What lies before the twin: where things are at the start of an episode, and whether the task is done."""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float

from real.charuco import Chart

TABLE = '<geom name="table" type="box" size="0.4 0.5 0.02" pos="0.45 0 -0.02" rgba=".55 .5 .45 1"/>'
CAMERA = '<camera name="base_camera" pos="1.1 0 0.6" xyaxes="0 1 0 -0.5 0 0.87" fovy="55"/>'
HALF = 0.02  # metres: of the cube
PEG = (0.0125, 0.0125, 0.04)  # half sizes in metres
HOLE = 0.015  # half of its width in metres


@dataclass(frozen=True)
class Scene:
    """`world` is MJCF beside the robot; `objects` are its free bodies, `place` draws where they begin.

    `solved` judges from the poses of objects (position in metres, quaternion x y z w).
    """

    name: str
    instruction: str
    world: str
    objects: tuple[str, ...]
    place: Callable[[np.random.Generator], dict[str, Float[np.ndarray, "7"]]]
    solved: Callable[[dict[str, Float[np.ndarray, "7"]]], bool]

    def arrange(self, model: mujoco.MjModel, data: mujoco.MjData, seed: int) -> None:
        """Put everything where the episode of this seed begins, at rest."""
        for name, pose in self.place(np.random.default_rng(seed)).items():
            at, speed = _addresses(model, name)
            data.qpos[at : at + 7] = [*pose[:3], pose[6], *pose[3:6]]
            data.qvel[speed : speed + 6] = 0

    def poses(self, model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, Float[np.ndarray, "7"]]:
        at = {name: _addresses(model, name)[0] for name in self.objects}
        return {name: data.qpos[i : i + 7][[0, 1, 2, 4, 5, 6, 3]] for name, i in at.items()}


def _addresses(model: mujoco.MjModel, name: str) -> tuple[int, int]:
    """Where the position and the velocity of a free body are in MuJoCo's state."""
    joint = model.body(name).jntadr[0]
    return int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])


def _free(name: str, size: tuple[float, ...], mass: float, colour: str) -> str:
    numbers = " ".join(map(str, size))
    return (
        f'<body name="{name}" pos="0.5 0 {size[2]}"><freejoint/><geom name="{name}" type="box" size="{numbers}" '
        f'mass="{mass}" rgba="{colour}" friction="1 0.02 0.0005"/></body>'
    )


def _wall(x: float, y: float, across: float, along: float) -> str:
    return f'<geom type="box" size="{across} {along} 0.025" pos="{x} {y} 0.025" rgba=".2 .3 .7 1"/>'


def _hole(x: float, y: float, thick: float = 0.02) -> str:
    """Four walls around a hole with room for the peg."""
    far, long = HOLE + thick / 2, HOLE + thick
    walls = [(x - far, y, thick / 2, long), (x + far, y, thick / 2, long)]
    walls += [(x, y - far, HOLE, thick / 2), (x, y + far, HOLE, thick / 2)]
    return "".join(_wall(*wall) for wall in walls)


HOLE_AT = (0.55, -0.15)


def chart_body(place: str, options: str = "") -> str:
    """A printed `Chart()` that nothing bumps into. As OpenCV has it, its frame is at a corner, and z goes into it."""
    chart = Chart()
    cell = chart.square / 8  # a marker is six of them wide
    plain = 'type="box" contype="0" conaffinity="0"'
    dark = chart.drawn(8)[..., 0] == 0
    boxes = []
    for i, row in enumerate(dark):
        ends = np.flatnonzero(np.diff(row, prepend=False, append=False))
        for first, last in zip(ends[::2], ends[1::2], strict=True):
            size = f"{(last - first) * cell / 2} {cell / 2} 0.0003"
            at = f"{(first + last) * cell / 2} {(i + 0.5) * cell} 0.0003"
            boxes.append(f'<geom {plain} size="{size}" pos="{at}" rgba="0 0 0 1"/>')
    x, y = chart.columns * chart.square / 2, chart.rows * chart.square / 2
    plate = f'<geom {plain} size="{x + cell} {y + cell} 0.0003" pos="{x} {y} 0.0006" rgba="1 1 1 1"/>'
    return f'<body name="chart" {place} {options}>{plate}{"".join(boxes)}</body>'


def _somewhere(chance: np.random.Generator, y: tuple[float, float], height: float) -> Float[np.ndarray, "7"]:
    turn = chance.uniform(-np.pi / 4, np.pi / 4)
    place = chance.uniform((0.42, y[0]), (0.58, y[1]))
    return np.array([*place, height, 0, 0, np.sin(turn / 2), np.cos(turn / 2)])


def _inserted(poses: dict[str, Float[np.ndarray, "7"]]) -> bool:
    peg = poses["peg"]
    return bool(np.abs(peg[:2] - HOLE_AT).max() < HOLE and peg[2] < PEG[2] + 0.015)


SCENES = {
    x.name: x
    for x in (
        Scene("empty", "do nothing", TABLE + CAMERA, (), lambda _: {}, lambda _: False),
        Scene(
            "chart",
            "guide the camera over the board",
            TABLE + CAMERA + chart_body('pos="0.38 0.1 0.001" quat="0 1 0 0"'),
            (),
            lambda _: {},
            lambda _: False,
        ),
        Scene(
            "pick",
            "pick up the red cube",
            TABLE + CAMERA + _free("cube", (HALF, HALF, HALF), 0.08, ".85 .1 .1 1"),
            ("cube",),
            lambda chance: {"cube": _somewhere(chance, (-0.12, 0.12), HALF)},
            lambda poses: bool(poses["cube"][2] > HALF + 0.04),
        ),
        Scene(
            "peg",
            "put the green peg into the blue hole",
            TABLE + CAMERA + _hole(*HOLE_AT) + _free("peg", PEG, 0.06, ".1 .7 .2 1"),
            ("peg",),
            lambda chance: {"peg": _somewhere(chance, (0.0, 0.15), PEG[2])},
            _inserted,
        ),
    )
}
