"""Plans for ManiSkill's tasks."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from policies.moves import (
    HOVER,
    Grip,
    Plan,
    Scene,
    Skill,
    about_y,
    across,
    along,
    carrying,
    compose,
    either,
    fetch,
    grasp_then,
    heading,
    insertion,
    let_go,
    nothing,
    pointing_down,
    set_down,
    steady,
    through_funnel,
)
from vla import geometry

CUBE = 0.04  # edge of ManiSkill's cubes


def pick_cube(scene: Scene) -> Plan:
    cube, goal = scene.objects["cube"], scene.objects["goal_site"]
    carry = torch.cat([scene.tcp[:, :3] + goal[:, :3] - cube[:, :3], scene.tcp[:, 3:]], -1)
    carry = steady(scene, carry)
    return grasp_then(scene, "cube", cube, carry, nothing(scene))


def stack_cube(scene: Scene) -> Plan:
    base = scene.objects["cubeB"]
    top = torch.cat([base[:, :2], base[:, 2:3] + CUBE], -1)
    return _stack(scene, "cubeA", top, obstacle=base)


def _stack(scene: Scene, name: str, spot: Float[Tensor, "batch 3"], obstacle: Float[Tensor, "batch 7"]) -> Plan:
    """Put a cube with its middle on `spot`, and leave it there."""
    cube = scene.objects[name]
    offset = cube[:, :3] - spot
    stacked = (offset[:, :2].norm(dim=-1) < 0.025) & (offset[:, 2].abs() < 0.006)
    put = grasp_then(scene, name, cube, set_down(scene, name, spot), obstacle)
    return either(stacked, let_go(scene, spot[:, 2] + HOVER), put)


def stack_pyramid(scene: Scene) -> Plan:
    """The red cube beside the green one, as the fingers that hold it allow; then the blue one on both."""
    red, green, blue = (scene.objects[f"cube{x}"] for x in "ABC")
    apart = (red - green)[:, :2].norm(dim=-1)
    beside = (apart < 0.057) & ((red - green)[:, 2].abs() < 0.006)
    middle = (red[:, :3] + green[:, :3]) / 2
    top = torch.cat([middle[:, :2], middle[:, 2:] + CUBE], -1)
    blue_on_top = _stack(scene, "cubeC", top, _nearest(blue, red, green))
    leave = let_go(scene, green[:, 2] + CUBE + HOVER)
    fetched = grasp_then(
        scene, "cubeA", red, set_down(scene, "cubeA", _beside(scene, green, blue)), _nearest(red, green, blue)
    )
    leaving = scene.around("cubeA") & (red[:, 2] < green[:, 2] + 0.006)
    return either(beside, either(leaving, leave, blue_on_top), fetched)


def _beside(scene: Scene, green: Tensor, blue: Tensor) -> Float[Tensor, "batch 3"]:
    """Next to the green cube, in line with the tool's x axis, no finger between: on our side, if blue is not there."""
    line = along(scene.tcp)
    line = -line * line[:, :1].sign()
    turned = (heading(line) - heading(along(green))) % (torch.pi / 2)
    reach = (CUBE / 2 * (1 + turned.cos() + turned.sin()) + 0.004)[:, None]
    near, far = green[:, :3] + reach * line, green[:, :3] - reach * line
    free = (blue[:, :3] - near)[:, :2].norm(dim=-1, keepdim=True) > 0.065
    return torch.cat([torch.where(free, near, far)[:, :2], green[:, 2:3]], -1)


def _nearest(cube: Tensor, a: Tensor, b: Tensor) -> Tensor:
    closer = (a - cube)[:, :2].norm(dim=-1) < (b - cube)[:, :2].norm(dim=-1)
    return torch.where(closer[:, None], a, b)


def place_sphere(scene: Scene) -> Plan:
    ball, bin = scene.objects["sphere"], scene.objects["bin"]
    spot = torch.cat([bin[:, :2], bin[:, 2:3] + 0.0025 + 0.02], -1)
    offset = ball[:, :3] - spot
    inside = (offset[:, :2].norm(dim=-1) < 0.004) & (offset[:, 2].abs() < 0.004)
    grip = torch.cat([ball[:, :3], across(scene, scene.tcp.new_zeros(len(ball)))], -1)
    return either(
        inside, let_go(scene, spot[:, 2] + HOVER), fetch(scene, "sphere", grip, set_down(scene, "sphere", spot, 0.004))
    )


