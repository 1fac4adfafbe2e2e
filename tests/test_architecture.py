"""The rules that keep the repository easy to see: who may import whom, and how long a file may be."""

import ast
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "vla": {"vla"},
    "policies": {"vla", "policies"},
    "simulators": {"vla", "simulators"},
    "real": {"vla", "real"},
}
RAY = {"vla/cluster.py", "vla/serving.py"}
LONG = {"simulators/maniskill.py": 400}  # a sign, not a sin: each must be worth it
FILES = {str(x.relative_to(ROOT)): x for package in MAY_IMPORT for x in sorted((ROOT / package).rglob("*.py"))}


def imported(source: str) -> set[str]:
    """The top-level packages that are imported anywhere in the file, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_inward_and_are_absolute(file):
    names = imported(FILES[file].read_text())
    assert "" not in names, "relative import"
    assert names & set(MAY_IMPORT) <= MAY_IMPORT[file.split("/")[0]]


@pytest.mark.parametrize("file", FILES)
def test_only_two_files_import_ray(file):
    assert "ray" not in imported(FILES[file].read_text()) or file in RAY


@pytest.mark.parametrize("file", FILES)
def test_files_are_short_and_say_what_they_are_for(file):
    source = FILES[file].read_text()
    assert len(source.splitlines()) < LONG.get(file, 300)
    assert not source or ast.get_docstring(ast.parse(source)), "no docstring"


def test_these_checks_see_what_they_forbid():
    assert imported("import ray.util\nfrom simulators.point import PointEnv") == {"ray", "simulators"}
    assert imported("def f():\n    from . import x") == {""}
    assert {"vla/cluster.py", "vla/types.py", "simulators/point.py"} <= FILES.keys()
    assert all("ray" in imported(FILES[file].read_text()) for file in RAY)


def test_no_other_distribution_claims_our_packages():
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name == "armature-vla":
            continue
        claimed = {Path(file).parts[0] for file in distribution.files or []} & set(MAY_IMPORT)
        assert not claimed, f"{name} installs {claimed}, which would hide ours or be hidden"
