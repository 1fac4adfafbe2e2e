"""Decisions in portions that fit the device that learns from them: of a tensor or a TensorClass, its rows."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorClass
from torch import Tensor

from vla.algorithms.together import rank_and_count
from vla.types import Rollout


def decisions_of(rollout: Rollout) -> Rollout:
    """What there is to learn from, one row per decision. ValueError if every episode was lost."""
    if not rollout.valid.any():
        raise ValueError(
            f"none of {rollout.shape[1]} episodes has a decision to learn from, {len(rollout.lost())} were lost with "
            "their simulator: play them again"
        )
    return rollout[rollout.valid]


def shuffled(size: int, device: torch.device, *columns: Tensor | TensorClass) -> Iterator[tuple]:
    """All rows once, in a fresh order from torch's global generator, about `size` at a time and evenly.

    Several processes, in the same random state, get a part of each portion; all of it where there is not a row for
    each, which comes to the same in means and averaged gradients.
    """
    num_rows, (rank, processes) = len(columns[0]), rank_and_count()
    for rows in torch.randperm(num_rows).tensor_split(math.ceil(num_rows / size)):
        mine = rows[rank::processes] if len(rows) >= processes else rows
        yield tuple(_placed(column[mine], device) for column in columns)


def in_order(size: int, device: torch.device, rows: Any) -> Iterator[Any]:
    """All rows once, as they come."""
    for part in rows.split(size):
        yield _placed(part, device)


def _placed(rows: Any, device: torch.device) -> Any:
    return rows if device.type == "cpu" else rows.to(device)  # rollouts live on the CPU; even a needless `to` takes ms
