"""Pictures of a report: learning curves and filmstrips, as data that a page can hold."""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vla.statistics import wilson
from vla.video import read_video

BLUE, ORANGE, GREY = "#2563a8", "#c2621b", "#6b7280"
COLOURS = {"test": BLUE, "train": ORANGE}
MAX_POINTS = 200  # more cannot be told apart, and pages become large
Row = Mapping[str, float | int]


def success_curves(rows: Sequence[Row]) -> str:
    """Success over time, of tests and of training, each with its 95 % Wilson interval."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for prefix, colour in COLOURS.items():
        known = [row for row in rows if f"{prefix}/success" in row]
        if known:
            steps, shares, low, high = pooled_rates(known, prefix)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, shares, color=colour, marker="o" if prefix == "test" else None, ms=4, label=prefix)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.legend(frameon=False, loc="lower right")
    return _finish(figure, [axes], ["success"])


def metric_curves(rows: Sequence[Row], most: int = 6) -> str | None:
    """The other figures of a log over time, in small panels; None if there are none."""
    names = [name for name in _names(rows) if name not in ("step", "epoch", "lr") and "/" not in name][:most]
    if not names:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(7.2, 2.0 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        steps, means, low, high = binned([(row["step"], row[name]) for row in rows if row.get(name) is not None])
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(steps, means, color=BLUE)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    return _finish(figure, list(grid[: len(names)]), [name.replace("_", " ") for name in names])


def pooled_rates(rows: Sequence[Row], prefix: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, rates and their bounds; neighbouring steps are pooled where there are too many to show."""
    steps, shares, lows, highs = [], [], [], []
    for some in _groups(rows, 40 if prefix == "train" else MAX_POINTS):
        n = round(sum(row[f"{prefix}/episodes"] for row in some))
        k = round(sum(row[f"{prefix}/success"] * row[f"{prefix}/episodes"] for row in some))
        low, high = wilson(k, n)
        steps.append(sum(row["step"] for row in some) / len(some))
        shares.append(k / n)
        lows.append(low)
        highs.append(high)
    return steps, shares, lows, highs


def binned(
    points: Sequence[tuple[float | int, float | int]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, means, 10th and 90th percentile of neighbouring points."""
    groups = [np.asarray(some) for some in _groups(points, MAX_POINTS)]
    low, high = zip(*(np.nanquantile(some[:, 1], [0.1, 0.9]).tolist() for some in groups), strict=True)
    means = [some.mean(0).tolist() for some in groups]
    return [x for x, _ in means], [y for _, y in means], list(low), list(high)


def filmstrip(path: Path, pictures: int = 6, height: int = 128) -> str:
    """Evenly spaced pictures of a film side by side, the first and the last among them, as a JPEG."""
    frames = _until_it_stops(read_video(path).numpy())
    chosen = [PIL.Image.fromarray(frames[i]) for i in np.linspace(0, len(frames) - 1, pictures).round().astype(int)]
    width = round(chosen[0].width * height / chosen[0].height)
    strip = PIL.Image.new("RGB", (pictures * (width + 4) - 4, height), "white")
    for i, picture in enumerate(chosen):
        strip.paste(picture.resize((width, height)), (i * (width + 4), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=85)
    return as_data("image/jpeg", buffer.getvalue())


def as_data(kind: str, content: bytes) -> str:
    """A `data:` address, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _until_it_stops(frames: np.ndarray) -> np.ndarray:
    """Without the last picture's repetitions (films hold it, and encoding changes it a little)."""
    moved = np.abs(frames.astype(np.int16) - frames[-1]).mean((1, 2, 3)) > 0.5
    return frames[: min(len(frames), int(moved.nonzero()[0].max(initial=-1)) + 2)]


def _groups(items: Sequence, most: int) -> list[Sequence]:
    bounds = np.linspace(0, len(items), min(most, len(items)) + 1).round().astype(int)
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _finish(figure: Figure, grid: Sequence[Axes], titles: Sequence[str]) -> str:
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=9, color="#111827")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=GREY)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step", fontsize=8, color=GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return as_data("image/svg+xml", buffer.getvalue())
