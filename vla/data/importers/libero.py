"""LIBERO's HDF5 files, raw as published or played again and cleaned: one task a file, in `data/demo_i`.

In raw files the pictures are upside-down and one step late: `obs[j]` was seen after `actions[j]`, while `states[j]` is
before it. Only states and actions are read, so neither matters: what is seen comes from playing them again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py

from vla.data.importers.robomimic import demonstrations
from vla.data.importers.source import Source


def read(path: Path) -> Iterator[Source]:
    """Every demonstration, in order of its number. Success is LIBERO's: `dones` is 1 where the task was done."""
    with h5py.File(path) as file:
        problem = json.loads(file["data"].attrs.get("problem_info", "{}"))
        env = json.loads(file["data"].attrs.get("env_args", "{}"))
        controller = env.get("env_kwargs", {}).get("controller_configs") or {"type": "OSC_POSE"}
        said = _text(problem.get("language_instruction"), path)
        yield from demonstrations(file, controller, _done, author="human", instruction=said)


def _done(group: h5py.Group) -> bool | None:
    return bool(group["dones"][:].any()) if "dones" in group else None


def _text(instruction: str | list[str] | None, path: Path) -> str:
    """The task in words; older files have it only in their name, in capitals after the scene."""
    if instruction:
        return ("".join(instruction) if isinstance(instruction, list) else instruction).strip('" ')
    words = path.stem.removesuffix("_demo").split("_")
    return " ".join(word for word in words if not word.isupper())
