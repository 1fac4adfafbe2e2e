"""robomimic's HDF5 files: one group `data/demo_i` per episode, played in robosuite."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla.data.importers.source import Source, require_aligned


def read(path: Path) -> Iterator[Source]:
    """Every demonstration, in order of its number; `states[t]` is MuJoCo's flattened state before `actions[t]`.

    Success is a positive reward anywhere (robosuite's sparse reward). ValueError for environments of other simulators.
    """
    with h5py.File(path) as file:
        env = json.loads(file["data"].attrs["env_args"])
        if env.get("type", 1) != 1:
            raise ValueError(
                f"{path} was recorded in a simulator of robomimic's type {env['type']}; only 1 (robosuite)"
            )
        controller = env["env_kwargs"].get("controller_configs") or {"type": "OSC_POSE"}
        yield from demonstrations(file, controller, _success, author="robomimic", env=env["env_name"])


def demonstrations(
    file: h5py.File, controller: Mapping[str, Any], success: Callable[[h5py.Group], bool | None], **told: Any
) -> Iterator[Source]:
    """Every `data/demo_i` of this layout, in order of its number; `told` is the same of all (`Source`)."""
    for name in sorted(file["data"], key=lambda x: int(x.rpartition("_")[2])):
        group = file["data"][name]
        source = Source(
            name=name,
            actions=group["actions"][:].astype(np.float32),
            controller=controller["type"],
            settings=controller,
            success=success(group),
            start={"state": group["states"][0], "model": group.attrs.get("model_file")},
            states=group["states"][:],
            **told,
        )
        require_aligned(source, len(source.states))
        yield source


def _success(group: h5py.Group) -> bool | None:
    return bool((group["rewards"][:] > 0).any()) if "rewards" in group else None
