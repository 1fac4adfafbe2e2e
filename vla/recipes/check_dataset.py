"""Whether a dataset is fit to learn from: `python -m vla.recipes.check_dataset data=DIR`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vla.data.checks import BAD, Check, check
from vla.data.frames import load_frames
from vla.data.signals import episodes_of
from vla.program import Figures, program
from vla.run import write_atomically


def check_dataset(cfg: DictConfig) -> Figures:
    """A line per check on stderr and all of it in `checks.json`; ValueError, and so exit status 2, if one fails."""
    frames = load_frames(cfg.data)
    episodes = list(episodes_of(Path(cfg.data), frames))
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


def _in_words(checks: list[Check]) -> str:
    lines = [f"{x.verdict:8s}{x.name:12s}{x.figure}" for x in checks]
    lines += [f"{x.name}: {x.remedy}" for x in checks if x.verdict in BAD]
    return "\n".join(lines) + "\n"


main = program("check_dataset", check_dataset)

if __name__ == "__main__":
    main()
