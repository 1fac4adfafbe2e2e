"""The arm of a ManiSkill task: its joints, its tool, its gripper, and the joint angles that take the tool to a pose."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla import geometry
from vla.types import CommandKind

TOLERANCE = 1e-4  # of solved joint angles: metres and radians, as the simulator's own solver on the CPU has it
DAMPING = 1e-4  # of the squared Jacobian; keeps steps small near a singularity
ITERATIONS = 20


class Arm:
    """What the one arm of `sim` can do; ValueError for a robot that does not fit a tool on one arm, saying why.

    The agent is looked up again at every call, since a task may rebuild its scene.
    """

    def __init__(self, sim: Any, task: str, command: CommandKind):
        self.sim = sim
        agent = sim.agent
        require_one_arm(agent, task)
        active = {joint.name: int(joint.active_index[0]) for joint in agent.robot.active_joints}
        self.joints = torch.tensor([active[name] for name in agent.arm_joint_names], device=sim.device)
        self.fingers = [active[name] for name in getattr(agent, "gripper_joint_names", [])]
        self.num_joints = len(self.joints)
        self.has_gripper = bool(self.fingers)
        limits = agent.robot.get_qlimits()[:1, self.fingers].cpu()
        self.shut, self.travel = limits[..., 0], (limits[..., 1] - limits[..., 0]).sum(-1, keepdim=True)
        space = agent.single_action_space  # its last number is the gripper's
        self.shut_command, self.command_travel = float(space.low[-1]), float(space.high[-1] - space.low[-1])
        if command == "ee_delta":
            require_six_joints(agent, task)
            self.solver = _kinematics(agent, self.joints)

    @property
    def tool(self) -> Any:
        """The pose of the tool's centre, in the simulator's terms."""
        agent = self.sim.agent
        return agent.tcp.pose if hasattr(agent, "tcp") else agent.tcp_pose

    def angles(self) -> Float[Tensor, "env joints"]:
        """The measured joint angles of the arm, without the gripper's (radians)."""
        return self.sim.agent.robot.get_qpos()[:, self.joints]

    def opening(self) -> Float[Tensor, "env 1"]:
        """How far the gripper is open, measured, from 0 to 1; 0 for a tool without one."""
        if not self.has_gripper:
            return torch.zeros(self.sim.num_envs, 1)
        fingers = self.sim.agent.robot.get_qpos()[:, self.fingers].cpu() - self.shut
        return (fingers.sum(-1, keepdim=True) / self.travel).clamp(0, 1)

    def native(self, angles: Float[Tensor, "env joints"], gripper: Float[Tensor, "env 1"]) -> Float[Tensor, "env _"]:
        """ManiSkill's own command for joint angles (radians) and an opening from 0 to 1."""
        if not self.has_gripper:
            return angles
        return torch.cat([angles, self.shut_command + gripper.to(angles.device) * self.command_travel], -1)

    def solve(self, wanted: Float[Tensor, "env 7"]) -> tuple[Float[Tensor, "env joints"], Bool[Tensor, " env"]]:
        """Joint angles that take the tool to poses in the base frame, and for which envs there are any."""
        qpos = self.sim.agent.robot.get_qpos()
        if self.solver.use_gpu_ik:
            start = qpos[:, self.solver.active_ancestor_joint_idxs]
            return solve_batch(self.solver.pk_chain, start, wanted.to(qpos.device))
        from mani_skill.utils.structs import Pose

        pose = Pose.create_from_pq(wanted[:, :3], geometry.xyzw_to_wxyz(wanted[:, 3:]))
        joints = self.solver.compute_ik(pose=pose, q0=qpos)
        found = joints is not None
        return (joints if found else self.angles()), torch.full((len(wanted),), found)


def solve_batch(
    chain: Any, start: Float[Tensor, "env joints"], wanted: Float[Tensor, "env 7"]
) -> tuple[Float[Tensor, "env joints"], Bool[Tensor, " env"]]:
    """Damped least squares (Wampler 1986) from `start`, all environments at once; joints' limits are left to the arm.

    `chain` is a serial chain of pytorch_kinematics on the device of `start`. The second answer, on the CPU, says where
    the pose was reached.
    """
    from mani_skill.utils.geometry.rotation_conversions import matrix_to_quaternion

    damping = DAMPING * torch.eye(6, dtype=start.dtype, device=start.device)
    joints = start
    for _ in range(ITERATIONS):
        error = _error(chain, joints, wanted, matrix_to_quaternion)
        if (error.abs() < TOLERANCE).all():
            break
        jacobian = chain.jacobian(joints)
        square = jacobian @ jacobian.mT + damping
        step = (jacobian.mT @ torch.linalg.solve(square, error[..., None])).squeeze(-1)
        joints = joints + step
    error = _error(chain, joints, wanted, matrix_to_quaternion)
    return joints, (error.abs() < TOLERANCE).all(-1).cpu()


def require_one_arm(agent: Any, task: str) -> None:
    """Raise ValueError unless the task's robot is one arm with a tool, moved by joint positions."""
    why = None
    if not hasattr(agent, "controller") or isinstance(agent.controller, dict):
        why = f"it has {len(getattr(agent, 'agents', []))} robots"
    elif not hasattr(agent, "tcp") and not hasattr(agent, "tcp_pose"):
        why = f"its robot {agent.uid} has no tool whose pose could be commanded"
    elif not hasattr(agent, "arm_joint_names"):
        why = f"its robot {agent.uid} is not an arm"
    elif extra := set(getattr(agent.controller, "controllers", {})) - {"arm", "gripper"}:
        why = f"its robot {agent.uid} has more to move than an arm and a gripper: {', '.join(sorted(extra))}"
    if why:
        raise ValueError(f"task {task} is not for one arm with a tool: {why}. `docs/tasks.md` lists the tasks that are")


def require_six_joints(agent: Any, task: str) -> None:
    """Raise ValueError if the arm cannot take its tool to any pose around it."""
    count = len(agent.arm_joint_names)
    if count < 6 or not hasattr(agent, "ee_link_name"):
        raise ValueError(
            f"robot {agent.uid} of task {task} has {count} joints, and a pose needs six: it takes joint commands only; "
            "use command=joint_delta or command=joint_position"
        )


def _kinematics(agent: Any, joints: Tensor) -> Any:
    from mani_skill.agents.controllers.utils.kinematics import Kinematics

    return Kinematics(agent.urdf_path, agent.ee_link_name, agent.robot, joints)


def _error(chain: Any, joints: Tensor, wanted: Tensor, to_quaternion: Any) -> Float[Tensor, "env 6"]:
    """What is missing to the pose: metres, and a rotation vector in the base frame."""
    reached = chain.forward_kinematics(joints).get_matrix()
    rotation = geometry.wxyz_to_xyzw(to_quaternion(reached[:, :3, :3]))
    return torch.cat([wanted[:, :3] - reached[:, :3, 3], geometry.turn_between(rotation, wanted[:, 3:])], -1)
