"""Our environments for programs that speak gymnasium; importing this file registers every environment of `configs/env`.

`gymnasium.make("vla.gymnasium:armature/ManiSkill-PushCube-v1")` is one copy, `gymnasium.make_vec` with the same id a
batch. Other keywords than those of `Single` and `Batch` go to the environment's constructor, which refuses what it does
not know. What the ids are is said in `configs/gymnasium.yaml`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jaxtyping import Float, UInt8
from omegaconf import OmegaConf
from torch import Tensor

from vla.program import CONFIGS
from vla.types import Command, Env, EnvSpec, RestartingEnv, Step

Seen = dict[str, np.ndarray] | np.ndarray
Info = dict[str, Any]
LARGEST = float(np.finfo(np.float32).max)  # proprio is any finite number


class Batch(gymnasium.vector.VectorEnv):
    """An environment as gymnasium's `VectorEnv`.

    Observation: uint8 pictures by the names of the cameras, and `proprio`; `observation="state"` is proprio alone.
    Action: -1 to 1 for the whole range of each number of a command (`command_limits`), or with `normalise=False` the
    command itself, in its units.

    `reset(seed=s)` plays the episodes s, s + 1 ..; every later episode is the next one that was not played yet (from 0
    if no seed was ever given). By default (`NextStep`) the step after an episode's end ignores the action and begins
    the next episode, with reward 0; what the last step showed is the true end. With `Disabled` the copies are reset
    together; until then one that is over earns and ends nothing more. `info`, for each copy: `is_success` (of this
    step), `instruction` and `seed`, the number of its episode.
    """

    def __init__(
        self,
        env: Env,
        *,
        observation: str = "all",
        normalise: bool = True,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ):
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if observation not in ("all", "state"):
            raise ValueError(f"observation must be all or state, got {observation!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        if render_mode and not env.spec.cameras:
            raise ValueError("render_mode rgb_array shows what a camera sees, and this environment has none")
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode must be NextStep or Disabled, not SameStep")
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and not isinstance(env, RestartingEnv):
            raise ValueError(
                f"the copies of this {type(env).__name__} can only begin together: give autoreset_mode='Disabled' and "
                "reset it when all are over"
            )
        self.env = env
        self.num_envs = env.spec.num_envs
        self.render_mode = render_mode
        self.observation = observation
        low, high = command_limits(env.spec.command)
        self.centre = (high + low) / 2 if normalise else np.zeros_like(low)
        self.half = (high - low) / 2 if normalise else np.ones_like(low)
        self.metadata = {
            "render_modes": ["rgb_array"] if env.spec.cameras else [],
            "render_fps": round(env.spec.control_hz),  # whole, as video encoders want it
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = _observation_space(env.spec, observation)
        self.single_action_space = spaces.Box(-1, 1, low.shape) if normalise else spaces.Box(low, high)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.unused = 0  # the first episode that was not played yet

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict | None = None) -> tuple[Seen, Info]:
        """Begin in all copies; seeds that are given one by one must follow each other."""
        first = self.unused if seed is None else int(seed if isinstance(seed, int | np.integer) else seed[0])
        self.seeds = np.arange(first, first + self.num_envs)
        if isinstance(seed, Sequence) and list(seed) != self.seeds.tolist():
            raise ValueError(f"seeds must be {self.num_envs} that follow each other, as [7, 8, 9], got {list(seed)}")
        if options and "reset_mask" in options:
            raise ValueError("reset_mask is not supported: copies begin together, or by themselves with NextStep")
        super().reset(seed=None if seed is None else first)
        self.unused = first + self.num_envs
        self.over = torch.zeros(self.num_envs, dtype=torch.bool)
        self.seen = self.env.reset(first)
        return self._shown(), self._info(np.zeros(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[Seen, np.ndarray, np.ndarray, np.ndarray, Info]:
        step = self._advance(self._commands(actions))
        reward = step.reward.double().masked_fill(self.over, 0).numpy()
        terminated, truncated, success = (x & ~self.over for x in (step.terminated, step.truncated, step.success))
        self.over = terminated | truncated | (self.over & (self.autoreset_mode is AutoresetMode.DISABLED))
        self.seen = step.obs
        return self._shown(), reward, terminated.numpy(), truncated.numpy(), self._info(success.numpy())

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:
        """What the first camera sees of each copy."""
        if self.render_mode is None:
            return None
        return tuple(picture.numpy().copy() for picture in self.seen.images[self.env.spec.cameras[0].name])

    def close_extras(self, **_: Any) -> None:
        self.env.close()

    def _advance(self, commands: Float[Tensor, "env action"]) -> Step:
        if self.autoreset_mode is AutoresetMode.DISABLED or not self.over.any():
            return self.env.step(commands)
        assert isinstance(self.env, RestartingEnv)  # or the constructor had refused it
        begins = self.over.numpy()
        self.seeds = self.seeds.copy()
        self.seeds[begins] = np.arange(self.unused, self.unused + begins.sum())
        self.unused += int(begins.sum())
        orders = zip(begins, self.seeds.tolist(), commands, strict=True)
        return self.env.step_or_reset([seed if begin else command for begin, seed, command in orders])

    def _commands(self, actions: np.ndarray) -> Float[Tensor, "env action"]:
        numbers = np.asarray(actions, dtype=np.float32)
        if numbers.shape != self.action_space.shape or not np.isfinite(numbers).all():
            raise ValueError(f"actions must be finite and of shape {self.action_space.shape}, got {actions!r}")
        return torch.from_numpy(self.centre + self.half * numbers)

    def _shown(self) -> Seen:
        proprio = self.seen.proprio.float().numpy().copy()
        if self.observation == "state":
            return proprio
        pictures = {x.name: self.seen.images[x.name].numpy().copy() for x in self.env.spec.cameras}
        return {**pictures, "proprio": proprio}

    def _info(self, success: np.ndarray) -> Info:
        texts = np.array(self.seen.instruction, dtype=object)
        values = {"is_success": success, "instruction": texts, "seed": self.seeds.copy()}
        return {**values, **{f"_{key}": np.ones(self.num_envs, dtype=bool) for key in values}}


class Single(gymnasium.Env):
    """One copy as gymnasium's `Env`; everything else is as in `Batch`. Who uses it resets it.

    Several of these that are seeded with consecutive numbers come to play each other's episodes: a `Batch` does not.
    """

    def __init__(self, env: Env, **options: Any):
        if env.spec.num_envs != 1:
            raise ValueError(f"this is for one copy, not {env.spec.num_envs}; use Batch, or gymnasium.make_vec")
        self.batch = Batch(env, autoreset_mode=AutoresetMode.DISABLED, **options)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.metadata = {key: self.batch.metadata[key] for key in ("render_modes", "render_fps")}
        self.render_mode = self.batch.render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Seen, Info]:
        super().reset(seed=seed)
        seen, info = self.batch.reset(seed=seed, options=options)
        return _first(seen), _first_info(info)

    def step(self, action: np.ndarray) -> tuple[Seen, float, bool, bool, Info]:
        seen, reward, terminated, truncated, info = self.batch.step(np.asarray(action)[None])
        return _first(seen), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first_info(info)

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        pictures = self.batch.render()
        return pictures[0] if pictures else None

    def close(self) -> None:
        self.batch.close()


def command_limits(command: Command) -> tuple[Float[np.ndarray, " action"], Float[np.ndarray, " action"]]:
    """The lowest and highest useful value of each number of a command, in its units.

    Translation and rotation are limited by their norm, so the corners of this box are shortened by the environment. An
    absolute joint position has no limit of its own: one turn either way.
    """
    moves = command.size - 1
    if command.kind == "ee_delta":
        moves = min(command.size, 6)
        spans = [command.max_translation] * min(moves, 3) + [command.max_rotation] * (moves - 3)
    else:
        spans = [2 * math.pi if command.kind == "joint_position" else command.max_rotation] * moves
    if None in spans:
        raise ValueError(f"the command {command} has no limits, so it is not known what an action of 1 is")
    has_gripper = [1.0] * (command.size - moves)
    low = [-x for x in spans if x is not None] + [0.0] * len(has_gripper)
    return np.array(low, dtype=np.float32), np.array([*spans, *has_gripper], dtype=np.float32)


def make(config: str, num_envs: int, **options: Any) -> Env:
    """The environment of `configs/env/<config>.yaml`. Its constructor's own errors are raised as they are."""
    try:
        return instantiate(OmegaConf.load(f"{CONFIGS}/env/{config}.yaml"), num_envs=num_envs, **options)
    except InstantiationException as error:
        raise error.__cause__ or error from None


