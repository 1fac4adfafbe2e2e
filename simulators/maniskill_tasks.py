"""ManiSkill's tasks for one arm that need no download: what to say, which robot does it, when it counts as done."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """What a policy is told, when the simulator calls it a success, and what to make the task with."""

    instruction: str
    success: str
    robot: str | None = None  # instead of the one the task is registered with
    options: dict[str, Any] = field(default_factory=dict)


STEADY = {"domain_randomization": False}  # else its camera trembles by the process's random state, not the seed's

TASKS = {
    "PickCube-v1": Task("pick up the red cube and move it to the goal", "cube within 2.5 cm of the goal, robot still"),
    "PushCube-v1": Task(
        "push the blue cube onto the red and white target", "cube on the table, within 10 cm of the target's middle"
    ),
    "PullCube-v1": Task("pull the blue cube onto the red and white target", "cube within 10 cm of the target's middle"),
    "StackCube-v1": Task(
        "stack the red cube on the green cube", "red cube on the green one, still, let go", robot="panda"
    ),
    "LiftPegUpright-v1": Task(
        "stand the peg upright", "peg within 0.08 rad of upright, its end within 5 mm of the table"
    ),
    "PokeCube-v1": Task("poke the cube with the peg", "cube within 5 cm of the target, robot still"),
    "PullCubeTool-v1": Task("pull the cube closer with the tool", "cube within 60 cm of the robot's base"),
    "PegInsertionSide-v1": Task(
        "insert the peg into the hole from the side",
        "peg's head at most 15 mm short of the hole's middle",
    ),
    "PlugCharger-v1": Task("plug the charger into the receptacle", "charger within 5 mm and 0.2 rad of plugged in"),
    "PlaceSphere-v1": Task("put the sphere into the bin", "sphere within 5 mm of its place in the bin, still, let go"),
    "RollBall-v1": Task("roll the ball onto the target", "ball within 10 cm of the target's middle"),
    "StackPyramid-v1": Task(
        "build a pyramid from the three cubes", "red beside green, blue on both; all still and let go", robot="panda"
    ),
    "PushT-v1": Task("push the T onto its outline", "90 % of the outline covered"),
    "FMBAssembly1Easy-v1": Task(
        "stand the green bridge upright and set it into the board", "bridge within 5 mm of its place"
    ),
    "DrawTriangle-v1": Task(
        "draw along the outline of the triangle",
        "all dots on the outline, no part of it without one",
    ),
    "TableTopFreeDraw-v1": Task("draw on the canvas", "none: there is nothing to reach"),
    "PickCubeSO100-v1": Task(
        "pick up the red cube and move it to the goal", "cube within 1.6 cm of the goal, robot still"
    ),
    "SO100GraspCube-v1": Task(
        "grasp the cube and lift it to the rest pose",
        "cube held and lifted, robot commanded to its rest pose",
        options=STEADY,
    ),
}


def parts(sim: Any) -> dict[str, Any]:
    """Poses of parts of things, by name, where they differ from episode to episode and a task needs to know them."""
    if not hasattr(sim, "box_hole_pose"):
        return {}
    from mani_skill.utils.structs import Pose

    side = sim.peg_half_sizes * sim.peg_half_sizes.new_tensor([0, 1, 0])
    return {
        "peg_head": sim.peg_head_pose,
        "peg_side": sim.peg.pose * Pose.create_from_pq(p=side.to(sim.device)),
        "box_hole": sim.box_hole_pose,
    }
