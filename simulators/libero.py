"""LIBERO's 130 tasks behind the common interface, with the benchmark's own initial states and success.

Nothing is asked, downloaded or written outside temporary folders at import: `libero_assets` says where meshes and
textures are looked for.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from simulators.batch import require_counts
from simulators.drawing import Views
from simulators.libero_files import SUITES, Task, assets_hash, initial_states, libero_assets, prepare, tasks_of
from simulators.libero_goals import first_unmet_goal
from simulators.mujoco import Start, copies, shut
from simulators.robosuite import controller_config, drawing_from, reset, restore_flat, restore_recorded, versions
from vla.rollout import TEST_SEEDS
from vla.types import ChunkEnv, CommandKind

CAMERAS = ("agentview", "robot0_eye_in_hand")
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
SETTLE = 10  # steps of rest with the gripper open before an episode begins, as in the standard protocol
KEPT = 10  # idle simulators kept in a process


def libero(
    suite: str,
    num_envs: int,
    workers: int = 0,
    task: str | int | None = None,
    assets: str | None = None,
    language: str = "bddl",
    settle: int = SETTLE,
    cameras: Views = CAMERAS,
    command: CommandKind = "ee_delta",
    **options: Any,
) -> ChunkEnv:
    """`num_envs` copies of a LIBERO suite, in this process or in `workers` others.

    Episode e is of task e modulo the number of tasks; `task` (a number or name) leaves only that one. Seeds of
    `TEST_SEEDS` start from the 50 official initial states of each task in turn, which nobody should train on; all
    others from placements of their own, drawn as the task's definition says. `language="bddl"` tells the sentence of
    the task's definition, `"name"` the one in its name, which public checkpoints were trained on. `settle` steps of
    rest come first. `options` are those of `MujocoScene`. Raises ValueError for a suite or task there is not, and
    where assets are missing.
    """
    require_counts(num_envs, workers)
    if suite not in SUITES:
        raise ValueError(f"no LIBERO suite {suite!r}; there are {', '.join(SUITES)}")
    if language not in ("bddl", "name"):
        raise ValueError(f"language must be bddl (the definition's) or name (that of public checkpoints): {language!r}")
    tasks = tasks_of(suite, task)
    folder = str(libero_assets(assets))
    alike = repr((folder, command, cameras, sorted(options.items())))
    stage = functools.partial(LiberoStage, suite, tasks, folder, language, settle, command, alike)
    return copies(stage, num_envs, workers, command=command, cameras=cameras, **options)


class LiberoStage:
    """Some tasks of a suite. Simulators take seconds to build: a process keeps those that are idle for all its scenes.

    Where a cabinet stands is drawn too, and the stored states lack it: it comes from the number of the state.
    """

    control_hz = 20.0

    def __init__(
        self,
        suite: str,
        tasks: list[Task],
        assets: str,
        language: str,
        settle: int,
        command: CommandKind,
        alike: str,
    ):
        prepare(assets)
        self.tasks, self.assets, self.language, self.settle, self.command = tasks, assets, language, settle, command
        self.alike = alike  # simulators are shared between scenes that are configured alike
        self.max_steps = MAX_STEPS[suite]
        self.env: Any = None
        self.task: Task | None = None

    def start(self, seed: int) -> Start:
        task = self.tasks[seed % len(self.tasks)]
        self._enter(task)
        if seed in TEST_SEEDS:
            states = initial_states(task)
            number = (seed - TEST_SEEDS.start) // len(self.tasks) % len(states)
            return self._settled(number, states[number])
        return self._settled(seed, None)

    def restore(self, state: Mapping[str, Any]) -> Start:
        """A state as LIBERO's recordings have it (`restore_recorded`), without settling."""
        if len(self.tasks) > 1:
            raise ValueError("recorded states are of one task: name it (env.task=...)")
        self._enter(self.tasks[0])
        self._reset(0)
        restore_recorded(self.env, state)
        return self._begun()

    def fingerprint(self) -> dict[str, str]:
        return {**versions(), "settle": str(self.settle), "language": self.language, "assets": assets_hash(self.assets)}

    def close(self) -> None:
        self._leave()

    def _settled(self, seed: int, state: np.ndarray | None) -> Start:
        self._reset(seed)
        if state is not None:
            restore_flat(self.env, state)
        rest = np.zeros(self.env.action_dim)
        rest[-1] = -1.0
        for _ in range(self.settle):
            self.env.step(rest)
        return self._begun()

    def _begun(self) -> Start:
        assert self.task is not None
        return Start(self.env, self.task.said if self.language == "bddl" else self.task.named, first_unmet_goal)

    def _reset(self, seed: int) -> None:
        from robosuite.utils.errors import RandomizationError

        for draw in range(100):
            try:
                return reset(self.env, seed + draw * 2**16)
            except RandomizationError:  # no room for an object: draw again
                continue
        raise RuntimeError(f"LIBERO found no placement for {self.task} in 100 draws")

    def _enter(self, task: Task) -> None:
        if self.task == task:
            return
        self._leave()
        waiting = IDLE.get((self.alike, task.name), [])
        self.env = waiting.pop() if waiting else _make(task, self.command)
        self.task = task

    def _leave(self) -> None:
        if self.task is None:
            return
        IDLE.setdefault((self.alike, self.task.name), []).append(self.env)
        close_idle(keep=KEPT)
        self.env, self.task = None, None


IDLE: dict[tuple[str, str], list[Any]] = {}  # simulators of this process that no scene uses, by configuration and task


def close_idle(keep: int = 0) -> None:
    """Close simulators that no scene uses, those longest out of use first, until `keep` are left."""
    for waiting in list(IDLE.values()):
        while waiting and sum(map(len, IDLE.values())) > keep:
            shut(waiting.pop(0))


def _make(task: Task, command: CommandKind) -> Any:
    from libero.libero.envs import TASK_MAPPING

    with drawing_from(0):
        env = TASK_MAPPING[task.problem](
            str(task.file),
            robots=["Panda"],
            controller_configs=controller_config(command),
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,  # we draw ourselves
            initialization_noise=None,
            hard_reset=False,
            ignore_done=True,
        )
    env._observables.clear()  # nobody reads what it would observe at every substep
    return env
