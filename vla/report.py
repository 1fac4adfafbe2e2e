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

from vla.comparison import compare, differing, discordant, environment_of
from vla.evaluation import read_episodes
from vla.figures import as_data, filmstrip, metric_curves, success_curves
from vla.run import read_metrics, write_atomically
from vla.statistics import Rate

PAGE = Path(__file__).with_name("report.html")
MAX_FILM_BYTES = 300_000
FILMS_PER_END = 3
CHECKS = {
    "policy": "the policy on the same episodes",
    "zero": "no motion",
    "random": "random commands",
    "blind": "the policy with black pictures",
    "wrong_instruction": "the policy told something else",
    "expert": "scripted expert",
}


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


def _success(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        if stage.rate:
            rows.append(_rate_row(stage.name, stage.rate, "stage"))
            rows += [_rate_row(name, x, "task") for name, x in _parts(stage.summary).items()]
    if not rows:
        return ""
    head = "<tr><th>stage</th><th>successes</th><th>rate</th><th>95 % interval (Wilson)</th><th></th></tr>"
    return _section("Success", f"<table>{head}{''.join(rows)}</table>")


def _parts(summary: dict[str, Any]) -> dict[str, Rate]:
    """What is shown below a stage: its tasks, success at the end where it is another figure, and sanity checks."""
    tasks, at_end = summary.get("tasks", {}), summary.get("at_end")
    parts: dict[str, Rate] = tasks if len(tasks) > 1 else {}
    if at_end and at_end["k"] != summary["k"]:
        parts = {"at the end of the episode": at_end, **parts}
    checks = {name: x for name, x in summary.get("sanity", {}).items() if _is_rate(x)}
    return {**parts, **{f"sanity check: {CHECKS.get(name, name)}": x for name, x in checks.items()}}


def _rate_row(name: str, x: Rate, kind: str) -> str:
    share = x["k"] / x["n"] if x["n"] else 0.0
    bar = (
        f'<div class="bar"><i style="left:{x["low"]:.2%};width:{x["high"] - x["low"]:.2%}"></i>'
        f'<b style="left:{share:.2%}"></b></div>'
    )
    cells = (escape(name), f"{x['k']} of {x['n']}", f"{share:.0%}", f"{x['low']:.0%} to {x['high']:.0%}", bar)
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _pairs(stages: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Neighbouring evaluations of the same episodes in the same environment."""
    evaluated = [stage for stage in stages if read_episodes(stage.directory)]
    pairs = itertools.pairwise(evaluated)
    alike = [(a, b) for a, b in pairs if not differing(environment_of(a.directory), environment_of(b.directory))]
    return [(a, b) for a, b in alike if sum(discordant(read_episodes(a.directory), read_episodes(b.directory)))]


def _pair(first: Stage, second: Stage) -> str:
    found = compare(read_episodes(first.directory), read_episodes(second.directory))
    only_first, only_second = found["only_first"], found["only_second"]
    a, b = escape(first.name), escape(second.name)
    table = (
        f"<table class='four'><tr><th></th><th>{b} succeeds</th><th>{b} fails</th></tr>"
        f"<tr><th>{a} succeeds</th><td>{found['both']}</td><td>{only_first}</td></tr>"
        f"<tr><th>{a} fails</th><td>{only_second}</td><td>{found['neither']}</td></tr></table>"
    )
    at = found["rejected_at"]
    verdict = f"they differ, as was clear after {at} pairs" if at else "whether they differ is not clear yet"
    text = (
        f"<p>Of the {found['pairs']} episodes that both played, {only_second} were solved only by <em>{b}</em> and "
        f"{only_first} only by <em>{a}</em>: exact McNemar p = {found['p']:.2g}.</p><p class='note'>Read after every "
        f"pair (e-process, {found['alpha']:.0%}): {verdict}; the largest e is {found['max_e']:.3g}.</p>"
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
