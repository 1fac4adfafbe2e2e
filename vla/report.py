"""One page about a run, or about several stages side by side: `python -m vla.report RUN_DIR [NAME=RUN_DIR ...]`.

`out=report.html` says where to write it (default: into the last directory). The page holds everything it shows and
works without JavaScript or a network.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vla.evaluation import Episode, read_episodes
from vla.figures import as_data, filmstrip, metric_curves, success_curves
from vla.run import read_metrics, write_atomically
from vla.statistics import Rate, mcnemar

PAGE = Path(__file__).with_name("report.html")
MAX_FILM_BYTES = 300_000
FILMS_PER_END = 3


@dataclass(frozen=True)
class Stage:
    """A directory that a program wrote, with the name it gets on the page."""

    name: str
    directory: Path

    def read(self, file: str) -> dict[str, Any]:
        path = self.directory / file
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def summary(self) -> dict[str, Any]:
        return self.read("summary.json")

    @property
    def rate(self) -> Rate | None:
        """The stage's success rate: its own, or the last test of a run that learns."""
        found = next((x for x in (self.summary, *map(self.summary.get, ("final", "success"))) if _is_rate(x)), None)
        return {"k": found["k"], "n": found["n"], "low": found["low"], "high": found["high"]} if found else None


def write_report(stages: Sequence[Stage], out: Path | str, title: str = "Report") -> Path:
    """Write the page. FileNotFoundError for a stage without a summary, a log or episodes."""
    for stage in stages:
        if not any((stage.directory / x).exists() for x in ("summary.json", "metrics.jsonl", "episodes.csv")):
            raise FileNotFoundError(f"{stage.directory} holds no run: no summary.json, metrics.jsonl or episodes.csv")
    sections = [
        _success(stages),
        *(_pair(a, b) for a, b in _pairs(stages)),
        *(_curves(stage) for stage in stages),
        *(_films(stage) for stage in stages),
        _reproduce(stages),
    ]
    page = PAGE.read_text().replace("{{title}}", escape(title)).replace("{{body}}", "\n".join(filter(None, sections)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out), page)
    return Path(out)


def discordant(first: Sequence[Episode], second: Sequence[Episode]) -> tuple[int, int, int, int]:
    """Of the episodes both played: solved by both, only by the first, only by the second, by neither."""
    other = {x.seed: x.success for x in second}
    both = [(x.success, other[x.seed]) for x in first if x.seed in other]
    return both.count((True, True)), both.count((True, False)), both.count((False, True)), both.count((False, False))


