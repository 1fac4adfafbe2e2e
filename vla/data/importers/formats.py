"""Finding out which format a file of demonstrations has, and its reader."""

from collections.abc import Iterator
from pathlib import Path

import h5py

from vla.data.importers import libero, maniskill, replay_buffer, robomimic
from vla.data.importers.source import Source

KNOWN = "ManiSkill (.h5 with .json), robomimic and LIBERO (.hdf5), diffusion_policy and UMI (.zarr, .zarr.zip)"


def read(path: Path | str) -> Iterator[Source]:
    """The episodes of a file of any format we know. FileNotFoundError, or ValueError saying what is wrong with it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_dir() or path.suffix == ".zip":
        return replay_buffer.read(path)
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is none of the formats that can be imported: {KNOWN}")
    with h5py.File(path) as file:
        attributes = dict(file["data"].attrs) if "data" in file else None
    if attributes is None:
        return maniskill.read(path)
    if "problem_info" in attributes or "bddl_file_name" in attributes:
        return libero.read(path)
    if "env_args" in attributes:
        return robomimic.read(path)
    raise ValueError(f"{path} has data without env_args (robomimic) or problem_info (LIBERO): which format is it?")
