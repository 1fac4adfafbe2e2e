"""What the robot itself does not put up with: collisions always, and on demand motion outside the data sheet's limits.

Limits are those of the maker for a Franka Research 3, as in `franka/rate_limiting.h` of libfranka 0.21 (Apache-2.0) and
https://frankarobotics.github.io/docs/control_parameters.html. A commanded motion is differentiated over a millisecond:
too much acceleration is called a discontinuity of velocity, too much jerk one of acceleration.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from real import fr3
from real.twin.arm import DT, Arm
from real.wire import COLLISION_BEHAVIOR, Generator

COLLISION = (20.0, 20.0, 18.0, 18.0, 16.0, 14.0, 12.0), (20.0, 20.0, 20.0, 25.0, 25.0, 25.0)  # Nm; N and Nm
ACCELERATION, JERK = 10.0, 5000.0  # rad/s2, rad/s3 of every joint
TOOL = ((3.0, 9.0, 4500.0), (2.5, 17.0, 8500.0))  # m/s, m/s2, m/s3; rad/s, rad/s2, rad/s3
TORQUE_RATE = 1000.0  # Nm/s
JOINT = (Generator.JOINT_POSITION, Generator.JOINT_VELOCITY)
CARTESIAN = (Generator.CARTESIAN_POSITION, Generator.CARTESIAN_VELOCITY)


@dataclass
class Watch:
    """Told of every millisecond in which a client moves the arm; says what reflexes it sets off, if any.

    Without `limits` only collisions do.
    """

    limits: bool = False
    torque: Float[np.ndarray, "7"] = field(default_factory=lambda: np.array(COLLISION[0]))  # Nm, and
    force: Float[np.ndarray, "6"] = field(default_factory=lambda: np.array(COLLISION[1]))  # N and Nm: of a collision
    joints_before: Float[np.ndarray, "7"] = field(default_factory=lambda: np.zeros(7))  # rad/s2 that were commanded
    tool_before: Float[np.ndarray, "6"] = field(default_factory=lambda: np.zeros(6))  # m/s2 and rad/s2
    torque_before: Float[np.ndarray, "7"] | None = None

    def set_collision_behavior(self, body: bytes) -> None:
        numbers = COLLISION_BEHAVIOR.unpack(body)
        self.torque, self.force = np.array(numbers[21:28]), np.array(numbers[46:52])  # upper ones, not accelerating

    def begin(self) -> None:
        """A motion begins, from rest."""
        self.joints_before, self.tool_before, self.torque_before = np.zeros(7), np.zeros(6), None

    def moved(self, arm: Arm) -> list[str]:
        """Of the arm as it is."""
        if (np.abs(arm.tau_external) > self.torque).any():
            return ["joint_reflex"]
        if (np.abs(arm.force) > self.force).any():
            return ["cartesian_reflex"]
        if self.limits and (((q := arm.q) < fr3.LOW) | (q > fr3.HIGH)).any():
            return ["joint_position_limits_violation"]
        if self.limits and (np.abs(arm.dq) > fr3.VELOCITY).any():
            return ["joint_velocity_violation"]
        return []

    def commanded(self, generator: Generator, arm: Arm, torque: Float[np.ndarray, "7"] | None) -> list[str]:
        """Of the motion, or the torque (Nm), that the client has just asked for."""
        if not self.limits:
            return []
        found: list[str] = []
        if generator in JOINT:
            found += [f"joint_motion_generator_{x}" for x in self._joints(arm)]
        elif generator in CARTESIAN:
            found += [f"cartesian_motion_generator_{x}" for x in self._tool(arm)]
            found += [f"cartesian_motion_generator_joint_{x}" for x in self._joints(arm)]
        if torque is not None:
            before, self.torque_before = self.torque_before, torque.copy()
            if before is not None and (np.abs(torque - before) > TORQUE_RATE * DT).any():
                found.append("controller_torque_discontinuity")
        self.joints_before, self.tool_before = arm.target.ddq, arm.acceleration_c
        return found

    def _joints(self, arm: Arm) -> list[str]:
        target = arm.target
        wrong = {
            "position_limits_violation": (target.q < fr3.LOW) | (target.q > fr3.HIGH),
            "velocity_limits_violation": np.abs(target.dq) > fr3.VELOCITY,
            "velocity_discontinuity": np.abs(target.ddq) > ACCELERATION,
            "acceleration_discontinuity": np.abs(target.ddq - self.joints_before) > JERK * DT,
        }
        return [name for name, joints in wrong.items() if joints.any()]

    def _tool(self, arm: Arm) -> list[str]:
        jerk = (arm.acceleration_c - self.tool_before) / DT
        names = ("velocity_limits_violation", "velocity_discontinuity", "acceleration_discontinuity")
        found = []
        for i, (name, vector) in enumerate(zip(names, (arm.twist_c, arm.acceleration_c, jerk), strict=True)):
            if any(np.linalg.norm(part) > most[i] for part, most in zip((vector[:3], vector[3:]), TOOL, strict=True)):
                found.append(name)
        return found