def pull_cube_tool(scene: Scene) -> Plan:
    """Hold the L by the end of its handle, hook the cube from above and drag it near."""
    tool, cube = scene.objects["l_shape_tool"], scene.objects["cube"]
    local = geometry.to_frame(tool, cube)
    hooked = (
        (local[:, 0] > 0.05) & (local[:, 0] < 0.14) & (local[:, 1] > 0.03) & (local[:, 1] < 0.1) & (tool[:, 2] < 0.045)
    )
    over = cube[:, :3] + cube.new_tensor([-0.11, -0.062, 0])
    away = (over - tool[:, :3])[:, :2].norm(dim=-1)
    height = 0.027 + 0.085 * ((away - 0.01) / 0.03).clamp(0, 1)
    over = torch.cat(
        [torch.where((tool[:, 2] > height - 0.02)[:, None], over[:, :2], tool[:, :2]), height[:, None]], -1
    )
    drag = torch.cat([tool[:, :2] + tool.new_tensor([-0.04, 0.008]), torch.full_like(height, 0.027)[:, None]], -1)
    flat = tool.new_tensor([0.0, 0, 0, 1]).expand(len(tool), 4)
    wanted = torch.cat([torch.where(hooked[:, None], drag, over), flat], -1)
    grip = torch.cat([scene.grip_point("l_shape_tool"), across(scene, heading(along(tool)))], -1)
    return fetch(scene, "l_shape_tool", grip, carrying(scene, "l_shape_tool", wanted))


def insert_peg(scene: Scene) -> Plan:
    peg, head, side, hole = (scene.objects[x] for x in ("peg", "peg_head", "peg_side", "box_hole"))
    half_length = (head - peg)[:, :3].norm(dim=-1)
    width = 2 * (side - peg)[:, :3].norm(dim=-1)
    scene = replace(scene, grips={"peg": Grip(width, scene.grips["peg"].at)})
    grip = torch.cat([scene.grip_point("peg"), across(scene, heading(along(peg)))], -1)
    return fetch(scene, "peg", grip, insertion(scene, head, hole, half_length, 0.004))


def plug_charger(scene: Scene) -> Plan:
    charger, receptacle = scene.objects["charger"], scene.objects["receptacle"]
    goal = compose(receptacle, receptacle.new_tensor([0.0, 0, 0, 0, 0, 1, 0]).expand(len(receptacle), 7))
    grip = torch.cat([scene.grip_point("charger"), across(scene, heading(along(charger)))], -1)
    return fetch(scene, "charger", grip, insertion(scene, charger, goal, torch.full_like(scene.opening, 0.017), 0.001))


def poke_cube(scene: Scene) -> Plan:
    """Hold the peg by its tail, bring its head in line with the cube and push the cube on, flat on the table."""
    peg, cube, goal = (scene.objects[x] for x in ("peg", "cube", "goal_region"))
    aside = cube[:, 1] - peg[:, 1]
    behind = cube[:, 0] - 0.02 - 0.12 - peg[:, 0]  # from the head to the cube
    left = goal[:, 0] - 0.03 - cube[:, 0]
    onward = torch.where(
        aside.abs() < 0.012, (behind.clamp(min=0) + left).clamp(max=0.05), (behind - 0.03).clamp(max=0)
    )
    position = torch.stack([peg[:, 0] + onward, cube[:, 1], torch.full_like(aside, 0.026)], -1)
    wanted = torch.cat([position, peg.new_tensor([0.0, 0, 0, 1]).expand(len(peg), 4)], -1)
    grip = torch.cat([scene.grip_point("peg"), across(scene, heading(along(peg)))], -1)
    return fetch(scene, "peg", grip, carrying(scene, "peg", wanted))


def roll_ball(scene: Scene) -> Plan:
    """Go behind the ball and hit it towards the goal; once it rolls, nothing more can be done.

    Close to the base the fingers point a little back, for the arm cannot fold any further.
    """
    ball, goal = scene.objects["ball"], scene.objects["goal_region"]
    way = torch.nn.functional.normalize((goal - ball)[:, :2], dim=-1)
    offset = scene.tcp[:, :2] - ball[:, :2]
    behind = -(offset * way).sum(-1)
    beside = offset[:, 1] * way[:, 0] - offset[:, 0] * way[:, 1]
    close = ((0.45 - ball[:, 0]) / 0.1).clamp(0, 1)
    down = geometry.multiply(about_y(0.25 * close), across(scene, torch.atan2(way[:, 1], way[:, 0])))
    height = ball[:, 2:3] + 0.005
    start = torch.cat([ball[:, :2] - (0.11 - 0.04 * close)[:, None] * way, height, down], -1)
    in_line = beside.abs() < torch.where(behind > 0.055, 0.004, 0.02)
    ready = (behind > 0) & (behind < 0.13) & in_line & (scene.tcp[:, 2] < 0.055)
    hit = torch.cat([ball[:, :2] + 0.1 * way, height, down], -1)
    target = torch.where(ready[:, None], hit, through_funnel(scene, start, torch.zeros_like(behind)))
    gone = ball[:, 0] > 0.85
    return torch.where(gone[:, None], scene.commanded, target), torch.zeros_like(behind)


