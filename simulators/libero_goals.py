"""What a scripted expert may know of a LIBERO task: the thing to move next, and where to.

The goal is a list of predicates. The first `On` or `In` that does not hold yet names an object and a place; both are
told as the pose and half size (metres) of the box around them, so that one expert serves all objects.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.mujoco_arm import Arm

MOVES = ("on", "in")
TOLD = {"object": 7, "object_size": 3, "object_depth": 1, "place": 7, "place_size": 3}


def first_unmet_goal(arm: Arm) -> dict[str, Tensor]:
    """`object` and `place`, poses in the base frame; `object_size`, `place_size`; `object_depth`, of its hollow (m).

    All zero where the task is not to move a thing to a place.
    """
    env = arm.env
    goals = [goal for goal in env.parsed_problem["goal_state"] if goal[0] in MOVES and len(goal) == 3]
    if not goals:  # to open or turn something: the same names, so that tasks can be put side by side
        return {name: torch.zeros(1, size) for name, size in TOLD.items()}
    unmet = [goal for goal in goals if not env._eval_predicate(goal)]
    _, thing, place = (unmet or goals)[0]
    pose, size, depth = _box(arm, thing)
    where, room = _region(arm, place)
    return {
        "object": pose,
        "object_size": torch.from_numpy(size).float()[None],
        "object_depth": torch.tensor([[depth]]),
        "place": where,
        "place_size": torch.from_numpy(room).float()[None],
    }


def _region(arm: Arm, name: str) -> tuple[Tensor, np.ndarray]:
    """A site's pose and half size, or those of the box around an object."""
    if name not in arm.env.object_sites_dict:
        pose, size, _ = _box(arm, name)
        return pose, size
    site = arm.model.site(name).id
    return arm.in_base(arm.data.site_xpos[site], arm.data.site_xmat[site]), arm.model.site_size[site]


def _box(arm: Arm, name: str) -> tuple[Tensor, np.ndarray, float]:
    """The pose of the middle of the box around an object, its half size, and how deep it is hollow in the middle."""
    body = arm.env.obj_body_id[name]
    boxes = vars(arm).setdefault("boxes", {})
    if name not in boxes:
        boxes[name] = _measure(arm, body)
    middle, size, depth = boxes[name]
    rotation = arm.data.xmat[body].reshape(3, 3)
    return arm.in_base(arm.data.xpos[body] + rotation @ middle, arm.data.xquat[body]), size, depth


def _measure(arm: Arm, body: int) -> tuple[np.ndarray, np.ndarray, float]:
    """From the collision shapes, in the body's frame."""
    rotation, position = arm.data.xmat[body].reshape(3, 3), arm.data.xpos[body]
    corners = []
    for geom in _collision_shapes(arm.model, body):
        middle, half = arm.model.geom_aabb[geom, :3], arm.model.geom_aabb[geom, 3:]
        local = middle + half * np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        world = local @ arm.data.geom_xmat[geom].reshape(3, 3).T + arm.data.geom_xpos[geom]
        corners.append((world - position) @ rotation)
    low, high = np.array([x.min(0) for x in corners]), np.array([x.max(0) for x in corners])
    bottom, top = low.min(0), high.max(0)
    middle = (bottom + top) / 2
    covers = ((low <= middle) & (middle <= high))[:, :2].all(-1)
    floor = high[covers, 2].max() if covers.any() else bottom[2]
    return middle, (top - bottom) / 2, float(top[2] - floor)


def _collision_shapes(model: Any, body: int) -> list[int]:
    bodies = {body}
    for child in range(body + 1, model.nbody):
        if model.body_parentid[child] in bodies:
            bodies.add(child)
    shapes = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] in bodies]
    return [geom for geom in shapes if model.geom_contype[geom] or model.geom_conaffinity[geom]] or shapes
