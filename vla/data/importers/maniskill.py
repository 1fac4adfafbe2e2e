"""ManiSkill's recorded trajectories: NAME.h5 with the arrays and NAME.json beside it with what they mean."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla.data.importers.source import Source, require_aligned


def read(path: Path) -> Iterator[Source]:
    """Every trajectory of the file, in the order of its JSON. Needs the environment states (`record_env_state`).

    Success is that of any step, as our environments count it: a planner plays on after it. ValueError names what is
    missing.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise ValueError(f"{path} needs {beside.name} beside it, which says what its numbers mean")
    described = json.loads(beside.read_text())
    author = described.get("source_type") or "maniskill"
    with h5py.File(path) as file:
        for episode in described["episodes"]:
            yield _source(file, episode, described["env_info"], author)


def _source(file: h5py.File, episode: dict[str, Any], env: dict[str, Any], author: str) -> Source:
    name = f"traj_{episode['episode_id']}"
    if name not in file:
        raise ValueError(f"{file.filename} has no {name}, which its JSON names: the two are not of the same recording")
    group = file[name]
    if "env_states" not in group:
        raise ValueError(f"{file.filename} has no env_states in {name}: record again with record_env_state=True")
    states = _tree(group["env_states"])
    flags = group["success"][:] if "success" in group else None
    seed = episode.get("episode_seed")
    source = Source(
        name=name,
        author=author,
        actions=group["actions"][:].astype(np.float32),
        controller=episode.get("control_mode") or env["env_kwargs"].get("control_mode"),
        settings={"robot": env["env_kwargs"].get("robot_uids", "panda")},
        env=env["env_id"],
        success=bool(flags.any()) if flags is not None else episode.get("success"),
        seed=seed if isinstance(seed, int) else None,
        start={"seed": seed, **at(states, 0)},
        states=states,
    )
    for array in _leaves(states):
        require_aligned(source, len(array))
    return source


def at(states: Mapping[str, Any], t: int) -> dict[str, Any]:
    """The state of one moment, as ManiSkill's `set_state_dict` takes it."""
    return {key: at(value, t) if isinstance(value, Mapping) else value[t] for key, value in states.items()}


def _tree(group: h5py.Group) -> dict[str, Any]:
    return {key: _tree(value) if isinstance(value, h5py.Group) else value[:] for key, value in group.items()}


def _leaves(tree: Mapping[str, Any]) -> Iterator[np.ndarray]:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, Mapping) else [value]