def _success(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        if stage.rate:
            rows.append(_rate_row(stage.name, stage.rate, "stage"))
            tasks = stage.summary.get("tasks", {})
            rows += [_rate_row(task, x, "task") for task, x in tasks.items()] if len(tasks) > 1 else []
    if not rows:
        return ""
    head = "<tr><th>stage</th><th>successes</th><th>rate</th><th>95 % interval (Wilson)</th><th></th></tr>"
    return _section("Success", f"<table>{head}{''.join(rows)}</table>")


def _rate_row(name: str, x: Rate, kind: str) -> str:
    share = x["k"] / x["n"] if x["n"] else 0.0
    bar = (
        f'<div class="bar"><i style="left:{x["low"]:.2%};width:{x["high"] - x["low"]:.2%}"></i>'
        f'<b style="left:{share:.2%}"></b></div>'
    )
    cells = (escape(name), f"{x['k']} of {x['n']}", f"{share:.0%}", f"{x['low']:.0%} to {x['high']:.0%}", bar)
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _pairs(stages: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Neighbouring evaluations of the same episodes."""
    evaluated = [stage for stage in stages if read_episodes(stage.directory)]
    pairs = itertools.pairwise(evaluated)
    return [(a, b) for a, b in pairs if sum(discordant(read_episodes(a.directory), read_episodes(b.directory)))]


def _pair(first: Stage, second: Stage) -> str:
    both, only_first, only_second, neither = discordant(read_episodes(first.directory), read_episodes(second.directory))
    a, b = escape(first.name), escape(second.name)
    table = (
        f"<table class='four'><tr><th></th><th>{b} succeeds</th><th>{b} fails</th></tr>"
        f"<tr><th>{a} succeeds</th><td>{both}</td><td>{only_first}</td></tr>"
        f"<tr><th>{a} fails</th><td>{only_second}</td><td>{neither}</td></tr></table>"
    )
    p = mcnemar(only_first, only_second)
    text = (
        f"<p>Of the {both + only_first + only_second + neither} episodes that both played, {only_second} were solved "
        f"only by <em>{b}</em> and {only_first} only by <em>{a}</em>: exact McNemar p = {p:.2g}.</p>"
    )
    return _section(f"The same episodes: {a} and {b}", table + text)


def _curves(stage: Stage) -> str:
    rows = read_metrics(stage.directory)
    pictures = [success_curves(rows)] if any("test/success" in x or "train/success" in x for x in rows) else []
    pictures += [x for x in [metric_curves(rows) if rows else None] if x]
    images = "".join(f'<img class="plot" src="{x}" alt="learning curves of {escape(stage.name)}">' for x in pictures)
    note = '<p class="note">Bands: 95 % Wilson intervals of rates, 10th to 90th percentile of other figures.</p>'
    return _section(f"Learning: {escape(stage.name)}", images + note) if images else ""


def _films(stage: Stage) -> str:
    paths = sorted((stage.directory / "videos").glob("*.mp4"))
    steps = sorted({x.name.split("_seed")[0] for x in paths if x.name.startswith("step_")})
    last = [x for x in paths if not steps or x.name.startswith(steps[-1])]
    shown = [x for end in ("success", "failure") for x in [y for y in last if end in y.name][:FILMS_PER_END]]
    if not shown:
        return ""
    told = {x.seed: x.instruction for x in read_episodes(stage.directory)}
    return _section(f"Episodes: {escape(stage.name)}", "".join(_film(path, told) for path in shown))


def _film(path: Path, told: dict[int, str]) -> str:
    seed, end = path.stem.split("seed_")[1].split("_")
    instruction = escape(told.get(int(seed), ""))
    video = ""
    if path.stat().st_size <= MAX_FILM_BYTES:
        source = as_data("video/mp4", path.read_bytes())
        video = f'<details><summary>play</summary><video controls loop muted src="{source}"></video></details>'
    caption = f'<figcaption><span class="{end}">{end}</span> episode {seed} <em>{instruction}</em></figcaption>'
    return f'<figure class="{end}">{caption}<img src="{filmstrip(path)}" alt="{end}, episode {seed}">{video}</figure>'


def _reproduce(stages: Sequence[Stage]) -> str:
    parts = []
    for stage in stages:
        identity = stage.read("identity.json")
        config = stage.directory / "config.yaml"
        figures = {k: v for k, v in stage.summary.items() if not isinstance(v, list | dict)}
        parts.append(f"<h3>{escape(stage.name)}</h3>")
        if command := identity.pop("command", None):
            parts.append(f"<pre>{escape(command)}</pre>")
        parts.append(_details("figures", figures) + _details("versions", identity))
        if config.exists():
            parts.append(f"<details><summary>configuration</summary><pre>{escape(config.read_text())}</pre></details>")
    return _section("How to repeat it", "".join(parts))


def _details(name: str, plain: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in plain.items())
    return f"<details><summary>{name}</summary><table>{rows}</table></details>" if rows else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _is_rate(x: Any) -> bool:
    return isinstance(x, dict) and {"k", "n", "low", "high"} <= x.keys()


def main(arguments: Sequence[str]) -> int:
    """Exit status 2, with one message, for what the user can mend."""
    named = [x.partition("=") for x in arguments]
    out = next((Path(value) for name, _, value in named if name == "out"), None)
    pairs = [(Path(value or name), name) for name, _, value in named if name != "out"]
    stages = [Stage(directory.name if str(directory) == name else name, directory) for directory, name in pairs]
    try:
        if not stages:
            raise ValueError("name at least one run directory: python -m vla.report RUN_DIR [NAME=RUN_DIR ...]")
        written = write_report(
            stages, out or stages[-1].directory / "report.html", title=" · ".join(x.name for x in stages)
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"report: {error}\n")
        return 2
    sys.stdout.write(json.dumps({"program": "report", "out": str(written), "stages": len(stages)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
