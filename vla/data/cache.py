"""The decoded pictures of a dataset on disk, so that training does not wait for video."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import zarr

logger = logging.getLogger(__name__)
CACHE = ".cache"
FRAMES_PER_CHUNK = 64


def cached(directory: Path, readers: Mapping[str, Callable[[], np.ndarray]]) -> dict[str, np.ndarray]:
    """The pictures by camera, uint8 `[frame, height, width, 3]`, from `readers` or from what is kept of them.

    What was read is kept as zarr below `directory/.cache`, named by the fingerprint of all files of the dataset: one
    that changed is decoded again. Where nothing can be written, nothing is kept.
    """
    store = directory / CACHE / f"{_fingerprint(directory)}.zarr"
    if store.exists():
        return {name: np.asarray(zarr.open_array(store / name, mode="r")) for name in readers}
    pictures = {name: read() for name, read in readers.items()}
    try:
        _keep(store, pictures)
    except OSError as error:
        logger.warning("the decoded pictures of %s are not kept: %s", directory, error)
    return pictures


def _keep(store: Path, pictures: dict[str, np.ndarray]) -> None:
    shutil.rmtree(store.parent, ignore_errors=True)  # those of the dataset as it was
    store.parent.mkdir()
    part = Path(tempfile.mkdtemp(dir=store.parent))
    group = zarr.open_group(part, mode="w", zarr_format=3)
    for name, values in pictures.items():
        group.create_array(name, data=values, chunks=(FRAMES_PER_CHUNK, *values.shape[1:]))
    part.rename(store)


def _fingerprint(directory: Path) -> str:
    """A hash of the names and contents of all files that belong to the dataset."""
    total = hashlib.blake2b(digest_size=16)
    for part in ("data", "meta", "videos"):
        for path in sorted(x for x in (directory / part).rglob("*") if x.is_file()):
            total.update(str(path.relative_to(directory)).encode())
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()
