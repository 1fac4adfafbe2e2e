"""A person who moves a robot from a page: what they push is a command, and silence is none."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla import geometry
from vla.types import Action, Actor, EnvSpec, Observation, Seeded

SILENCE = 0.25  # seconds after which what was pushed last does not count any more
HOLDS_ON = 0.5  # seconds after their last push in which a person still decides instead of the policy
INPUT = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper", "speed", "tool_frame", "clutch", "heard")
STILL = 1e-3  # metres or radians of a leader arm's step, below which it is not being moved
HUMAN, POLICY = "human", "policy"
IDLE = "idle"  # a person decides, but neither pushes anything nor has just gripped: nothing to imitate


Pose = Float[Tensor, "1 7"]


@dataclass(frozen=True)
class Input:
    """What is pushed: shares from -1 to 1 of the longest step, along and about x, y and z of the base or the tool.

    With `clutch` nothing moves. `heard` is when it came, in seconds of the host's monotonic clock.
    """

    axes: tuple[float, ...] = (0.0,) * 6
    speed: float = 1.0
    tool_frame: bool = False
    clutch: bool = False
    heard: float = -math.inf

    def __post_init__(self) -> None:
        if len(self.axes) != 6 or not all(abs(x) <= 1 for x in self.axes):
            raise ValueError(f"axes are six numbers from -1 to 1, got {self.axes}")
        if not 0 < self.speed <= 1:
            raise ValueError(f"speed is a share up to 1, got {self.speed}")

    @classmethod
    def read(cls, message: Mapping[str, Any], heard: float) -> "Input":
        """ValueError for what is none."""
        try:
            axes, speed = tuple(float(x) for x in message["axes"]), float(message["speed"])
            return cls(axes, speed, bool(message["tool_frame"]), bool(message["clutch"]), heard)
        except (KeyError, TypeError) as error:
            raise ValueError(f"an input has axes, speed, tool_frame and clutch: {error}") from error

    @property
    def pushes(self) -> bool:
        return not self.clutch and any(self.axes)

    def numbers(self, gripper: float, now: float) -> list[float]:
        """Those of INPUT; `heard` is how long ago, and a day where nothing was ever heard."""
        flags = float(self.tool_frame), float(self.clutch)
        return [*self.axes, gripper, self.speed, *flags, min(now - self.heard, 86_400.0)]


class Person:
    """Whoever is at the page, as an actor; with a `policy` they take over from it while they push, and after `take`.

    The gripper stays as it is, whoever had it last, until somebody says otherwise. `source` and `beside` are of the
    decision made last. Raises ValueError for commands that a person
    cannot push, or more than one robot.
    """

    def __init__(self, spec: EnvSpec, policy: Actor | None = None, clock: Callable[[], float] = time.monotonic):
        if spec.num_envs != 1 or spec.command.kind != "ee_delta" or spec.command.max_translation is None:
            raise ValueError(
                f"a person moves the tool of one robot: ee_delta commands, env.num_envs=1; got {spec.command}, "
                f"{spec.num_envs} copies"
            )
        self.spec, self.policy, self.clock = spec, policy, clock
        self.input = self.held = Input()  # from the page, and from a device in the hand
        self.leader: tuple[Pose, float, float] | None = None  # where an arm in the hand is, its gripper, since when
        self.followed: Pose | None = None  # how far along it is followed
        self.opening = 1.0  # of the gripper, as it was decided last
        self.taken = policy is None  # the person decides, whether they push or not
        self.pushed = self.gripped = -math.inf
        self.planned: list[Tensor] = []  # what is left of the policy's chunk
        self.source = HUMAN
        self.kept: dict[str, Tensor] = {}
        self.meant = torch.zeros(1, spec.action_dim)  # what the policy would do
        self.can_turn = any(part == "rotation" for part, _ in spec.proprio)

    def hear(self, message: Mapping[str, Any]) -> None:
        """What a page sends, from any thread. ValueError for what is no input."""
        self.input = Input.read(message, self.clock())

    def hold(self, axes: Sequence[float], *, clutch: bool = False) -> None:
        """What a device in the person's hand says, from any thread; it counts while the page is there, at its speed."""
        self.held = Input(tuple(axes), clutch=clutch, heard=self.clock())

    def lead(self, pose: Pose, opening: float) -> None:
        """Where a leader arm in the person's hand is (position and quaternion, base frame), from any thread.

        It is followed from where it is taken up: after the clutch, after silence, and once the page is there. A step
        goes as far as commands may; what is left of the way comes next.
        """
        self.leader = pose, min(1.0, max(0.0, opening)), self.clock()

    def grip(self, opening: float) -> None:
        """From 0, closed, to 1. ValueError for anything else."""
        if not 0 <= opening <= 1:
            raise ValueError(f"opening is from 0 to 1, got {opening}")
        self.opening, self.pushed = opening, self.clock()
        self.gripped = self.pushed

    def silence(self) -> None:
        """Nobody is there any more."""
        self.input = self.held = Input()
        self.leader = None

    def take(self, *, over: bool) -> None:
        """Take over from the policy, or give it back."""
        self.taken = over or self.policy is None

    def begin(self, seed: int) -> None:
        self.planned, self.opening, self.pushed, self.gripped = [], 1.0, -math.inf, -math.inf
        self.taken = self.policy is None
        if isinstance(self.policy, Seeded):
            self.policy.begin(seed)

    def act(self, obs: Observation) -> Action:
        now = self.clock()
        given = self._given(now)
        heard = now - given.heard <= SILENCE
        led = self._led(now) if heard and not given.clutch else self._let_go()
        pushes = heard and (given.pushes or bool((led[0, :6].abs() > STILL).any()))
        self.pushed = now if pushes else self.pushed
        human = self.taken or now - self.pushed < HOLDS_ON
        command = self._command(given if heard else Input(), obs, led)
        acts = pushes or now - self.gripped < HOLDS_ON
        self.source = POLICY if not human else HUMAN if acts else IDLE
        self.kept = {"operator.input": torch.tensor([given.numbers(self.opening, now)], dtype=torch.float64)}
        if self.policy is not None:
            self.meant = self._policy(obs, over=human)
            self.kept["policy.action"] = self.meant.double()
            if not human:
                command = self.meant
                self.opening = command[0, -1].item() if self.spec.action_dim == 7 else self.opening
        return Action(commands=command[:, None], log_prob=torch.zeros(1, 0), latent=TensorDict({}, [1]), batch_size=[1])

    def _given(self, now: float) -> Input:
        """What the page says, or what is in the hand where that pushes."""
        given, held = self.input, self.held
        if now - held.heard > SILENCE or not (any(held.axes) or held.clutch):
            return given
        return replace(given, axes=held.axes, clutch=held.clutch or given.clutch)

    def beside(self) -> Mapping[str, Tensor]:
        return self.kept

    def _policy(self, obs: Observation, *, over: bool) -> Float[Tensor, "1 action"]:
        """What it decides. While a person acts it looks anew at every step, as what it had planned is of no use."""
        assert self.policy is not None
        if over or not self.planned:
            self.planned = list(self.policy.act(obs).commands.unbind(1))
        return self.planned.pop(0)

    def _led(self, now: float) -> Float[Tensor, "1 7"]:
        """The next part of the way that a leader arm went."""
        if self.leader is None or now - self.leader[2] > SILENCE:
            return self._let_go()
        there, self.opening, _ = self.leader
        from_here = there if self.followed is None else self.followed
        step = geometry.limit_ee_delta(
            geometry.delta_between(from_here, there, torch.tensor([[self.opening]])), self.spec.command
        )
        self.followed = geometry.advance(from_here, from_here, step, (math.inf, math.inf))
        return step

    def _let_go(self) -> Float[Tensor, "1 7"]:
        self.followed = None
        return torch.zeros(1, 7)

    def _command(self, given: Input, obs: Observation, led: Float[Tensor, "1 7"]) -> Float[Tensor, "1 action"]:
        """Metres and radians in the base's frame."""
        share = 0.0 if given.clutch else given.speed
        axes = torch.tensor([given.axes], dtype=torch.float32)
        move, turn = (geometry.limit_norm(x, 1.0) * share for x in (axes[:, :3], axes[:, 3:]))
        if given.tool_frame and self.can_turn:
            tool = self._tool(obs)
            move, turn = geometry.rotate(tool, move), geometry.rotate(tool, turn)
        move, turn = move * (self.spec.command.max_translation or 0.0), turn * (self.spec.command.max_rotation or 0.0)
        command = torch.cat([move + led[:, :3], turn + led[:, 3:6], torch.tensor([[self.opening]])], -1)
        return command[:, : self.spec.action_dim]

    def _tool(self, obs: Observation) -> Float[Tensor, "1 4"]:
        """How the tool is turned, of the first two columns of its rotation matrix."""
        x, y = obs.proprio[:, self.spec.proprio_slice("rotation")].split(3, -1)
        return geometry.from_matrix(torch.stack([x, y, torch.linalg.cross(x, y)], -1))
