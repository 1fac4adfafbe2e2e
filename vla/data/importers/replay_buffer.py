"""Replay buffers as of diffusion_policy and UMI: zarr (version 2) of all episodes end to end, or a zip of it.

`data/NAME` are arrays over all frames, `meta/episode_ends` says where each episode ends (exclusive). UMI has no
actions: a hand-held gripper was carried from pose to pose, and the action is the next pose.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from vla.data.importers.source import Recording, Source

POSES = ("robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width")


def read(path: Path) -> Iterator[Source]:
    """Every episode, decoded one at a time. ValueError for a buffer that no arm of ours could play.

    JPEG XL and JPEG 2000 pictures need the package imagecodecs (`pip install armature-vla[umi]`).
    """
    from zarr.errors import UnknownCodecError

    try:
        yield from _episodes(path, _open(path))
    except UnknownCodecError as error:
        raise ValueError(f"{path} has pictures that need `pip install imagecodecs`: {error}") from None


def _open(path: Path) -> Any:
    import zarr

    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:  # needed only if the pictures are compressed so, and then zarr says it
        pass
    else:
        register_codecs(verbose=False)
    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    try:
        return zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError:
        raise ValueError(f"{path} is no zarr group of version 2: name the folder or zip with data and meta") from None


def _episodes(path: Path, root: Any) -> Iterator[Source]:
    data = dict(root["data"].arrays())
    ends = _checked_ends(path, np.asarray(root["meta/episode_ends"][:]), {k: v.shape[0] for k, v in data.items()})
    if missing := [name for name in POSES if name not in data]:
        raise ValueError(
            f"{path} has {sorted(data)} but not {missing}: only buffers with tool poses in metres can be imported. The "
            "actions of Push-T are targets in pixels of a drawing for a disc without an arm, so they are no commands "
            "of ours."
        )
    if "robot1_eef_pos" in data:
        raise ValueError(f"{path} is of two arms at once; our commands are for one")
    pictures = sorted(name for name in data if name.endswith("_rgb"))
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows = slice(int(start), int(end))
        position, rotation, width = (np.asarray(data[name][rows], np.float64) for name in POSES)
        images = {name.removesuffix("_rgb"): data[name][rows] for name in pictures}
        recording = Recording(images, position, rotation, width.reshape(-1, 1))
        yield Source(name=f"episode {i} of {path.name}", author="human", recording=recording)


def _checked_ends(path: Path, ends: Int[ndarray, " episodes"], lengths: dict[str, int]) -> Int[ndarray, " episodes"]:
    frames = set(lengths.values())
    if len(frames) != 1:
        raise ValueError(f"the arrays of {path} are not of the same length: {lengths}")
    if not len(ends) or (np.diff(ends, prepend=0) < 2).any() or ends[-1] != frames.copy().pop():
        raise ValueError(
            f"meta/episode_ends of {path} must rise by at least 2 to the number of frames ({frames.pop()}), it is "
            f"{ends[:5].tolist()} ... {ends[-1:].tolist()}"
        )
    return ends