def push_cube(scene: Scene) -> Plan:
    return _slide(scene, side=-1.0)


def pull_cube(scene: Scene) -> Plan:
    return _slide(scene, side=1.0)


def lift_peg(scene: Scene) -> Plan:
    """Grasp the lying peg across its middle and turn it up; the hand leans forward first and backward in the end.

    A quarter turn to either side alone is beyond the wrist's limits.
    """
    peg, half_length = scene.objects["peg"], 0.12
    axis = geometry.rotate(peg[:, 3:], peg.new_tensor([1, 0, 0]).expand(len(peg), 3))
    upright = axis[:, 2].abs().clamp(max=1).arcsin()
    missing = torch.pi / 2 - upright
    floor = half_length * upright.sin() + 0.025 * upright.cos()  # the middle's height with one end on the table
    done = missing < torch.where(peg[:, 2] < half_length + 0.04, 0.1, 0.05)  # on its way down it may lean a little
    clear = (peg[:, 2] > floor + 0.02) | done  # with an end on the table, the peg would turn in the fingers
    height = torch.where(done, half_length, floor + 0.06)
    position = torch.stack([torch.full_like(height, 0.5), scene.tcp[:, 1], scene.tcp[:, 2] + height - peg[:, 2]], -1)
    end = torch.where(axis[:, 2].abs() > 0.3, axis[:, 2].sign(), -axis[:, 0].sign())  # of the axis: up or down
    across = torch.linalg.cross(axis, end[:, None] * axis.new_tensor([0, 0, 1]))
    turn = across * (missing / across.norm(dim=-1).clamp(min=1e-6) * clear)[:, None]
    rotation = geometry.multiply(geometry.from_rotation_vector(turn), scene.tcp[:, 3:])
    carry = torch.cat([position, rotation], -1)
    down = pointing_down(torch.zeros(len(peg)))
    grip = torch.cat([peg[:, :3], geometry.multiply(about_y(torch.full_like(missing, -0.75)), down)], -1)
    return fetch(scene, "peg", grip, carry)


def _slide(scene: Scene, side: float) -> Plan:
    """Put the shut fingers down beside the cube (`side` along x, seen from the cube) and slide it to the goal."""
    cube, goal = scene.objects["cube"], scene.objects["goal_region"]
    down = pointing_down(torch.zeros(len(cube)))
    start = torch.cat([cube[:, :3] + cube.new_tensor([side * 0.06, 0, 0]), down], -1)
    beside = side * (scene.tcp[:, 0] - cube[:, 0])
    aligned = (scene.tcp[:, 1] - cube[:, 1]).abs() < 0.015
    ready = (scene.tcp[:, 2] < CUBE) & aligned & (beside > 0.02) & (beside < 0.08)
    onward = (goal[:, 0] - cube[:, 0]).clamp(-0.03, 0.03)
    push = torch.stack([scene.commanded[:, 0] + onward, cube[:, 1], cube[:, 2]], -1)
    target = torch.where(
        ready[:, None], torch.cat([push, down], -1), through_funnel(scene, start, torch.zeros(len(cube)))
    )
    return target, torch.zeros(len(cube))


PLANS = {
    "PickCube-v1": Skill(pick_cube, {"cube": Grip(CUBE)}),
    "StackCube-v1": Skill(stack_cube, {"cubeA": Grip(CUBE)}),
    "PushCube-v1": Skill(push_cube),
    "PullCube-v1": Skill(pull_cube),
    "LiftPegUpright-v1": Skill(lift_peg, {"peg": Grip(0.05)}),
    "StackPyramid-v1": Skill(stack_pyramid, {"cubeA": Grip(CUBE), "cubeC": Grip(CUBE)}),
    "PlaceSphere-v1": Skill(place_sphere, {"sphere": Grip(0.04)}),
    "PullCubeTool-v1": Skill(pull_cube_tool, {"l_shape_tool": Grip(0.05, (0.045, 0.0, 0.0))}),
    "PegInsertionSide-v1": Skill(insert_peg, {"peg": Grip(0.04, (-0.05, 0.0, 0.0))}),
    "PlugCharger-v1": Skill(plug_charger, {"charger": Grip(0.03, (-0.026, 0.0, 0.0))}),
    "PokeCube-v1": Skill(poke_cube, {"peg": Grip(0.05, (-0.07, 0.0, 0.0))}),
    "RollBall-v1": Skill(roll_ball),
}
