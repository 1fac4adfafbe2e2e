"""What a robot may be asked: one object through which every command goes, and which only ever makes motions smaller."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from real import fr3

TINY = 1e-6  # rad
Pose = Float[np.ndarray, "7"]  # metres, quaternion x y z w
Vector = Float[np.ndarray, "_"]


class Fault(Exception):
    """The robot has stopped, or was stopped, for a reason that an operator must look at before it moves again."""


@dataclass(frozen=True)
class Limits:
    """SI units, base frame. What one step may do is told apart: it is part of what a command means."""

    low: Sequence[float | int] = (0.25, -0.45, 0.005)  # corners of the box that the point between the fingers stays in
    high: Sequence[float | int] = (0.75, 0.45, 0.70)
    acceleration: float | int = 6.0  # m/s2 by which the tool's commanded speed may grow
    angular_acceleration: float | int = 20.0  # rad/s2
    lead: float | int = 0.06  # m that the commanded pose may be ahead of the measured one: with the stiffness, a force
    angular_lead: float | int = 0.4  # rad
    joint_margin: float | int = 0.1  # rad that joints keep from their limits
    joint_speed: float | int = 0.25  # share of the joints' highest speed that a joint command may ask for
    joint_lead: float | int = 0.3  # rad that a commanded joint may be ahead of the measured one
    force: float | int = 40.0  # N at the tool, beyond which the robot is stopped
    gripper_deadband: float | int = 0.1  # of its opening, that it is not moved for

    def __post_init__(self) -> None:
        if (
            len(self.low) != 3
            or len(self.high) != 3
            or not all(a < b for a, b in zip(self.low, self.high, strict=True))
        ):
            raise ValueError(f"the workspace needs three numbers below three others, got {self.low} and {self.high}")
        wrong = [name for name, x in vars(self).items() if isinstance(x, int | float) and not 0 <= x < math.inf]
        if wrong:
            raise ValueError(f"limits must be finite and not negative: {', '.join(wrong)}")


@dataclass(frozen=True)
class Measured:
    """What a limit may depend on, as the robot has just told it."""

    q: Float[np.ndarray, "7"]  # rad
    pose: Pose  # of the point between the finger tips
    force: Float[np.ndarray, "3"]  # N at the tool, from outside


@dataclass(frozen=True)
class Limited:
    """What comes of a command: where to go (a pose, or joints in rad), how far open the gripper, and what was cut."""

    target: Vector
    gripper: float
    executed: Vector  # the command that would have led to `target` by itself
    cut: tuple[str, ...]  # the names of the limits that made it smaller


@dataclass
class Limiter:
    """Follows one robot: `begin` where it stands, then `pose` or `joints` for each command, `period` seconds apart.

    `translation` (m) and `rotation` (rad) bound one step. The commanded pose is what deltas add to.
    """

    limits: Limits
    period: float
    translation: float | int = 0.05
    rotation: float | int = 0.2
    target: Vector = field(default_factory=lambda: np.zeros(7))
    velocity: Vector = field(default_factory=lambda: np.zeros(6))  # of the target, m/s and rad/s, or rad/s of joints
    gripper: float = 1.0

    def begin(self, target: Vector, gripper: float) -> None:
        """At rest at a pose, or at joint angles (rad)."""
        self.target = np.array(target, float)
        self.velocity = np.zeros(6)
        self.gripper = gripper

    def pose(self, command: Float[np.ndarray, "7"], measured: Measured) -> Limited:
        """An `ee_delta` command. Fault if it is not finite, or something presses on the tool."""
        self._require_sound(command, measured)
        cut: list[str] = []
        move, turn = _shorter(command[:3], self.translation), _shorter(command[3:6], self.rotation)
        cut += ["step"] if not np.allclose(np.concatenate([move, turn]), command[:6], atol=1e-9) else []
        move, turn = self._no_faster(move, turn, cut)
        move, turn = self._not_far_ahead(move, turn, measured, cut)
        move = self._inside(move, cut)
        move, turn = self._clear_of_joint_limits(move, turn, measured, cut)
        self.velocity = np.concatenate([move, turn]) / self.period
        turned = Rotation.from_rotvec(turn) * Rotation.from_quat(self.target[3:])
        self.target = np.concatenate([self.target[:3] + move, turned.as_quat(canonical=True)])
        gripper = self._gripper(command[6], cut)
        return Limited(self.target.copy(), gripper, np.concatenate([move, turn, [gripper]]), tuple(cut))

    def joints(self, command: Float[np.ndarray, "8"], measured: Measured, *, delta: bool) -> Limited:
        """A `joint_delta` or `joint_position` command; each joint of a delta keeps to `rotation` per step."""
        self._require_sound(command, measured)
        before, cut = self.target, list[str]()
        asked = before + command[:7] if delta else command[:7]
        most = np.minimum(self.limits.joint_speed * fr3.VELOCITY * self.period, self.rotation if delta else np.inf)
        wanted = _cut(asked, before - most, before + most, "step", cut)
        lead, margin = self.limits.joint_lead, self.limits.joint_margin
        wanted = _cut(wanted, measured.q - lead, measured.q + lead, "lead", cut)
        low, high = np.minimum(fr3.LOW + margin, before), np.maximum(fr3.HIGH - margin, before)
        wanted = _cut(wanted, low, high, "joint limit", cut)
        if self._leaves_the_box(before, wanted):
            wanted = before.copy()
            cut.append("workspace")
        self.target = wanted
        gripper = self._gripper(command[7], cut)
        executed = wanted - before if delta else wanted
        return Limited(wanted.copy(), gripper, np.append(executed, gripper), tuple(cut))

    def _require_sound(self, command: Vector, measured: Measured) -> None:
        if not np.isfinite(command).all():
            raise Fault(f"a command is not finite: {np.array2string(command, precision=3)}")
        force = float(np.linalg.norm(measured.force))
        if not force <= self.limits.force:
            raise Fault(f"{force:.0f} N press on the tool, more than {self.limits.force:.0f}")

    def _no_faster(self, move: Vector, turn: Vector, cut: list[str]) -> tuple[Vector, Vector]:
        """Speed along the new direction grows by so much and no more; to slow down is never held up."""
        kept = []
        rates = self.limits.acceleration, self.limits.angular_acceleration
        for step, before, rate in zip((move, turn), (self.velocity[:3], self.velocity[3:]), rates, strict=True):
            length = float(np.linalg.norm(step))
            along = max(0.0, float(before @ step) / length) if length > 0 else 0.0
            kept.append(_shorter(step, (along + rate * self.period) * self.period))
        _note("acceleration", (move, turn), kept, cut)
        return kept[0], kept[1]

    def _not_far_ahead(self, move: Vector, turn: Vector, measured: Measured, cut: list[str]) -> tuple[Vector, Vector]:
        """Where it is sent stays near where it is; a step that comes nearer is always let through."""
        ahead = self.target[:3] - measured.pose[:3]
        rotation = Rotation.from_quat(self.target[3:]) * Rotation.from_quat(measured.pose[3:]).inv()
        turned = rotation.as_rotvec()
        kept = _within(ahead, move, self.limits.lead), _within(turned, turn, self.limits.angular_lead)
        _note("lead", (move, turn), kept, cut)
        return kept

    def _inside(self, move: Vector, cut: list[str]) -> Vector:
        """Each axis stops at the wall of the box; who is outside may only come back."""
        low, high = np.asarray(self.limits.low), np.asarray(self.limits.high)
        here = self.target[:3]
        wanted = np.clip(here + move, np.minimum(low, here), np.maximum(high, here))
        _note("workspace", (move,), (wanted - here,), cut)
        return wanted - here

    def _clear_of_joint_limits(
        self, move: Vector, turn: Vector, measured: Measured, cut: list[str]
    ) -> tuple[Vector, Vector]:
        """Nothing that would bring a joint into its margin, as far as the joints' rates tell."""
        jacobian = fr3.jacobian(measured.q)
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-4 * np.eye(6))
        ahead = self.target[:3] - measured.pose[:3]
        rotation = Rotation.from_quat(self.target[3:]) * Rotation.from_quat(measured.pose[3:]).inv()
        now = measured.q + inverse @ np.concatenate([ahead, rotation.as_rotvec()])
        change = inverse @ np.concatenate([move, turn])
        margin = self.limits.joint_margin
        low, high = fr3.LOW + margin, fr3.HIGH - margin
        worse = (now + change < low) & (change < -TINY) | (now + change > high) & (change > TINY)
        if worse.any():
            cut.append("joint limit")
            return np.zeros(3), np.zeros(3)
        return move, turn

    def _leaves_the_box(self, before: Vector, wanted: Vector) -> bool:
        low, high = np.asarray(self.limits.low), np.asarray(self.limits.high)
        outside = [np.maximum(low - x, 0) + np.maximum(x - high, 0) for x in (_tool(before), _tool(wanted))]
        return bool((outside[1] > outside[0] + 1e-9).any())

    def _gripper(self, asked: float, cut: list[str]) -> float:
        wanted = min(max(float(asked), 0.0), 1.0)
        cut += ["gripper"] if wanted != asked else []
        if abs(wanted - self.gripper) > self.limits.gripper_deadband or wanted in (0.0, 1.0):
            self.gripper = wanted
        return self.gripper


def _tool(q: Float[np.ndarray, "7"]) -> Float[np.ndarray, "3"]:
    return fr3.frames(q)[7, :3, 3]


def _shorter(vector: Vector, length: float) -> Vector:
    norm = float(np.linalg.norm(vector))
    return vector * (length / norm) if norm > length else vector.copy()


def _within(here: Vector, step: Vector, radius: float) -> Vector:
    """As much of a step as stays in a ball about zero, or comes nearer to it from outside."""
    if np.linalg.norm(here + step) <= max(radius, float(np.linalg.norm(here))):
        return step
    a, b, c = float(step @ step), float(here @ step), float(here @ here) - radius**2
    if c >= 0:  # outside already, and the step leads on outwards
        return np.zeros_like(step)
    return step * ((-b + math.sqrt(b * b - a * c)) / a)


def _cut(wanted: Vector, low: Vector, high: Vector, name: str, cut: list[str]) -> Vector:
    kept = np.clip(wanted, low, high)
    _note(name, (wanted,), (kept,), cut)
    return kept


def _note(name: str, wanted: Sequence[Vector], kept: Sequence[Vector], cut: list[str]) -> None:
    if not all(np.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(wanted, kept, strict=True)):
        cut.append(name)
