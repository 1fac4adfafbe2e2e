"""The main job in one command: demonstrations, SFT, on-policy distillation, honest evaluation, a report.

`python -m vla.recipes.demo run_dir=DIR` runs the same programs that one would run by hand, and can be interrupted: what
is finished is not done again.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig

from vla.program import Figures, program
from vla.report import Stage, write_report


def demo(cfg: DictConfig) -> Figures:
    """Both evaluations are greedy and on the same episodes, which no training has seen."""
    root, env, test = Path(cfg.run_dir), list(cfg.env), list(cfg.evaluate)
    data = root / "demonstrations"
    stages = {
        "demonstrate": _stage("demonstrate", root / "demonstrate", [*env, *cfg.demonstrate, f"out={data}"]),
        "sft": _stage("sft", root / "sft", [f"data={data}", *cfg.sft]),
        "sft_test": _stage("evaluate", root / "sft_test", [*env, *test, f"policy={root / 'sft'}"]),
        "opd": _stage("online", root / "opd", [*env, *cfg.online, f"init={root / 'sft'}"]),
        "opd_test": _stage("evaluate", root / "opd_test", [*env, *test, f"policy={root / 'opd'}"]),
    }
    shown = [
        Stage("demonstrations", root / "demonstrate"),
        Stage("SFT: training", root / "sft"),
        Stage("SFT: test", root / "sft_test"),
        Stage("OPD: training", root / "opd"),
        Stage("OPD: test", root / "opd_test"),
    ]
    report = write_report(shown, root / "report.html", title="Armature demo")
    rates = {name: {x: stages[f"{name}_test"][x] for x in ("k", "n", "low", "high")} for name in ("sft", "opd")}
    return {
        **rates,
        "stage_seconds": {name: summary["seconds"] for name, summary in stages.items()},
        "report": str(report),
    }


def _stage(name: str, directory: Path, overrides: list[str]) -> Figures:
    """Run one program unless it has finished already; what it had begun it goes on with. Its errors end the demo."""
    summary = directory / "summary.json"
    if not summary.exists():
        resume = [f"resume={directory}"] if (directory / "config.yaml").exists() and name != "demonstrate" else []
        command = [sys.executable, "-m", f"vla.recipes.{name}", *overrides, f"run_dir={directory}", *resume]
        sys.stderr.write(f"\n$ {shlex.join(['python', *command[1:]])}\n")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        if done.returncode:
            raise ValueError(
                f"the stage {directory.name} ended with status {done.returncode}, see above; run again to go on"
            )
    return json.loads(summary.read_text())


main = program("demo", demo)

if __name__ == "__main__":
    main()
