"""Our environments for LeRobot: `lerobot-eval --env.discover_packages_path=vla.lerobot_env --env.type=armature ..`.

LeRobot looks into what it discovers as into a package, so this is one.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from vla.gymnasium import Batch, Info


@EnvConfig.register_subclass("armature")
@dataclass
class ArmatureEnvConfig(EnvConfig):
    """`task` is an id of `vla.gymnasium` without `armature/`; `options` go to the environment's constructor.

    Commands are in the environment's own units and features named as in the datasets we write, so that what
    `lerobot-train` made of one of these runs as it is. `features` and `fps` are known once `create_envs` has made it.
    """

    task: str | None = "ManiSkill-PushCube-v1"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def gym_id(self) -> str:
        return f"vla.gymnasium:armature/{self.task}"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"normalise": False, **self.options}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """One batch. It steps as it wants to (`options` has its workers), so `use_async_envs` makes no difference."""
        batch = gymnasium.make_vec(
            self.gym_id,
            n_envs,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode="rgb_array",
            **self.gym_kwargs,
        )
        assert isinstance(batch, Batch)
        spec = batch.env.spec
        pictures = {f"{OBS_IMAGES}.{x.name}": (x.height, x.width, 3) for x in spec.cameras}
        self.fps = round(spec.control_hz)
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (spec.action_dim,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (spec.proprio_dim,)),
            **{name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in pictures.items()},
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE, **{name: name for name in pictures}}
        return {self.type: {0: Evaluated(batch, str(self.task))}}


class Evaluated(gymnasium.vector.VectorWrapper):
    """A batch that names what it shows as LeRobot does and answers what LeRobot asks of each copy."""

    env: Batch

    def __init__(self, env: Batch, task: str):
        super().__init__(env)
        self.task = task

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Info]:
        seen, info = self.env.reset(seed=seed, options=options)
        return _renamed(seen), info

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, Info]:
        seen, reward, terminated, truncated, info = self.env.step(actions)
        return _renamed(seen), reward, terminated, truncated, info

    def call(self, name: str) -> tuple[Any, ...]:
        """The attribute `name`, or the answer of that method, of each copy; AttributeError if there is none."""
        if name == "task_description":
            return tuple(self.env.seen.instruction)
        if name == "render":
            return self.env.render() or ()
        same = {"task": self.task, "_max_episode_steps": self.env.env.spec.max_steps}
        if name not in same:
            raise AttributeError(f"copies have no {name!r}, only {['task_description', 'render', *same]}")
        return (same[name],) * self.num_envs

    get_attr = call


def _renamed(seen: Any) -> dict[str, Any]:
    pictures = {name: value for name, value in seen.items() if name != "proprio"}
    return {"agent_pos": seen["proprio"], "pixels": pictures}
