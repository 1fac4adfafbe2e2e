"""What the twin tells of itself every millisecond."""

from typing import TYPE_CHECKING

import numpy as np

from real import fr3, wire
from real.twin.arm import DT
from real.wire import Controller, Generator

if TYPE_CHECKING:
    from real.twin.server import Twin

UNIT = np.eye(4).flatten(order="F")
HAND = np.eye(4)  # from the flange to between the finger tips
HAND[:3, :3] = [[np.sqrt(0.5), np.sqrt(0.5), 0], [-np.sqrt(0.5), np.sqrt(0.5), 0], [0, 0, 1]]
HAND[2, 3] = fr3.TCP
FIXED = {
    **dict.fromkeys(("F_T_EE", "F_T_NE"), HAND.flatten(order="F")),
    **dict.fromkeys(("EE_T_K", "NE_T_EE"), UNIT),
    "m_ee": fr3.HAND_MASS,
    "I_ee": np.diag([0.001, 0.0025, 0.0017]).flatten(),
    "F_x_Cee": (-0.01, 0.0, 0.03),
    "O_ddP_O": (0.0, 0.0, -9.81),
}


def told(twin: "Twin") -> np.ndarray:
    """What a client is told now."""
    arm, target = twin.arm, twin.arm.target
    state = np.zeros((), wire.STATE[twin.version])
    pose, motion = arm.pose(), twin.motion
    values = {
        **FIXED,
        "message_id": twin.message_id,
        "O_T_EE": pose.flatten(order="F"),
        **dict.fromkeys(("O_T_EE_d", "O_T_EE_c"), arm.pose_c.flatten(order="F")),
        **dict.fromkeys(("elbow", "elbow_d", "elbow_c"), (arm.q[2], -1.0)),
        "tau_J": arm.tau + arm.gravity(),
        "tau_J_d": arm.tau,
        "dtau_J": (arm.tau - arm.tau_before) / DT,
        "q": arm.q,
        "dq": arm.dq,
        "theta": arm.q,
        "dtheta": arm.dq,
        "q_d": target.q,
        "dq_d": target.dq,
        "ddq_d": target.ddq,
        "tau_ext_hat_filtered": arm.tau_external,
        "O_F_ext_hat_K": arm.force,
        "K_F_ext_hat_K": (arm.force.reshape(2, 3) @ pose[:3, :3]).flatten(),
        "O_dP_EE_d": arm.twist_c,
        "O_dP_EE_c": arm.twist_c,
        "O_ddP_EE_c": arm.acceleration_c,
        "motion_generator_mode": motion.generator if motion is not None else Generator.IDLE,
        "controller_mode": motion.controller if motion is not None else Controller.OTHER,
        "errors": twin.errors,
        "reflex_reason": twin.reflex,
        "robot_mode": twin.mode,
        "control_command_success_rate": np.mean(twin.heard) if twin.heard and motion is not None else 0.0,
    }
    for name, value in values.items():
        state[name] = value
    return state
