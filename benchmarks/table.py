"""Rows of a benchmark in a CSV file: dataclasses of plain values, one line each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vla.run import write_atomically


def read[Row](path: Path, kind: type[Row]) -> list[Row]:
    """What `write` wrote; nothing if there is none."""
    if not path.exists():
        return []
    columns: Any = fields(kind)  # type: ignore[arg-type]
    with open(path, newline="") as file:
        return [kind(**{x.name: x.type(row[x.name]) for x in columns}) for row in csv.DictReader(file)]


def write(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Replace the file as a whole, so that an interruption leaves the old or the new one."""
    text = io.StringIO()
    table = csv.DictWriter(text, [x.name for x in fields(kind)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_atomically(path, text.getvalue())
