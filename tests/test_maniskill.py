"""ManiSkill: commands measured in metres and radians on the simulated arm, states, pictures, refusals."""

import pytest
import torch
from scenes import project

from policies.plans_maniskill import PLANS
from policies.scripted import ScriptedExpert
from simulators.maniskill import ManiSkillEnv, maniskill
from simulators.maniskill_make import check_task
from simulators.maniskill_tasks import TASKS
from vla import geometry
from vla.rollout import rollout


@pytest.fixture(scope="module")
def arm():
    """One scene without pictures and with enough time to come to rest."""
    env = ManiSkillEnv("PickCube-v1", images=False, max_steps=1000)
    yield env
    env.close()


def settle(env, gripper: float = 1.0):
    rest = torch.tensor([[0.0] * 6 + [gripper]])
    return [env.step(rest) for _ in range(15)][-1].obs


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_command_moves_the_tool_by_its_metres_and_radians(arm, axis, sign):
    start = settle_at_reset(arm)
    command = torch.zeros(1, 7)
    command[0, 6] = 1
    command[0, axis] = sign * (0.02 if axis < 3 else 0.06)
    for _ in range(4):
        arm.step(command)
    end = settle(arm).privileged["tcp"]
    moved = geometry.delta_between(start, end, torch.ones(1, 1))[0, :6]
    expected = 4 * command[0, :6]
    torch.testing.assert_close(moved[:3], expected[:3], atol=0.001, rtol=0)
    torch.testing.assert_close(moved[3:], expected[3:], atol=0.005, rtol=0)


def settle_at_reset(env):
    env.reset(0)
    return settle(env).privileged["tcp"]


def test_rotations_about_two_axes_add_up_as_rotation_vectors_not_as_euler_angles(arm):
    start = settle_at_reset(arm)
    turn = torch.tensor([[0, 0, 0, 0.1, 0, 0.15, 1.0]])
    for _ in range(4):
        arm.step(turn)
    end = settle(arm).privileged["tcp"]
    moved = geometry.turn_between(start[:, 3:], end[:, 3:])[0]
    torch.testing.assert_close(moved, 4 * turn[0, 3:6], atol=0.01, rtol=0)


@pytest.mark.parametrize("gripper", [0.0, 0.4, 1.0])
def test_the_gripper_is_open_at_one_and_closed_at_zero(arm, gripper):
    arm.reset(0)
    obs = settle(arm, gripper)
    reading = obs.proprio[0, arm.spec.proprio_slice("gripper")].item()
    # the simulator's closed target is 1 cm below touching, to press on thin things
    assert reading == pytest.approx(max(0.0, gripper * 1.25 - 0.25), abs=0.02)


def test_executed_is_the_command_within_its_limits(arm):
    arm.reset(0)
    step = arm.step(torch.tensor([[0.3, 0, 0.4, 0, 0, 2.0, 1.5]]))
    torch.testing.assert_close(step.executed, torch.tensor([[0.03, 0, 0.04, 0, 0, 0.2, 1.0]]), atol=1e-4, rtol=0)


def test_a_blocked_tool_does_not_wind_up_its_commanded_pose(arm):
    arm.reset(0)
    down = torch.tensor([[0, 0, -0.05, 0, 0, 0, 0.0]])
    steps = [arm.step(down) for _ in range(20)]
    lead = steps[-1].obs.proprio[0, arm.spec.proprio_slice("lead_position")]
    assert lead.abs().max() <= 0.1 + 2e-3
    assert steps[-1].executed[0, :3].norm() < 0.01  # nothing more was commanded: the table is in the way
    assert steps[-1].obs.privileged["tcp"][0, 2] > -0.01


def test_a_state_can_be_taken_up_again_where_it_was_left(arm):
    arm.reset(4)
    move = torch.tensor([[0.02, -0.01, -0.02, 0, 0, 0.05, 1.0]])
    for _ in range(5):
        arm.step(move)
    state = arm.get_state()
    ends = [arm.step(move).obs.privileged["tcp"] for _ in range(5)][-1]
    arm.reset(9)
    arm.set_state(state)
    again = [arm.step(move).obs.privileged["tcp"] for _ in range(5)][-1]
    torch.testing.assert_close(again, ends, atol=1e-4, rtol=0)


def test_a_policy_without_cameras_can_be_told_where_things_are():
    env = ManiSkillEnv("PushCube-v1", images=False, poses_told=True)
    env.reset(3)
    obs = env.step(torch.tensor([[0.02, -0.01, -0.02, 0, 0, 0.05, 1.0]])).obs
    told = {name: obs.proprio[:, env.spec.proprio_slice(name)] for name, _ in env.spec.proprio}
    for name in ("cube", "goal_region"):
        pose = obs.privileged[name]
        torch.testing.assert_close(told[f"{name}_offset"], pose[:, :3] - obs.privileged["tcp"][:, :3])
        axes = [geometry.rotate(pose[:, 3:], axis[None]) for axis in torch.eye(3)[:2]]
        torch.testing.assert_close(told[f"{name}_rotation"], torch.cat(axes, -1))
    assert told["cube_offset"].norm() > 0.01
    env.close()


def test_pictures_are_upright_and_not_mirrored():
    """A cube is seen where the pinhole camera of the spec says; raised, it is further up in the picture."""
    env = ManiSkillEnv("PickCube-v1", image_size=64, drawing="light")
    camera = env.spec.cameras[0]
    places = {"left": (0.12, 0.02), "right": (-0.12, 0.02), "raised": (0.15, 0.15)}
    seen = {}
    for name, (y, z) in places.items():
        env.reset(0)
        place_cube(env, x=-0.05, y=y, z=z)
        seen[name] = red_centre(env._observe().images[camera.name][0])
        expected = project(camera, torch.tensor([-0.05 + 0.615, y, z]))
        torch.testing.assert_close(seen[name], expected, atol=2.0, rtol=0)
    env.close()
    assert seen["left"][1] > seen["right"][1] + 5  # the camera looks back at the robot, whose left is +y
    assert seen["raised"][0] < seen["left"][0] - 2


