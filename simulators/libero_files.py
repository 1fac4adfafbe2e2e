"""What LIBERO keeps on disk: its suites, tasks, initial states and assets, found without asking or downloading."""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulators.mujoco import quiet_imports

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
ASSETS = "LIBERO_ASSETS"  # the environment variable that names the assets' folder
CHECKOUT = Path(__file__).parents[1]
PARTS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
REMEDY = (
    "Get the assets once with `python -m simulators.libero_files download=FOLDER` (from the hub) or take the `assets` "
    f"folder of your own LIBERO checkout, and name it: env.assets=FOLDER or the environment variable {ASSETS}."
)


@dataclass(frozen=True)
class Task:
    """A task of LIBERO: `said` is the sentence of its definition, `named` the one its name makes."""

    name: str
    problem: str
    file: Path
    states: Path
    said: str
    named: str


def tasks_of(suite: str, only: str | int | None = None) -> list[Task]:
    """The tasks of a suite in the benchmark's order, or the one of that name or number. ValueError if there is none."""
    names = _order(suite)
    if only is None:
        return [_task(suite, name) for name in names]
    if isinstance(only, int) or str(only).isdigit():
        if int(only) >= len(names):
            raise ValueError(f"{suite} has tasks 0 to {len(names) - 1}, got {only}")
        return [_task(suite, names[int(only)])]
    if only not in names:
        raise ValueError(f"{suite} has no task {only!r}; there are {', '.join(names)}")
    return [_task(suite, only)]


@functools.cache
def initial_states(task: Task) -> np.ndarray:
    """The benchmark's stored initial states, `[50, numbers]`: flattened MuJoCo states."""
    import numpy._core.multiarray as multiarray

    kinds: list[Any] = [(multiarray._reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
    with torch.serialization.safe_globals([*kinds, type(np.dtype("float64"))]):
        return np.asarray(torch.load(task.states, weights_only=True))


def libero_assets(named: str | Path | None = None) -> Path:
    """The folder of meshes and textures: `named`, that of the environment variable, of LIBERO's own configuration or
    package, or `data/libero_assets` of this checkout. ValueError with the remedy where it is incomplete or nowhere."""
    if named is not None:
        return _complete(Path(named).expanduser(), "env.assets")
    if os.environ.get(ASSETS):
        return _complete(Path(os.environ[ASSETS]).expanduser(), ASSETS)
    places = [
        *_configured(),
        _package() / "assets",
        Path.home() / ".cache/libero/assets",
        CHECKOUT / "data/libero_assets",
    ]
    for place in places:
        if all((place / part).is_dir() for part in PARTS):
            return place
    raise ValueError(f"LIBERO's assets are in none of {', '.join(map(str, places))}. {REMEDY}")


@functools.cache
def assets_hash(folder: str) -> str:
    """A short hash of the names and sizes of all assets: other meshes or textures are other results."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:12]


def prepare(assets: str | None = None) -> None:
    """Import LIBERO, which otherwise asks a question, writes into the home directory and downloads."""
    with _configuration():
        libero = importlib.import_module("libero.libero")
    if assets is not None:
        vars(libero)["_assets_path_cache"] = assets
        with quiet_imports():
            importlib.import_module("libero.libero.envs")


def _complete(folder: Path, name: str) -> Path:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"{name}={folder} is not LIBERO's assets folder: it lacks {', '.join(missing)}. {REMEDY}")
    return folder.resolve()


@functools.cache
def _task(suite: str, name: str) -> Task:
    file = _package() / "bddl_files" / suite / f"{name}.bddl"
    text = file.read_text()
    problem = re.search(r"\(problem\s+(\S+?)\)", text)
    said = re.search(r"\(:language\s+(.*?)\)", text, re.DOTALL)
    if problem is None or said is None:
        raise ValueError(f"{file} is not a task's definition: it names no problem or no language")
    states = _package() / "init_files" / suite / f"{name}.pruned_init"
    return Task(name, problem[1].lower(), file, states, " ".join(said[1].split()), _sentence(name))


def _sentence(name: str) -> str:
    """As the benchmark does: without the scene that the names of LIBERO-100 begin with."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


@functools.cache
def _order(suite: str) -> list[str]:
    prepare()
    with quiet_imports():
        tasks = importlib.import_module("libero.libero.benchmark.libero_suite_task_map").libero_task_map
    return list(tasks[suite])


def _package() -> Path:
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise ValueError("LIBERO is not installed: `make setup`, or `pip install hf-libero==0.1.4`")
    return Path(found.submodule_search_locations[0]) / "libero"


def _user_config() -> Path:
    return Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"


def _configured() -> list[Path]:
    """The assets' folder of the user's own LIBERO configuration, if there is one."""
    if not _user_config().is_file():
        return []
    found = re.search(r"^assets:\s*(.+)$", _user_config().read_text(), re.MULTILINE)
    return [Path(found[1].strip("\"' "))] if found else []


@contextmanager
def _configuration() -> Iterator[None]:
    """A configuration for the moment of import, where the user has none: LIBERO would make one, asking."""
    if _user_config().is_file() or "libero.libero" in sys.modules:
        yield
        return
    folder = tempfile.mkdtemp(prefix="libero-")  # kept: LIBERO reads it again whenever it looks for a file
    places = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "../datasets", "assets": "assets"}
    lines = [f"benchmark_root: {_package()}", *(f"{key}: {_package() / place}" for key, place in places.items())]
    (Path(folder) / "config.yaml").write_text("\n".join(lines) + "\n")
    os.environ["LIBERO_CONFIG_PATH"] = folder
    yield


def _download(folder: Path) -> None:
    prepare()
    helper: Any = importlib.import_module("libero.libero.utils.download_utils")
    helper.download_assets_from_huggingface(str(folder))


if __name__ == "__main__":
    wanted = [x.removeprefix("download=") for x in sys.argv[1:] if x.startswith("download=")]
    if wanted:
        _download(Path(wanted[0]))
    sys.stdout.write(f"{libero_assets(wanted[0] if wanted else None)}\n")
