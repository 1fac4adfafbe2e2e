"""What a checkpoint is and what its commands mean: `python -m vla.recipes.inspect checkpoint=DIR`."""

import sys
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vla.checkpoint import describe, find_policy, load_policy
from vla.program import Figures, program
from vla.types import EnvSpec


def inspect(cfg: DictConfig) -> Figures:
    """Say it in words on stderr; the same is in the summary."""
    place = find_policy(cfg.checkpoint)
    told = describe(place)
    spec = EnvSpec.from_dict(told["spec"])
    policy = load_policy(place)
    parameters = list(policy.parameters())
    figures = {
        "checkpoint": str(place),
        "policy": told["policy"],
        "written_by": told["info"],
        "horizon": policy.horizon,
        "parameters": sum(x.numel() for x in parameters),
        "command": str(spec.command),
        "control_hz": spec.control_hz,
        "cameras": {x.name: f"{x.height} x {x.width} pixels, RGB, upright, not mirrored" for x in spec.cameras},
        "proprio": dict(spec.proprio),
        "statistics": statistics_of(policy),
    }
    sys.stderr.write(_in_words(figures))
    return figures


def statistics_of(policy: nn.Module) -> dict[str, list[float]]:
    """The small buffers that numbers are normalised by, by name: they came from the data."""
    kept = set(policy.state_dict())
    names = {"mean", "std", "low", "high"}
    return {
        name: [round(v, 6) for v in x.flatten().tolist()]
        for name, x in policy.named_buffers()
        if name in kept and name.rpartition(".")[2] in names and x.dtype == torch.float32
    }


def _in_words(figures: dict[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        rows = [f"{key}: {x}" for key, x in value.items()] if isinstance(value, dict) else [str(value)]
        label = name.replace("_", " ")
        lines += [f"{label if i == 0 else '':14s}{row}" for i, row in enumerate(rows or ["none"])]
    return "\n".join(lines) + "\n"


main = program("inspect", inspect)

if __name__ == "__main__":
    main()
