"""The words of the platform: every other module speaks in these types.

Axes always in this order: time, env, horizon, action. A chunk is `[env, horizon, action]`. Units are m, rad, s and N.
Quaternions are x y z w. Images are uint8 RGB, height x width x 3, upright. Gripper: 0 closed, 1 open.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from tensordict import TensorClass, TensorDict
from torch import Tensor

Metrics = dict[str, float]
CommandKind = Literal["ee_delta", "joint_position", "joint_delta"]


class Observation(TensorClass):
    """What a policy sees at one decision; the same fields in simulation and on the robot.

    `privileged` is what only a simulator knows: the pose of each object by name (position in metres and quaternion, in
    the robot's base frame), with the tool's as `tcp` and `commanded`, and its opening as `gripper` (0 to 1). Scripted
    experts, critics and labels may read it; a policy never does, and a robot has none.
    """

    images: TensorDict  # camera name -> UInt8[Tensor, "*batch height width 3"]
    proprio: Float[Tensor, "*batch proprio"]
    instruction: list[str]  # one text per env
    privileged: TensorDict | None = None  # name -> Float[Tensor, "*batch 7"]


class Action(TensorClass):
    """A decision: a chunk of commands, with what the policy needs to score the same decision again.

    A policy is a distribution over `latent` and a fixed decoder from `latent` to `commands`: a Gaussian's latent is
    its sample, a token head's its tokens, a diffusion head's its chain. `log_prob` has one entry per factor of that
    distribution, those of the first command first, as many for each; a deterministic policy has none.
    """

    commands: Float[Tensor, "*batch horizon action"]  # in the environment's units
    log_prob: Float[Tensor, "*batch factors"]
    latent: TensorDict


class Step(TensorClass):
    """What one command, or one chunk, led to. `obs` is always the true next observation, never a reset one.

    `executed` is the command that was really applied (after clipping, say). For a chunk it has a horizon axis, whose
    first `num_steps` entries were executed; the rest are zero, `reward` is their sum. `success` is whether the task was
    solved at any command of the chunk, `success_at_end` whether it was after the last one executed. `failed` says that
    the simulator, not the policy, failed: the episode is over, `truncated` too, and `obs` was last seen of it.
    """

    obs: Observation
    reward: Float[Tensor, "*batch"]
    success: Bool[Tensor, "*batch"]
    terminated: Bool[Tensor, "*batch"]
    truncated: Bool[Tensor, "*batch"]
    executed: Float[Tensor, "... action"]  # [*batch, action] of a command, [*batch, horizon, action] of a chunk
    success_at_end: Bool[Tensor, "*batch"] | None = None  # None: the same as `success`
    steps_to_success: Int[Tensor, "*batch"] | None = None  # commands up to the first success, that one included; or 0
    num_steps: Int[Tensor, "*batch"] | None = None  # commands executed; None in the answer to a single command
    rewards: Float[Tensor, "*batch horizon"] | None = None  # of each command, where `reward` is their sum
    failed: Bool[Tensor, "*batch"] | None = None  # None: this environment never tells


class Rollout(TensorClass):
    """Episodes as columns `[time, env]`: `action[t]`, taken at `obs[t]`, earned `reward[t]`.

    The last row holds only the observation in which the last decision ended. `valid` is False there and after an
    episode's end, so `obs[t + 1]` is what followed `obs[t]` wherever valid. `terminated` says that the task ended; an
    episode whose last valid row is not terminated ran out of time. A `failed` column was lost: no row of it is valid.
    """

    obs: Observation
    action: Action
    reward: Float[Tensor, "*batch"]
    success: Bool[Tensor, "*batch"]
    terminated: Bool[Tensor, "*batch"]
    valid: Bool[Tensor, "*batch"]
    executed: Float[Tensor, "*batch horizon action"] | None = None  # what was applied of `action.commands`
    success_at_end: Bool[Tensor, "*batch"] | None = None  # None: the same as `success`
    steps_to_success: Int[Tensor, "*batch"] | None = None  # of this decision's commands; None: not told
    num_steps: Int[Tensor, "*batch"] | None = None  # commands executed in this decision
    rewards: Float[Tensor, "*batch horizon"] | None = None  # what each of them earned; None: not told
    failed: Bool[Tensor, "*batch"] | None = None  # the same in every row of a column
    version: Int[Tensor, "*batch"] | None = None  # how many updates the policy that played had had

    def episodes(self) -> list["Rollout"]:
        """The columns one by one, each with the row it ended in and nothing after."""
        return [self[: n + 1, i] for i, n in enumerate(self.valid.sum(0).tolist())]

    def lost(self) -> list[int]:
        """The `failed` columns."""
        return [] if self.failed is None else self.failed[0].nonzero().squeeze(-1).tolist()


@dataclass(frozen=True)
class Command:
    """The meaning of the numbers in a command. Two sides that disagree on it must not be connected.

    `ee_delta` is (dx, dy, dz in metres, rotation vector in radians, gripper), added to the *commanded* pose in the
    robot's base frame. Joint kinds are radians per joint, then the gripper. `max_translation` and `max_rotation`
    bound the norms of one step's motion (`joint_position`: none), in metres and radians.
    """

    kind: CommandKind
    size: int
    max_translation: float | None = None
    max_rotation: float | None = None
    frame: str = "base"
    gripper: str = "0 closed, 1 open"

    def __str__(self) -> str:
        limits = f"max {self.max_translation} m, {self.max_rotation} rad per step"
        return f"{self.kind}[{self.size}] in the {self.frame} frame, {limits}, gripper {self.gripper}"


@dataclass(frozen=True)
class Camera:
    """A camera's name and picture size in pixels; intrinsics (3x3, pixels) and pose in the base frame where known.

    The pose (x y z in metres, quaternion) is of the optical frame: z into the scene, x right, y down in the picture.
    """

    name: str
    height: int
    width: int
    intrinsics: tuple[tuple[float, ...], ...] | None = None
    pose: tuple[float, ...] | None = None


@dataclass(frozen=True)
class EnvSpec:
    """What an environment shows and what it takes. `proprio` lists the named parts of `Observation.proprio`."""

    num_envs: int
    control_hz: float
    max_steps: int
    cameras: tuple[Camera, ...]
    proprio: tuple[tuple[str, int], ...]
    command: Command

    @property
    def action_dim(self) -> int:
        return self.command.size

    @property
    def proprio_dim(self) -> int:
        return sum(size for _, size in self.proprio)

    def proprio_slice(self, name: str) -> slice:
        """Where the part `name` lies in `Observation.proprio`; KeyError names what there is."""
        start = 0
        for part, size in self.proprio:
            if part == name:
                return slice(start, start + size)
            start += size
        raise KeyError(f"proprio has no part {name!r}, only {[part for part, _ in self.proprio]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "EnvSpec":
        cameras = tuple(Camera(**{k: _tuples(v) for k, v in camera.items()}) for camera in plain["cameras"])
        proprio = tuple((name, size) for name, size in plain["proprio"])
        command = Command(**plain["command"])
        return cls(**{**plain, "cameras": cameras, "proprio": proprio, "command": command})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list | tuple) else value


def require_agreement(trained: EnvSpec, env: EnvSpec) -> None:
    """Raise ValueError naming both sides unless a policy made for `trained` means the same as `env` understands.

    The number of environments, time limit and camera poses may differ; command, rate, cameras and proprio may not.
    """
    sides = {
        "command": (trained.command, env.command),
        "control rate in Hz": (trained.control_hz, env.control_hz),
        "cameras": tuple([(c.name, c.height, c.width) for c in side.cameras] for side in (trained, env)),
        "proprio": (trained.proprio, env.proprio),
    }
    differing = {what: (ours, theirs) for what, (ours, theirs) in sides.items() if ours != theirs}
    told = [f"{what}: the policy was made for {a}, the environment has {b}" for what, (a, b) in differing.items()]
    if differing:
        raise ValueError(
            f"policy and environment disagree on the {'; on the '.join(told)}. Give the environment the settings the "
            "policy was trained with, or train another policy."
        )


@runtime_checkable
class Env(Protocol):
    """`num_envs` copies of one task stepping in lockstep; a real robot is one copy.

    `reset(seed)` starts environment i from episode `seed + i`, so the same episodes can be played with any number of
    copies. There is no auto-reset: after an episode ends its column may do anything until `reset`. With the option
    `ends_on_success=False` a success does not end an episode. An environment may have `fingerprint()`, texts by name:
    what its results depend on besides its options (versions, physics, drawing, files); `task` names what it plays.
    """

    spec: EnvSpec

    def reset(self, seed: int) -> Observation: ...
    def step(self, command: Float[Tensor, "env action"]) -> Step: ...
    def close(self) -> None: ...


@runtime_checkable
class ChunkEnv(Env, Protocol):
    """An environment that plays a whole chunk in one call, rendering only its last frame."""

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step: ...


@runtime_checkable
class LazyEnv(Env, Protocol):
    """An environment that need not make all its copies: `first` is that of the first so many, and makes no others."""

    def first(self, num_envs: int) -> Env: ...


@runtime_checkable
class RestartingEnv(Env, Protocol):
    """An environment whose copies can begin a new episode while the others go on."""

    def step_or_reset(self, orders: list[Float[Tensor, " action"] | int]) -> Step:
        """One order per copy: a command to execute, or the seed of an episode to begin; that earns and ends nothing."""
        ...


@runtime_checkable
class Replayable(Env, Protocol):
    """A simulator that plays demonstrations of other programs: from its own states, by its own controllers' actions.

    `restore` starts an episode from a state as the simulator's own recorder stores it; a batch takes one per copy.
    `translate` says which command goes where the simulator's `controller` (with `settings`) would go from here. It is
    asked once per step.
    """

    def restore(self, state: Any) -> Observation: ...
    def translate(
        self, action: Float[Tensor, "env native"], controller: str, settings: Mapping[str, Any]
    ) -> Float[Tensor, "env action"]: ...


@runtime_checkable
class Actor(Protocol):
    """Anything that decides: a policy, a scripted expert, a replay, a human at a SpaceMouse."""

    def act(self, obs: Observation) -> Action: ...


@runtime_checkable
class Seeded(Actor, Protocol):
    """An actor that draws for each episode by itself; before a rollout it is told the seed of its first episode."""

    def begin(self, seed: int) -> None: ...


@runtime_checkable
class Stochastic(Actor, Protocol):
    """An actor whose decisions can be scored, differentiably: what RL and distillation need."""

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch factors"]: ...


@runtime_checkable
class Imitator(Actor, Protocol):
    """An actor that learns from chunks alone: what SFT needs. `padded` commands do not count."""

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]: ...


@runtime_checkable
class RewardModel(Protocol):
    """Scores finished episodes, so it may look at the whole video and the instruction."""

    def __call__(self, rollout: Rollout) -> Float[Tensor, "time env"]: ...


@runtime_checkable
class Algorithm(Protocol):
    """How episodes change a policy. It owns whatever else it trains or needs: optimizer, critic, teacher."""

    parts: dict[str, Any]  # what a checkpoint must hold; each has `state_dict` and `load_state_dict`

    def update(self, rollout: Rollout) -> Metrics: ...
