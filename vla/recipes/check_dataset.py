"""Whether a dataset is fit to learn from: `python -m vla.recipes.check_dataset data=DIR`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from vla.data.checks import Check, Episode, check
from vla.data.frames import Frames, load_column, load_frames
from vla.program import Figures, program
from vla.run import write_atomically


def check_dataset(cfg: DictConfig) -> Figures:
    """A line per check on stderr and all of it in `checks.json`; ValueError, and so exit status 2, if one fails."""
    frames = load_frames(cfg.data)
    episodes = list(_episodes(Path(cfg.data), frames))
    checks = check(episodes, frames.spec)
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "checks.json", json.dumps([asdict(x) for x in checks], indent=1) + "\n")
    sys.stderr.write(_in_words(checks))
    if failed := [x.name for x in checks if x.verdict == "FAIL"]:
        raise ValueError(
            f"{cfg.data} is not fit to learn from: {', '.join(failed)}; all of it is in {run_dir}/checks.json"
        )
    said: dict[str, Any] = {x.name: {"verdict": x.verdict, "figure": x.figure} for x in checks}
    return {"data": str(cfg.data), "episodes": len(episodes), "frames": len(frames), "checks": said}


def _episodes(directory: Path, frames: Frames) -> Iterator[Episode]:
    requested, times = load_column(directory, "action.requested"), load_column(directory, "capture.time")
    action, state, success = (x.numpy() for x in (frames.action, frames.proprio, frames.success))
    for a, b in pairwise(frames.episode_start.tolist()):
        yield Episode(
            action=action[a:b],
            requested=None if requested is None else requested[a:b],
            state=state[a:b],
            times=None if times is None else times[a:b, 0],
            success=success[a:b],
            instruction=frames.instructions[int(frames.task[a])],
            pictures={name: np.asarray(x[a:b]) for name, x in frames.images.items()},
        )


def _in_words(checks: list[Check]) -> str:
    lines = [f"{x.verdict:8s}{x.name:12s}{x.figure}" for x in checks]
    lines += [f"{x.name}: {x.remedy}" for x in checks if x.verdict in ("warn", "FAIL")]
    return "\n".join(lines) + "\n"


main = program("check_dataset", check_dataset)

if __name__ == "__main__":
    main()
