"""robosuite tasks for one arm behind the common interface.

Written for robosuite 1.4, which LIBERO needs. What 1.5 has elsewhere is in two places: how a controller is asked for
(`controller_config`) and where the arm keeps it (`Arm.controller`).
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import numpy as np
from torch import Tensor

from simulators.batch import require_counts
from simulators.drawing import Views
from simulators.mujoco import Start, copies, quiet_imports, shut
from simulators.mujoco_arm import CONTROLLERS, Arm
from vla.types import ChunkEnv, CommandKind

INSTRUCTIONS = {
    "Lift": "lift the red cube",
    "Stack": "stack the red cube on the green cube",
    "PickPlace": "put each object into its bin",
    "PickPlaceSingle": "put the object into its bin",
    "PickPlaceCan": "put the can into its bin",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "NutAssembly": "put each nut on its peg",
    "NutAssemblySingle": "put the nut on its peg",
    "NutAssemblySquare": "put the square nut on the square peg",
    "NutAssemblyRound": "put the round nut on the round peg",
    "Door": "open the door",
    "Wipe": "wipe the table clean",
}
SUCCESS = {
    "Lift": "cube 4 cm above the table",
    "Stack": "red cube on the green one, let go, off the table",
    "PickPlace": "all four objects in their bins, let go",
    **dict.fromkeys(("PickPlaceSingle", "PickPlaceCan"), "the object in its bin, let go"),
    **dict.fromkeys(("PickPlaceMilk", "PickPlaceBread", "PickPlaceCereal"), "the object in its bin, let go"),
    "NutAssembly": "both nuts around their pegs, let go",
    **dict.fromkeys(("NutAssemblySingle", "NutAssemblySquare", "NutAssemblyRound"), "the nut around its peg, let go"),
    "Door": "door open by 0.3 rad",
    "Wipe": "all marks wiped off",
}
ALIASES = {"Can": "PickPlaceCan", "Square": "NutAssemblySquare"}  # as robomimic and diffusion policy call them
MAX_STEPS = {"PickPlace": 1600, "NutAssembly": 800, "Wipe": 600, "Door": 400}  # others: LIMIT
LIMIT = 400  # robomimic's for Lift, Can and Square
CAMERAS = ("agentview", "robot0_eye_in_hand")


def robosuite(
    task: str,
    num_envs: int,
    workers: int = 0,
    robot: str = "Panda",
    reward: str = "sparse",
    cameras: Views = CAMERAS,
    command: CommandKind = "ee_delta",
    **options: Any,
) -> ChunkEnv:
    """`num_envs` copies of a robosuite task, in this process or in `workers` others.

    `options` are those of `MujocoScene`. Raises ValueError for a task or robot that is not there or not for one arm.
    """
    require_counts(num_envs, workers)
    task = check_task(task)
    if reward not in ("sparse", "dense"):
        raise ValueError(f"reward must be sparse or dense, got {reward!r}")
    stage = functools.partial(RobosuiteStage, task, robot, command, reward == "dense")
    return copies(stage, num_envs, workers, command=command, cameras=cameras, **options)


def check_task(task: str) -> str:
    """The task's full name; ValueError, saying what there is, for one that is unknown or needs two arms."""
    name = ALIASES.get(task, task)
    if name.startswith("TwoArm"):
        raise ValueError(f"robosuite's {task} needs two arms, which Armature does not drive: choose a task for one arm")
    if name not in INSTRUCTIONS:
        raise ValueError(f"no robosuite task {task!r}; there are {', '.join([*INSTRUCTIONS, *ALIASES])}")
    return name


class RobosuiteStage:
    """One task of robosuite: an episode's placement comes from its seed.

    The model is built once: what robosuite draws only when it builds (the cube's size in Lift, within a millimetre) is
    the same in all episodes.
    """

    control_hz = 20.0

    def __init__(self, task: str, robot: str, command: CommandKind, dense: bool):
        self.task = task
        self.max_steps = MAX_STEPS.get(task, LIMIT)
        with drawing_from(0):
            self.env = _make(task, robot, command, dense)

    def start(self, seed: int) -> Start:
        reset(self.env, seed)
        return Start(self.env, INSTRUCTIONS[self.task], _what_is_where)

    def restore(self, state: Mapping[str, Any]) -> Start:
        """A state as robomimic stores it (`restore_recorded`)."""
        reset(self.env, 0)
        restore_recorded(self.env, state)
        return Start(self.env, INSTRUCTIONS[self.task], _what_is_where)

    def fingerprint(self) -> dict[str, str]:
        return versions()

    def close(self) -> None:
        shut(self.env)


