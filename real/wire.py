"""The bytes of the Franka Control Interface, versions 10 (Franka Research 3) and 5 (Panda).

All is little-endian and packed; matrices are column-major 4x4. A robot listens on TCP 1337 for commands and sends its
state a thousand times a second by UDP; its gripper does the same on 1338, less often. Layouts as in libfranka-common
(Apache-2.0), seen from clients that ran.
"""

import struct
from enum import IntEnum

import numpy as np

ROBOT_PORT, GRIPPER_PORT = 1337, 1338
GRIPPER_VERSION = 3
VERSIONS = (10, 5)

HEADER = struct.Struct("<III")  # command, its number, size with this header
GRIPPER_HEADER = struct.Struct("<HII")
CONNECT = struct.Struct("<HH")  # version, UDP port of the client
CONNECTED = struct.Struct("<BH")  # status, version
GRIPPER_CONNECTED = struct.Struct("<HH")
MOVE = {10: struct.Struct("<II6d?7d"), 5: struct.Struct("<II6d")}  # controller, generator, deviations, (async, limits)
COLLISION_BEHAVIOR = struct.Struct("<52d")  # lower and upper torques, twice, then forces, twice
GRASP = struct.Struct("<5d")  # width, inner and outer tolerance, speed, force
GRIPPER_MOVE = struct.Struct("<2d")  # width, speed

CONNECT_ID = 0
_MOTION = ["Connect", "Move", "StopMove"]
_SETTERS = [
    "SetCollisionBehavior",
    "SetJointImpedance",
    "SetCartesianImpedance",
    "SetGuidingMode",
    "SetEEToK",
    "SetNEToEE",
    "SetLoad",
]
COMMANDS = {
    10: [*_MOTION, *_SETTERS, "AutomaticErrorRecovery", "GetRobotModel"],
    5: [*_MOTION, "GetCartesianLimit", *_SETTERS, "SetFilters", "AutomaticErrorRecovery", "LoadModelLibrary"],
}
GRIPPER_COMMANDS = ["Connect", "Homing", "Grasp", "Move", "Stop"]


class Controller(IntEnum):
    JOINT_IMPEDANCE, CARTESIAN_IMPEDANCE, EXTERNAL, OTHER = range(4)


class Generator(IntEnum):
    """What moves the robot, as a state tells it; a Move command counts from JOINT_POSITION = 0."""

    IDLE, JOINT_POSITION, JOINT_VELOCITY, CARTESIAN_POSITION, CARTESIAN_VELOCITY, NONE = range(6)


class Mode(IntEnum):
    OTHER, IDLE, MOVE, GUIDING, REFLEX, USER_STOPPED, RECOVERY = range(7)


class GripperStatus(IntEnum):
    SUCCESS, FAIL, UNSUCCESSFUL, ABORTED = range(4)


SUCCESS = 0  # of any command
NOT_POSSIBLE = 1  # of a setter
_MOVE_STATUS = [
    "SUCCESS",
    "MOTION_STARTED",
    "PREEMPTED",
    "PREEMPTED_SAFETY",
    "REJECTED_SAFETY",
    "NOT_POSSIBLE",
    "SINGULAR_START",
    "INVALID_ARGUMENT",
    "REFLEX_ABORTED",
    "EMERGENCY_ABORTED",
    "INPUT_ERROR_ABORTED",
    "ABORTED",
]
MOVE_STATUS = {  # name to number
    10: {name: i for i, name in enumerate(_MOVE_STATUS)},
    5: {name: i for i, name in enumerate(x for x in _MOVE_STATUS if not x.endswith("SAFETY"))},
}

ERRORS = [
    "joint_position_limits_violation",
    "cartesian_position_limits_violation",
    "self_collision_avoidance_violation",
    "joint_velocity_violation",
    "cartesian_velocity_violation",
    "force_control_safety_violation",
    "joint_reflex",
    "cartesian_reflex",
    "max_goal_pose_deviation_violation",
    "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation",
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid",
    "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation",
    "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity",
    "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid",
    "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent",
    "communication_constraints_violation",
    "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame",
    "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning",
    "tau_j_range_violation",
    "instability_detected",
    "joint_move_in_wrong_direction",
    "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation",
    "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
]


def state_type(version: int) -> np.dtype:
    """The robot's state: single precision from version 10 on, double before."""
    number = "<f4" if version >= 10 else "<f8"
    shaped = [
        *(("O_T_EE", 16), ("O_T_EE_d", 16), ("F_T_EE", 16), ("EE_T_K", 16), ("F_T_NE", 16), ("NE_T_EE", 16)),
        *(("m_ee", 1), ("I_ee", 9), ("F_x_Cee", 3), ("m_load", 1), ("I_load", 9), ("F_x_Cload", 3)),
        *(("elbow", 2), ("elbow_d", 2), ("tau_J", 7), ("tau_J_d", 7), ("dtau_J", 7)),
        *(("q", 7), ("q_d", 7), ("dq", 7), ("dq_d", 7), ("ddq_d", 7)),
        *(("joint_contact", 7), ("cartesian_contact", 6), ("joint_collision", 7), ("cartesian_collision", 6)),
        *(("tau_ext_hat_filtered", 7), ("O_F_ext_hat_K", 6), ("K_F_ext_hat_K", 6), ("O_dP_EE_d", 6), ("O_ddP_O", 3)),
        *(("elbow_c", 2), ("delbow_c", 2), ("ddelbow_c", 2), ("O_T_EE_c", 16), ("O_dP_EE_c", 6), ("O_ddP_EE_c", 6)),
        *(("theta", 7), ("dtheta", 7)),
    ]
    if version >= 10:
        shaped += [("accelerometer_top", 18), ("accelerometer_bottom", 18)]
    numbers = [(name, number, (n,)) for name, n in shaped]
    end = [
        *(("motion_generator_mode", "u1"), ("controller_mode", "u1")),
        *(("errors", "u1", (len(ERRORS),)), ("reflex_reason", "u1", (len(ERRORS),))),
        *(("robot_mode", "u1"), ("control_command_success_rate", number)),
    ]
    return np.dtype([("message_id", "<u8"), *numbers, *end])


def command_type(version: int) -> np.dtype:
    """What a client answers to a state with, a thousand times a second while it moves the robot."""
    fields = [
        ("message_id", "<u8"),
        *((name, "<f8", (n,)) for name, n in (("q_c", 7), ("dq_c", 7), ("O_T_EE_c", 16), ("O_dP_EE_c", 6))),
        *(("elbow_c", "<f8", (2,)), ("valid_elbow", "?"), ("motion_finished", "?"), ("tau_J_d", "<f8", (7,))),
    ]
    return np.dtype([*fields, *([("torque_finished", "?")] if version >= 10 else [])])


STATE = {version: state_type(version) for version in VERSIONS}
COMMAND = {version: command_type(version) for version in VERSIONS}
GRIPPER_STATE = np.dtype(
    [("message_id", "<u4"), ("width", "<f8"), ("max_width", "<f8"), ("is_grasped", "?"), ("temperature", "<u2")]
)
