"""ManiSkill's tasks and arms: which there are, which are refused and why, and what other arms than the Panda do."""

import pytest
import torch

from simulators.arms import solve_batch
from simulators.maniskill import ManiSkillEnv
from simulators.maniskill_make import check_task, draw_one_by_one
from simulators.maniskill_tasks import TASKS
from vla import geometry

NOT_ONE_ARM = {
    "TwoRobotPickCube-v1": "it has 2 robots",
    "TriFingerRotateCubeLevel0-v1": "its robot trifingerpro has no tool",
}


OTHER_HANDS = ("RotateValveLevel0-v1", "RotateSingleObjectInHandLevel0-v1", "UnitreeG1PlaceAppleInBowl-v1")


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_HANDS)
def test_a_hand_or_a_humanoid_is_refused_by_its_name(task):
    with pytest.raises(ValueError, match=f"{task} is not for one arm with a tool: its robot "):
        ManiSkillEnv(task, images=False)


@pytest.mark.parametrize("task", NOT_ONE_ARM)
def test_a_task_that_is_not_for_one_arm_is_refused_with_the_reason(task):
    with pytest.raises(ValueError, match=f"{task} is not for one arm with a tool: {NOT_ONE_ARM[task]}"):
        ManiSkillEnv(task, images=False)


def test_an_arm_with_more_than_an_arm_to_move_is_refused():
    with pytest.raises(ValueError, match=r"robot fetch has more to move than an arm and a gripper: base, body"):
        ManiSkillEnv("PickCube-v1", robot="fetch", images=False)


def test_an_arm_of_five_joints_takes_joint_commands_only():
    with pytest.raises(ValueError, match=r"so100 of task PickCubeSO100-v1 has 5 joints.*command=joint_delta"):
        ManiSkillEnv("PickCubeSO100-v1", images=False)


def test_a_robot_that_is_not_there_is_refused_before_anything_is_asked():
    with pytest.raises(ValueError, match="no robot 'pandas'"):
        ManiSkillEnv("PickCube-v1", robot="pandas", images=False)
    with pytest.raises(ValueError, match="takes no other; leave out robot=panda"):
        ManiSkillEnv("PickCubeSO100-v1", robot="panda", command="joint_delta", images=False)


def test_a_group_of_assets_that_is_missing_is_refused_by_the_names_of_its_parts():
    with pytest.raises(ValueError, match="download_asset OpenCabinetDrawer-v1"):
        check_task("OpenCabinetDrawer-v1")


def test_the_small_arm_turns_its_joints_by_their_radians_and_opens_its_own_gripper():
    env = ManiSkillEnv("PickCubeSO100-v1", command="joint_delta", images=False, max_steps=1000)
    start = env.reset(0).proprio[:, env.spec.proprio_slice("joint_position")]
    turn = torch.tensor([[0.03, -0.02, 0.02, 0.01, 0.04, 1.0]])
    for _ in range(4):
        env.step(turn)
    still = torch.tensor([[0.0] * 5 + [1.0]])
    obs = [env.step(still) for _ in range(15)][-1].obs
    end = obs.proprio[:, env.spec.proprio_slice("joint_position")]
    torch.testing.assert_close(end - start, 4 * turn[:, :5], atol=0.03, rtol=0)
    assert obs.privileged["gripper"].item() == pytest.approx(1, abs=0.05)
    obs = [env.step(still * 0) for _ in range(15)][-1].obs
    assert obs.privileged["gripper"].item() == pytest.approx(0, abs=0.05)
    env.close()


def test_a_stick_in_place_of_a_gripper_is_moved_by_metres_and_reads_shut():
    env = ManiSkillEnv("PushT-v1", images=False, max_steps=1000)
    assert env.sim.agent.uid == "panda_stick"
    start = env.reset(0).privileged["tcp"]
    for _ in range(4):
        env.step(torch.tensor([[0.0, 0.01, 0.02, 0, 0, 0, 1.0]]))
    obs = [env.step(torch.zeros(1, 7)) for _ in range(10)][-1].obs
    moved = (obs.privileged["tcp"] - start)[0, :3]
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.04, 0.08]), atol=0.002, rtol=0)
    assert obs.privileged["gripper"].item() == 0
    env.close()


