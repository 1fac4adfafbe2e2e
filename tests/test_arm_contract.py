"""The same commands mean the same in every simulator, measured on the simulated arm; a policy need not know which."""

import pytest
import torch
from scenes import move_object, project, scene, settle, settled_pose

from vla import geometry

FAST = [("maniskill", "PickCube-v1"), ("robosuite", "Lift"), ("libero", "libero_spatial:2")]
ROBOT = ("franka", "pick")  # on its twin, by its clock: it has no states to go back to
SLOW = [
    *(("maniskill", x) for x in ("StackCube-v1", "PegInsertionSide-v1", "PlaceSphere-v1", "PullCubeTool-v1")),
    *(("robosuite", x) for x in ("Stack", "Can", "Square", "PickPlace", "NutAssembly", "Door")),
    *(("libero", f"{suite}:{task}") for suite in ("libero_object", "libero_goal", "libero_10") for task in (0, 5)),
    *(("libero", f"libero_90:{task}") for task in (0, 20, 45, 80)),
]
THINGS = {"PickCube-v1": "cube", "Lift": "cube", "libero_spatial:2": "plate_1"}
TURNED = ("maniskill PegInsertionSide-v1",)  # begins with the hand turned by a quarter
ARMS = [*FAST, ROBOT, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)]


def ids(value):
    return " ".join(value) if isinstance(value, tuple) else None


@pytest.fixture(scope="module", params=ARMS, ids=ids)
def arm(request):
    """One scene without pictures and with enough time to come to rest."""
    env = scene(*request.param, images=False, max_steps=100_000, ends_on_success=False)
    yield env
    env.close()


def require_simulator(arm):
    if not hasattr(arm, "get_state"):
        pytest.skip("a robot")


@pytest.mark.parametrize("axis", range(6))
def test_a_command_moves_the_tool_by_its_metres_and_radians(arm, axis):
    """Five centimetres, or 0.2 rad, with the sign: joints with friction leave a controller of forces 3 mm short."""
    start = settled_pose(arm)
    command = torch.zeros(1, 7)
    command[0, 6] = 1
    command[0, axis] = 0.0125 if axis != 2 else -0.0125
    if axis > 2:
        command[0, axis] = 0.05
    for _ in range(4):
        arm.step(command)
    moved = geometry.delta_between(start, settle(arm, steps=60).privileged["tcp"], torch.ones(1, 1))[0, :6]
    torch.testing.assert_close(moved[:3], 4 * command[0, :3], atol=0.004, rtol=0)
    torch.testing.assert_close(moved[3:], 4 * command[0, 3:6], atol=0.02, rtol=0)


def test_the_gripper_opens_at_one_and_closes_at_zero(arm):
    arm.reset(0)
    readings = [settle(arm, gripper).proprio[0, arm.spec.proprio_slice("gripper")].item() for gripper in (1.0, 0.0)]
    assert readings[0] > 0.9
    assert readings[1] < 0.1


def test_the_tool_points_down_and_its_fingers_close_along_y(arm, request):
    """The same axes everywhere: at rest z goes into the table, y along the robot's left and right."""
    tool = settled_pose(arm)[:, 3:]
    along_z, along_y = (geometry.rotate(tool, torch.tensor([axis]))[0] for axis in ([0.0, 0, 1], [0.0, 1, 0]))
    assert along_z[2] < -0.97
    if request.node.callspec.id in TURNED:
        assert along_y[0].abs() > 0.97
    else:
        assert along_y[1] < -0.97
    assert tool.norm().item() == pytest.approx(1, abs=1e-5)
    assert tool[0, 3] >= 0


def test_proprio_is_the_same_numbers_in_the_same_place(arm):
    obs = arm.reset(1)
    layout = [("position", 3), ("rotation", 6), ("gripper", 1), ("lead_position", 3), ("lead_rotation", 3)]
    assert list(arm.spec.proprio[:5]) == layout
    part = {name: obs.proprio[0, arm.spec.proprio_slice(name)] for name, _ in layout}
    tool = obs.privileged["tcp"][0]
    torch.testing.assert_close(part["position"], tool[:3])
    axes = [geometry.rotate(tool[None, 3:], axis[None])[0] for axis in torch.eye(3)[:2]]
    torch.testing.assert_close(part["rotation"], torch.cat(axes), atol=1e-5, rtol=0)
    assert part["lead_position"].abs().max() < 0.01


