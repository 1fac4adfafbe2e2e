"""The tables of a LeRobotDataset v3."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

DESCRIPTION = Path("meta/armature.json")  # what an Armature dataset says of itself


def read_info(directory: Path) -> dict[str, Any]:
    path = directory / "meta" / "info.json"
    if not path.exists():
        begun = (directory / ".unfinished").exists()
        hint = "its recording was interrupted: run it again to finish" if begun else "record one with demonstrate"
        raise FileNotFoundError(f"{directory} holds no LeRobotDataset (no meta/info.json); {hint}")
    info = json.loads(path.read_text())
    if not str(info.get("codebase_version", "")).startswith("v3."):
        raise ValueError(f"{directory} has LeRobotDataset format {info.get('codebase_version')}; convert it to v3.0")
    return info


def read_table(folder: Path, order: str, columns: list[str] | None = None) -> pa.Table:
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise ValueError(f"{folder} has no parquet files: the dataset is damaged or was copied only in part")
    columns = columns or [x for x in pq.read_schema(paths[0]).names if not x.startswith("stats/")]  # types differ there
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in paths]).sort_by(order)


def numbers(column: pa.ChunkedArray) -> Float[Tensor, "frame size"]:
    rows = column.combine_chunks()
    flat = rows.flatten() if pa.types.is_nested(rows.type) else rows
    values = flat.to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    return torch.from_numpy(values.astype(np.float32))


def column(table: pa.Table, name: str, default: float) -> Tensor:
    if name not in table.column_names:
        return torch.full((len(table),), default)
    return torch.from_numpy(table[name].to_numpy().astype(np.float64))


def lengths(directory: Path) -> list[int]:
    """Frames of each episode."""
    return read_table(directory / "meta" / "episodes", "episode_index")["length"].to_pylist()


def read_description(directory: Path) -> dict[str, Any]:
    """DESCRIPTION; nothing, of a dataset of another origin."""
    path = directory / DESCRIPTION
    return json.loads(path.read_text()) if path.exists() else {}