def place_cube(env, *, x, y, z):
    from mani_skill.utils.structs import Pose

    env.sim.cube.set_pose(Pose.create_from_pq(torch.tensor([[x, y, z]]), torch.tensor([[1.0, 0, 0, 0]])))


def red_centre(picture):
    """Row and column of the mean of what is pure red."""
    colour = picture.float()
    red = (colour[..., 0] > 120) & (colour[..., 1] < 60) & (colour[..., 2] < 60)
    assert red.any()
    rows, columns = red.nonzero(as_tuple=True)
    return torch.stack([rows.float().mean(), columns.float().mean()])


def test_a_light_drawing_shows_the_same_scene():
    full, light = (ManiSkillEnv("PickCube-v1", image_size=64, drawing=x) for x in ("full", "light"))
    for seed in (0, 1):
        a, b = (env.reset(seed).images["base_camera"][0] for env in (full, light))
        torch.testing.assert_close(red_centre(a), red_centre(b), atol=1.0, rtol=0)
        assert torch.corrcoef(torch.stack([a.flatten().float(), b.flatten().float()]))[0, 1] > 0.9
    full.close()
    light.close()


def test_a_camera_can_be_moved_and_the_spec_says_where_it_is():
    view = {"eye": [0.9, -0.5, 0.4], "target": [0.6, 0.0, 0.0], "field_of_view": 0.6}
    env = ManiSkillEnv("PickCube-v1", image_size=64, drawing="light", cameras={"base_camera": view})
    (camera,) = env.spec.cameras
    assert camera.pose[:3] == pytest.approx(view["eye"], abs=1e-5)
    for seed in (0, 1):  # also after a reset, which may rebuild the scene
        env.reset(seed)
        place_cube(env, x=0.0, y=0.05, z=0.02)
        expected = project(camera, torch.tensor([0.615, 0.05, 0.02]))
        seen = red_centre(env._observe().images["base_camera"][0])
        torch.testing.assert_close(seen, expected, atol=2.0, rtol=0)
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["left_eye"]}, "no camera left_eye; this task and robot have base_camera, hand_camera"),
        ({"cameras": {"base_camera": {"eye": [1, 0, 1]}}}, "eye and target together"),
        ({"cameras": {"base_camera": {"zoom": 2}}}, "may be given field_of_view, eye, target and source.*zoom"),
        ({"cameras": {"hand_camera": {"eye": [1, 0, 1], "target": [0, 0, 0]}}}, "carried by the robot"),
        ({"drawing": "fast"}, "drawing must be one of full, light, got 'fast'"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ManiSkillEnv("PickCube-v1", robot="panda_wristcam", **options)


def test_a_worker_refuses_a_wrong_option_as_this_process_would():
    with pytest.raises(ValueError, match="no camera left_eye"):
        maniskill("PickCube-v1", num_envs=2, workers=2, cameras=["left_eye"])


def test_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no task 'PickCub-v1'.*PickCube-v1"):
        check_task("PickCub-v1")


def test_a_task_that_would_download_is_refused_without_asking():
    with pytest.raises(ValueError, match="download_asset"):
        check_task("PickSingleYCB-v1")


def test_every_expert_has_an_instruction_and_every_instruction_a_task():
    assert PLANS.keys() <= TASKS.keys()
    for task in TASKS:
        check_task(task)


QUICK = ["PickCube-v1", "StackCube-v1", "PushCube-v1", "PullCube-v1", "LiftPegUpright-v1"]


@pytest.mark.parametrize("task", QUICK)
def test_experts_finish_their_tasks_also_when_they_plan_two_commands_ahead(task):
    env = maniskill(task, num_envs=3, images=False)
    for horizon in (1,) if task == "LiftPegUpright-v1" else (1, 2):  # a held peg is not imagined
        assert rollout(env, ScriptedExpert(task, horizon), seed=500).success.any(0).sum() >= 2
    env.close()


@pytest.mark.parametrize("task", [pytest.param(x, marks=pytest.mark.slow) for x in PLANS if x not in QUICK])
def test_the_other_experts_finish_their_tasks_too(task):
    env = maniskill(task, num_envs=3, images=False)
    assert rollout(env, ScriptedExpert(task), seed=500).success.any(0).sum() >= 2
    env.close()


def test_an_expert_goes_on_from_a_state_it_would_never_have_reached():
    """Closed fingers far away, then open ones around nothing: it must start over from both."""
    env = maniskill("PickCube-v1", num_envs=2, images=False, max_steps=80)
    expert = ScriptedExpert("PickCube-v1")
    obs = env.reset(40)
    for _ in range(20):
        obs = env.step(torch.tensor([[-0.02, 0.02, 0.01, 0, 0, 0.1, 0.0]]).expand(2, 7)).obs
    success = torch.zeros(2, dtype=torch.bool)
    for _ in range(60):
        step = env.step(expert.act(obs).commands[:, 0])
        obs, success = step.obs, success | step.success
    env.close()
    assert success.all()


def test_an_expert_without_privileged_state_says_what_it_needs():
    env = maniskill("PickCube-v1", num_envs=1, images=False)
    obs = env.reset(0)
    obs.privileged = None
    with pytest.raises(ValueError, match="privileged"):
        ScriptedExpert("PickCube-v1").act(obs)
    env.close()
