"""Programs: a body `(cfg) -> figures` as a command that ends in one line of JSON, or in one line saying why not."""

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vla.run import write_atomically

Figures = dict[str, Any]
CONFIGS = str(Path(__file__).parents[1] / "configs")
TRACEBACK = "ARMATURE_TRACEBACK"
FILE_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException, *FILE_ERRORS)


def program(
    name: str, body: Callable[[DictConfig], Figures], short: Mapping[str, str] | None = None
) -> Callable[[], None]:
    """The command configured by `configs/<name>.yaml`, which must have `run_dir`.

    Writes `summary.json` into the run directory and prints it as the last line of stdout: one line of JSON with
    `program`, `seconds`, `run_dir` and the figures. All else goes to stderr. What the user can mend (a wrong value, a
    missing file) is one message and exit status 2, without a traceback unless ARMATURE_TRACEBACK=1; anything
    unexpected has its traceback and status 1. `resume=DIR` repeats the overrides that DIR was started with. `short`
    are names for keys: Hydra reads `policy=X` as an option of the group `policy`, so a path needs another key.
    """

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of exiting
        ended: dict[str, Any] = {}
        try:
            sys.argv[1:] = with_earlier_overrides(_in_full(sys.argv[1:], short or {}))
            hydra.main(config_path=CONFIGS, config_name=name, version_base="1.3")(_task(name, body, ended))()
            if "error" in ended:
                raise ended["error"]
        except KeyboardInterrupt:
            sys.stderr.write(f"{name}: interrupted\n")
            sys.exit(130)
        except USER_ERRORS as error:
            if os.environ.get(TRACEBACK) or not _is_for_the_user(error):
                raise
            sys.stderr.write(f"{name}: {message(error)}\n")
            sys.exit(2)
        finally:
            _close_logs()
        sys.stderr.flush()
        if "summary" in ended:  # not after --help or --cfg
            sys.stdout.write(json.dumps(ended["summary"]) + "\n")

    return main


def _close_logs() -> None:
    """The file that Hydra has everything logged to: in one process there may be several programs, one by one."""
    root = logging.getLogger()
    for handler in [x for x in root.handlers if isinstance(x, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def summarised(name: str, body: Callable[[DictConfig], Figures], cfg: DictConfig) -> Figures:
    """Run `body`, write its `summary.json` and return that."""
    start = time.perf_counter()
    figures = body(cfg)
    seconds = round(time.perf_counter() - start, 3)
    summary = {"program": name, "seconds": seconds, "run_dir": str(cfg.run_dir), **figures}
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(cfg.run_dir) / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def with_earlier_overrides(arguments: list[str]) -> list[str]:
    """The command line, with what a run was started with put before `resume=DIR`; what is said again counts."""
    named = [x.partition("=")[2] for x in arguments if x.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return arguments
    path = Path(named[-1]) / ".hydra" / "overrides.yaml"
    if not path.exists():
        raise FileNotFoundError(f"resume={named[-1]}: there is no run ({path} is missing); name its directory")
    said = {_key(x) for x in arguments} | {"run_dir", "resume"}
    earlier = [str(x) for x in OmegaConf.load(path) if _key(str(x)) not in said]
    return [*earlier, *arguments, *([] if "run_dir" in map(_key, arguments) else [f"run_dir={named[-1]}"])]


def message(error: BaseException) -> str:
    """What is wrong, on one line if it can be."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=... is required"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        mendable = isinstance(error.__cause__, USER_ERRORS)
        return message(error.__cause__) if mendable else " ".join(str(error).split())
    if isinstance(error, OmegaConfBaseException):
        return str(error).partition("\n")[0]
    reason = str(error.__cause__).partition("\n")[0] if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return f"{error} {reason}".strip()


def _task(name: str, body: Callable[[DictConfig], Figures], ended: dict[str, Any]) -> Callable[[DictConfig], None]:
    """What Hydra runs. It reports every error in its own way, so errors are carried past it."""

    @functools.wraps(body)
    def task(cfg: DictConfig) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        try:
            with redirect_stdout(sys.stderr):
                ended["summary"] = summarised(name, body, cfg)
        except Exception as error:  # raised again by `main`
            ended["error"] = error

    return task


def _in_full(arguments: list[str], short: Mapping[str, str]) -> list[str]:
    """`algorithm.lr=1` may name any parameter of the constructor, also one that its YAML leaves at its default.

    A wrong name is refused by the constructor.
    """
    full = [f"{short[_key(x)]}={x.partition('=')[2]}" if _key(x) in short else x for x in arguments]
    return [f"++{x}" if "." in x.partition("=")[0] and x[0].isalpha() else x for x in full]


def _is_for_the_user(error: BaseException) -> bool:
    """A constructor called with a bad value, or with a key it does not have, is; a fault inside it is not."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return isinstance(error.__cause__, (*USER_ERRORS, TypeError, ImportError))
    return True


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
