"""Decisions in portions that fit the device that learns from them: of a tensor or a TensorClass, its rows."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorClass
from torch import Tensor

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
    """All rows once, in a fresh order from torch's global generator, about `size` at a time and evenly."""
    num_rows = len(columns[0])
    for rows in torch.randperm(num_rows).tensor_split(math.ceil(num_rows / size)):
        yield tuple(_placed(column[rows], device) for column in columns)


def in_order(size: int, device: torch.device, rows: Any) -> Iterator[Any]:
    """All rows once, as they come."""
    for part in rows.split(size):
        yield _placed(part, device)


def _placed(rows: Any, device: torch.device) -> Any:
    return rows if device.type == "cpu" else rows.to(device)  # rollouts live on the CPU; even a needless `to` takes ms
