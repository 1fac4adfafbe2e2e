"""The robot of `real.fr3` as the model that moves (MJCF) and as the one that the twin tells of (URDF)."""

import math
from collections.abc import Sequence

from real.fr3 import FINGER_MASS, FLANGE, HAND_MASS, JOINTS, MAX_WIDTH, TCP, Joint

CAMERA = '<camera name="hand_camera" pos="0.08 0 0.04" xyaxes="0 1 0 1 0 0.35" fovy="75"/>'


def urdf() -> str:
    """What GetRobotModel answers; clients compute kinematics and dynamics from it."""
    links = ['<link name="link0"/>', *(_urdf_link(i + 1, joint) for i, joint in enumerate(JOINTS))]
    joints = [_urdf_joint(i + 1, joint) for i, joint in enumerate(JOINTS)]
    flange = (
        f'<link name="link8"/><joint name="joint8" type="fixed"><origin xyz="0 0 {FLANGE}" rpy="0 0 0"/>'
        '<parent link="link7"/><child link="link8"/></joint>'
    )
    return f'<?xml version="1.0" ?><robot name="fr3">{"".join([*links, *joints])}{flange}</robot>'


def mjcf(world: str = "") -> str:
    """The robot at the origin with gravity compensated, as its own controller does, and what else there is."""
    arm = _hand()
    for i, joint in reversed(list(enumerate(JOINTS))):
        rod = f'<geom type="capsule" size="{joint.radius}" fromto="0 0 0 {_words(joint.ends)}" rgba=".95 .95 .95 1"/>'
        arm = (
            f'<body name="link{i + 1}" pos="{_words(joint.place)}" euler="{joint.roll} 0 0" gravcomp="1">'
            f"{_inertial(joint)}"
            f'<joint name="joint{i + 1}" axis="0 0 1" range="{joint.low} {joint.high}" armature="0.1" damping="0.5"/>'
            f"{rod}{arm}</body>"
        )
    return f"""
<mujoco model="fr3">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.001" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><global offwidth="640" offheight="480"/><quality shadowsize="0"/></visual>
  <default><geom contype="1" conaffinity="1" friction="1 0.02 0.0005"/></default>
  <worldbody>
    <light pos="0.5 0 2.5" dir="0 0 -1" castshadow="false"/>
    <body name="link0"><geom type="cylinder" size="0.07 0.07" pos="0 0 0.07" rgba=".95 .95 .95 1"/>{arm}</body>
    {world}
  </worldbody>
  <contact>{"".join(f'<exclude body1="link{i}" body2="link{j}"/>' for i in range(8) for j in range(i + 1, 8))}
    {"".join(f'<exclude body1="hand" body2="link{i}"/>' for i in (5, 6, 7))}</contact>
  <equality><joint joint1="finger1" joint2="finger2" solref="0.005 1"/></equality>
  <actuator><general name="fingers" joint="finger1" ctrlrange="0 {MAX_WIDTH / 2}" gainprm="1500"
    biastype="affine" biasprm="0 -1500 -60" forcerange="-70 70"/></actuator>
</mujoco>"""


def _hand() -> str:
    pad = (
        '<geom type="box" size="0.0105 0.004 0.0095" pos="0 0.004 0.0449" rgba=".3 .3 .3 1" friction="1.5 0.05 0.001"/>'
    )
    arm = '<geom type="box" size="0.0085 0.006 0.018" pos="0 0.008 0.018" rgba=".8 .8 .8 1"/>'
    inertia = f'<inertial pos="0 0.008 0.02" mass="{FINGER_MASS}" diaginertia="2e-6 2e-6 1e-6"/>'
    fingers = "".join(
        f'<body name="finger_{i}" pos="0 0 0.0584" euler="0 0 {turn}" gravcomp="1">{inertia}'
        f'<joint name="finger{i}" type="slide" axis="0 1 0" range="0 {MAX_WIDTH / 2}" damping="10" armature="0.05"/>'
        f"{arm}{pad}</body>"
        for i, turn in ((1, 0), (2, math.pi))
    )
    return (
        f'<body name="hand" pos="0 0 {FLANGE}" euler="0 0 {-math.pi / 4}" gravcomp="1">'
        f'<inertial pos="0 0 0.04" mass="{HAND_MASS}" diaginertia="0.001 0.0025 0.0017"/>'
        '<geom type="box" size="0.03 0.1 0.029" pos="0 0 0.03" rgba=".95 .95 .95 1"/>'
        f'<site name="tcp" pos="0 0 {TCP}"/>{CAMERA}{fingers}</body>'
    )


def _inertia(joint: Joint) -> tuple[float, float, float]:
    """Of a rod of its mass as long as the link, about its centre; never thinner than 5 cm."""
    length = max(0.1, math.dist((0, 0, 0), joint.ends))
    across = joint.mass * (3 * joint.radius**2 + length**2) / 12
    return across, across, across


def _inertial(joint: Joint) -> str:
    return f'<inertial pos="{_words(joint.centre)}" mass="{joint.mass}" diaginertia="{_words(_inertia(joint))}"/>'


def _urdf_link(number: int, joint: Joint) -> str:
    xx, yy, zz = _inertia(joint)
    return (
        f'<link name="link{number}"><inertial><origin xyz="{_words(joint.centre)}" rpy="0 0 0"/>'
        f'<mass value="{joint.mass}"/><inertia ixx="{xx}" ixy="0" ixz="0" iyy="{yy}" iyz="0" izz="{zz}"/>'
        "</inertial></link>"
    )


def _urdf_joint(number: int, joint: Joint) -> str:
    return (
        f'<joint name="joint{number}" type="revolute"><origin xyz="{_words(joint.place)}" rpy="{joint.roll} 0 0"/>'
        f'<parent link="link{number - 1}"/><child link="link{number}"/><axis xyz="0 0 1"/>'
        f'<limit lower="{joint.low}" upper="{joint.high}" velocity="{joint.velocity}" effort="{joint.effort}"/>'
        f'<position_based_velocity_limits velocity_offset="{joint.offset}" '
        f'deceleration_limit="{joint.deceleration}"/></joint>'
    )


def _words(numbers: Sequence[float | int]) -> str:
    return " ".join(repr(float(x)) for x in numbers)