def make_single(
    config: str, observation: str = "all", normalise: bool = True, render_mode: str | None = None, **options: Any
) -> Single:
    """What `gymnasium.make` calls."""
    env = make(config, num_envs=1, **options)
    return Single(env, observation=observation, normalise=normalise, render_mode=render_mode)


def make_batch(
    config: str,
    num_envs: int,
    observation: str = "all",
    normalise: bool = True,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    **options: Any,
) -> Batch:
    """What `gymnasium.make_vec` calls."""
    env = make(config, num_envs, **options)
    return Batch(
        env, observation=observation, normalise=normalise, autoreset_mode=autoreset_mode, render_mode=render_mode
    )


def ids() -> dict[str, dict[str, str]]:
    """Every id, with the configuration it stands for and the option that names its task."""
    named: Any = OmegaConf.to_container(OmegaConf.load(f"{CONFIGS}/gymnasium.yaml"))
    found = {}
    for config in sorted(path.stem for path in Path(CONFIGS, "env").glob("*.yaml")):
        tasks = dict(named.get(config, {}))
        name = f"armature/{tasks.pop('name', config)}"
        found[name] = {"config": config}
        for option, values in tasks.items():
            found |= {f"{name}-{value}": {"config": config, option: value} for value in values}
    return found


def _observation_space(spec: EnvSpec, observation: str) -> spaces.Space:
    proprio = spaces.Box(-LARGEST, LARGEST, (spec.proprio_dim,))
    if observation == "state":
        return proprio
    pictures = {x.name: spaces.Box(0, 255, (x.height, x.width, 3), np.uint8) for x in spec.cameras}
    return spaces.Dict({**pictures, "proprio": proprio})


def _first(seen: Seen) -> Seen:
    if isinstance(seen, np.ndarray):
        return seen[0]
    return {name: value[0] for name, value in seen.items()}


def _first_info(info: Info) -> Info:
    plain = {name: values[0] for name, values in info.items() if not name.startswith("_")}
    return {**plain, "is_success": bool(plain["is_success"]), "seed": int(plain["seed"])}


for _id, _options in ids().items():
    gymnasium.register(
        _id, entry_point="vla.gymnasium:make_single", vector_entry_point="vla.gymnasium:make_batch", kwargs=_options
    )
