"""A Franka Research 3 with its hand, as numbers, and its kinematics.

Kinematics and limits are those of the maker's data sheet; masses and centres are rounded from the identification
published with franka_description, inertias those of rods of that mass; shapes are capsules and boxes of our own.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

HOME = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)
FLANGE = 0.107  # metres from joint 7 to the flange
TCP = 0.1034  # metres from the flange to between the finger tips, the hand turned by -45 degrees
HAND_MASS, FINGER_MASS, MAX_WIDTH = 0.7, 0.015, 0.08


@dataclass(frozen=True)
class Joint:
    """Where it is in the link before (metres, roll about x), its limits, and the link that it moves."""

    place: tuple[float | int, float | int, float | int]
    roll: float | int
    low: float | int
    high: float | int
    velocity: float | int  # rad/s
    effort: float | int  # Nm
    offset: float | int  # rad/s, and
    deceleration: float | int  # rad/s2: of the speed that may still be had before a limit
    mass: float | int
    centre: tuple[float | int, float | int, float | int]
    ends: tuple[float | int, float | int, float | int]  # of the capsule from the joint on
    radius: float = 0.055


RIGHT = math.pi / 2
JOINTS = (
    Joint((0, 0, 0.333), 0, -2.9007, 2.9007, 2.62, 87, 0.30, 6.0, 2.93, (0, -0.018, -0.039), (0, 0, -0.19), 0.06),
    Joint((0, 0, 0), -RIGHT, -1.8361, 1.8361, 2.62, 87, 0.20, 2.585, 2.94, (0.003, -0.074, 0.009), (0, -0.19, 0), 0.06),
    Joint((0, -0.316, 0), RIGHT, -2.9007, 2.9007, 2.62, 87, 0.20, 3.5, 2.24, (0.041, -0.005, -0.029), (0, 0, -0.12)),
    Joint((0.0825, 0, 0), RIGHT, -3.0770, -0.1169, 2.62, 87, 0.30, 4.0, 2.62, (-0.046, 0.063, -0.009), (-0.08, 0.1, 0)),
    Joint(
        (-0.0825, 0.384, 0),
        -RIGHT,
        -2.8763,
        2.8763,
        5.26,
        12,
        0.35,
        17.0,
        2.33,
        (-0.002, 0.029, -0.097),
        (0, 0.05, -0.2),
        0.05,
    ),
    Joint((0, 0, 0), RIGHT, 0.4398, 4.6216, 4.18, 12, 0.35, 5.5, 1.82, (0.06, -0.041, -0.01), (0.088, 0, 0), 0.05),
    Joint(
        (0.088, 0, 0), RIGHT, -3.0508, 3.0508, 5.26, 12, 0.35, 17.0, 0.63, (0.005, 0.009, -0.016), (0, 0, 0.06), 0.045
    ),
)
EFFORT = np.array([x.effort for x in JOINTS])
LOW, HIGH = np.array([x.low for x in JOINTS]), np.array([x.high for x in JOINTS])
VELOCITY = np.array([x.velocity for x in JOINTS])


def frames(q: Float[np.ndarray, "7"]) -> Float[np.ndarray, "8 4 4"]:
    """Poses in the base frame of the seven links, each turned by its joint, then of the point between finger tips."""
    found, pose = [], np.eye(4)
    for joint, angle in zip(JOINTS, q, strict=True):
        pose = pose @ _placed(joint.place, joint.roll, float(angle))
        found.append(pose)
    return np.stack([*found, pose @ _placed((0, 0, FLANGE + TCP), 0, -math.pi / 4)])


def jacobian(q: Float[np.ndarray, "7"]) -> Float[np.ndarray, "6 7"]:
    """Velocity of the point between the finger tips (m/s, then rad/s, base frame) per rad/s of each joint."""
    links = frames(q)
    axes, places = links[:7, :3, 2], links[:7, :3, 3]
    return np.concatenate([np.cross(axes, links[7, :3, 3] - places), axes], axis=1).T


def _placed(
    place: tuple[float | int, float | int, float | int], roll: float | int, yaw: float | int
) -> Float[np.ndarray, "4 4"]:
    """A pose at `place`, turned about x by `roll`, then about its own z by `yaw`."""
    (sr, cr), (sy, cy) = ((math.sin(x), math.cos(x)) for x in (roll, yaw))
    x, y, z = place
    return np.array([[cy, -sy, 0, x], [cr * sy, cr * cy, -sr, y], [sr * sy, sr * cy, cr, z], [0, 0, 0, 1]])