def test_a_reward_that_a_task_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"StackPyramid-v1 has no reward 'dense', only none, sparse"):
        ManiSkillEnv("StackPyramid-v1", reward="dense", images=False)


def test_ink_is_for_so_many_steps():
    with pytest.raises(ValueError, match="ink for 300 steps, got max_steps=301"):
        ManiSkillEnv("DrawTriangle-v1", images=False, max_steps=301)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_starts_alike_from_the_same_seed_and_moves(task):
    command = "joint_delta" if "SO100" in task else "ee_delta"
    env = ManiSkillEnv(task, command=command, image_size=16, drawing="light")
    first, again = env.reset(3), env.reset(3)
    torch.testing.assert_close(again.privileged.to_dict(), first.privileged.to_dict(), rtol=0, atol=0)
    move = torch.zeros(1, env.spec.action_dim)
    move[:, 0] = 0.02
    step = [env.step(move) for _ in range(3)][-1]
    assert (step.obs.privileged["tcp"] - first.privileged["tcp"])[0].abs().max() > 0.01
    assert step.obs.proprio.shape == (1, env.spec.proprio_dim)
    assert all(x.float().std() > 1 for x in step.obs.images.values())
    env.close()


@pytest.fixture(scope="module")
def peg():
    env = ManiSkillEnv("PegInsertionSide-v1", images=False)
    yield env
    env.close()


def test_the_parts_of_a_peg_are_told_where_their_task_has_them(peg):
    for seed in (0, 1):
        seen = peg.reset(seed).privileged
        size = peg.sim.peg_half_sizes[0]
        for part, at in (("peg_head", size * torch.tensor([1, 0, 0])), ("peg_side", size * torch.tensor([0, 1, 0]))):
            local = geometry.to_frame(seen["peg"], seen[part])
            torch.testing.assert_close(local[0, :3], at, atol=1e-5, rtol=0)


def test_drawn_one_by_one_an_episode_is_the_one_it_would_be_alone(peg):
    alone = peg.reset(5).privileged.clone()
    usual = peg.sim._initialize_episode
    draw_one_by_one(peg.sim)
    again = peg.reset(5).privileged
    peg.sim._initialize_episode = usual
    torch.testing.assert_close(again.to_dict(), alone.to_dict(), rtol=0, atol=0)


def test_joint_angles_for_a_batch_take_the_tool_where_those_of_one_arm_do(peg):
    """The solver of the batched simulator, run here, against the simulator's own for a single arm."""
    import pytorch_kinematics as kinematics

    peg.reset(0)
    agent, solver = peg.sim.agent, peg.arm.solver
    with open(agent.urdf_path, "rb") as file:
        chain = kinematics.build_serial_chain_from_urdf(file.read(), end_link_name=agent.ee_link_name)
    start = agent.robot.get_qpos()[:, :7].expand(6, 7).contiguous()
    here = peg.last.privileged["tcp"].expand(6, 7)
    commands = torch.eye(6) * torch.tensor([0.1, 0.1, 0.1, 0.8, 0.8, 0.8])  # as far as the leash goes
    wanted = geometry.advance(here, here, torch.cat([commands, torch.zeros(6, 1)], -1), (1.0, 3.0))
    joints, found = solve_batch(chain, start, wanted)
    assert found.all()
    for i in range(6):
        (single,), (solved,) = peg.arm.solve(wanted[i : i + 1])
        assert solved
        reached = chain.forward_kinematics(torch.stack([single, joints[i]])).get_matrix()
        torch.testing.assert_close(reached[1], reached[0], atol=5e-4, rtol=0)
    beyond = here[:1] + torch.tensor([[2.0, 0, 0, 0, 0, 0, 0]])
    assert solve_batch(chain, start[:2], torch.cat([beyond, here[:1]]))[1].tolist() == [False, True]
    assert not solver.use_gpu_ik
