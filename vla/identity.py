"""What a result depends on besides its configuration: the command, the commit, the software and the machine."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "tensordict", "ray", "numpy", "lerobot", "transformers", "mani-skill", "sapien", "hf-libero")


def identity() -> dict[str, str]:
    """Plain texts for the reader of a run; a library that is not installed is left out."""
    libraries = {name: metadata.version(name) for name in LIBRARIES if _is_installed(name)}
    return {"command": command(), "commit": commit(), "python": platform.python_version(), **libraries, **_machine()}


def fingerprint(environment: Mapping[str, Any], simulator: Mapping[str, str]) -> dict[str, Any]:
    """What figures depend on besides the policy: `identity` but for the command, the environment's configuration and
    what the simulator says of itself, with a short hash of it all.
    """
    parts = {name: text for name, text in identity().items() if name != "command"}
    whole = {**parts, "environment": dict(environment), "simulator": dict(simulator)}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return {"hash": digest[:12], **whole}


def command() -> str:
    """How this program was started, to be repeated from the root of the checkout."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["-m", module.name] if module is not None else [Path(sys.argv[0]).name]
    return shlex.join(["python", *start, *sys.argv[1:]])


def commit() -> str:
    """The commit of the checkout, with `+` if files differ from it; `unknown` outside a repository."""
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _machine() -> dict[str, str]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"platform": f"{platform.system()} {platform.machine()}", "gpu": gpu}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