def test_where_the_tool_was_sent_is_told_before_it_is_there(arm):
    arm.reset(1)
    step = arm.step(torch.tensor([[0.03, 0, 0, 0, 0, 0, 1.0]]))
    lead = step.obs.proprio[0, arm.spec.proprio_slice("lead_position")]
    moved = step.obs.privileged["commanded"][0, :3] - step.obs.privileged["tcp"][0, :3]
    torch.testing.assert_close(lead, moved, atol=1e-5, rtol=0)
    assert lead[0] > 0.005


def test_executed_is_the_command_within_its_limits(arm):
    arm.reset(0)
    step = arm.step(torch.tensor([[0.3, 0, 0.4, 0, 0, 2.0, 1.5]]))
    torch.testing.assert_close(step.executed, torch.tensor([[0.03, 0, 0.04, 0, 0, 0.2, 1.0]]), atol=1e-3, rtol=0)


def test_a_state_can_be_taken_up_again_where_it_was_left(arm):
    require_simulator(arm)
    arm.reset(4)
    move = torch.tensor([[0.02, -0.01, -0.01, 0, 0, 0.05, 1.0]])
    for _ in range(5):
        arm.step(move)
    state = arm.get_state()
    ends = [arm.step(move).obs for _ in range(5)][-1]
    arm.reset(9)
    arm.step(move)
    seen = arm.set_state(state)
    again = [arm.step(move).obs for _ in range(5)][-1]
    torch.testing.assert_close(again.proprio, ends.proprio, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.privileged.to_dict(), ends.privileged.to_dict(), atol=1e-4, rtol=0)
    assert seen.instruction == ends.instruction


def test_the_same_seed_is_the_same_episode_and_another_is_not(arm):
    require_simulator(arm)
    move = torch.tensor([[0.01, -0.01, -0.01, 0, 0, 0.05, 1.0]]).repeat(3, 1)
    first, ends = arm.reset(7), arm.play(move[None])
    arm.reset(8)
    arm.play(move[None])
    again = arm.reset(7)
    torch.testing.assert_close(again.privileged.to_dict(), first.privileged.to_dict(), rtol=0, atol=0)
    torch.testing.assert_close(arm.play(move[None]).obs.proprio, ends.obs.proprio, rtol=0, atol=0)
    told = [name for name, x in first.privileged.items() if x.any() and name not in ("tcp", "commanded", "gripper")]
    other = arm.reset(8)
    assert any(not torch.equal(other.privileged[name], first.privileged[name]) for name in told) or not told


@pytest.mark.parametrize("where", FAST, ids=ids)
def test_pictures_are_upright_and_not_mirrored(where):
    """What changes in the picture as a thing goes is where the pinhole camera of the spec sees it."""
    env = scene(*where, image_size=128, drawing="light", max_steps=1000)
    camera = next(camera for camera in env.spec.cameras if camera.pose is not None)
    name = THINGS[where[1]]
    env.reset(3)
    move_object(env, name, (0.0, 0.0, 5.0))
    without = env._observe().images[camera.name][0].int()
    move_object(env, name, (0.0, 0.0, -5.0))
    places = {}
    for side, offset in {"here": (0.0, 0.0, 0.0), "left": (0.0, 0.08, 0.0), "raised": (0.0, 0.0, 0.08)}.items():
        move_object(env, name, offset)
        obs = env._observe()
        rows, columns = ((obs.images[camera.name][0].int() - without).abs().sum(-1) > 60).nonzero(as_tuple=True)
        places[side] = torch.stack([rows.float().mean(), columns.float().mean()])
        if where[0] != "libero":
            expected = project(camera, obs.privileged[name][0, :3])
            torch.testing.assert_close(places[side], expected, atol=4.0, rtol=0)
        move_object(env, name, tuple(-x for x in offset))
    env.close()
    assert places["left"][1] > places["here"][1] + 3  # the camera looks back at the robot, whose left is +y
    assert places["raised"][0] < places["here"][0] - 3