def reset(env: Any, seed: int) -> None:
    """robosuite's own reset, drawn from `seed`; it would leave the gripper's command as the last episode had it."""
    with drawing_from(seed):
        env.reset()
    gripper = env.robots[0].gripper
    gripper.current_action = np.zeros_like(gripper.current_action)


def restore_flat(env: Any, state: np.ndarray) -> None:
    """Put a simulator into a flattened MuJoCo state; ValueError if it is of another model."""
    expected = 1 + env.sim.model.nq + env.sim.model.nv
    if len(state) != expected:
        raise ValueError(f"a state of {type(env).__name__} has {expected} numbers, this one {len(state)}")
    env.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
    env.sim.forward()


def restore_recorded(env: Any, recorded: Mapping[str, Any]) -> None:
    """Put a simulator into a recorded `state`, flattened, of a recorded `model`, XML if it is known.

    Where things stand that cannot move (cabinets, the arm's base) is in the model only.
    """
    bodies = ElementTree.fromstring(recorded["model"]).iterfind("./worldbody/body") if recorded.get("model") else ()
    for body in bodies:
        if body.get("name") in env.sim.model.body_names and body.find("freejoint") is None:
            number = env.sim.model.body_name2id(body.get("name"))
            env.sim.model.body_pos[number] = np.fromstring(body.get("pos", "0 0 0"), sep=" ")
            if body.get("quat") is not None:
                env.sim.model.body_quat[number] = np.fromstring(body.get("quat", ""), sep=" ")
    restore_flat(env, recorded["state"])


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"robosuite": version("robosuite"), "mujoco": version("mujoco")}


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global state: give it one of its own for a while."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _make(task: str, robot: str, command: CommandKind, dense: bool) -> Any:
    with quiet_imports():
        import robosuite as suite
        from robosuite.robots import ROBOT_CLASS_MAPPING

    single = sorted(name for name, kind in ROBOT_CLASS_MAPPING.items() if kind.__name__ == "SingleArm")
    if robot not in single:
        raise ValueError(f"no robot {robot!r} with one arm in robosuite; there are {', '.join(single)}")
    try:
        return suite.make(
            task,
            robots=robot,
            controller_configs=controller_config(command),
            has_renderer=False,
            has_offscreen_renderer=False,  # we draw ourselves
            use_camera_obs=False,
            use_object_obs=False,
            reward_shaping=dense,
            hard_reset=False,
            ignore_done=True,
        )
    except ValueError as error:
        raise ValueError(f"robosuite cannot build {task} with {robot} on this MuJoCo: {error}") from error


def controller_config(command: CommandKind) -> dict[str, Any]:
    with quiet_imports():
        import robosuite.controllers as controllers

    if command not in CONTROLLERS:
        raise ValueError(f"command must be one of {', '.join(CONTROLLERS)}, got {command!r}")
    if hasattr(controllers, "load_controller_config"):
        return controllers.load_controller_config(default_controller=CONTROLLERS[command])
    part = controllers.load_part_controller_config(default_controller=CONTROLLERS[command])
    return controllers.load_composite_controller_config(controller="BASIC") | {"body_parts": {"right": part}}


def _what_is_where(arm: Arm) -> dict[str, Tensor]:
    """Objects by their names in robosuite; `<object>_handle` of those that have one, `goal` of those with a bin."""
    env = arm.env
    poses = {}
    for thing in env.model.mujoco_objects:
        body = arm.data.body(thing.root_body)
        poses[thing.name] = arm.in_base(body.xpos, body.xquat)
        if "handle" in thing.important_sites:
            site = arm.data.site(thing.important_sites["handle"])
            poses[f"{thing.name}_handle"] = arm.in_base(site.xpos, body.xquat)
    for peg in ("peg1", "peg2") if hasattr(env, "peg1_body_id") else ():
        body = arm.data.body(peg)
        poses[peg] = arm.in_base(body.xpos, body.xquat)
    if hasattr(env, "target_bin_placements"):
        place = env.target_bin_placements[getattr(env, "object_id", 0)]
        poses["goal"] = arm.in_base(place, np.array([1.0, 0, 0, 0]))
    return poses
