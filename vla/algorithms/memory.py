"""How much memory supervised fine-tuning will take, known before it starts."""

import os

import torch
from torch import Tensor, nn

from vla.algorithms.sft import SFT
from vla.data.chunks import ChunkBatch

ADAM = 2  # numbers kept per trained one


def training_bytes(algorithm: SFT, one: ChunkBatch, rows: int) -> dict[str, int]:
    """Bytes of `weights` (the average too), `gradients`, `optimizer` and, for so many rows at a time, `activations`.

    What the backward pass will need of a row is counted in one forward pass of `one`, of a single row.
    """
    modules = {id(x): x for x in (algorithm.policy, algorithm.learner) if isinstance(x, nn.Module)}
    weights = sum(_bytes(x) for module in modules.values() for x in (*module.parameters(), *module.buffers()))
    trained = sum(_bytes(p) for group in algorithm.optimizer.param_groups for p in group["params"])
    return {
        "weights": weights,
        "gradients": trained,
        "optimizer": ADAM * trained,
        "activations": rows * _saved_for_backward(algorithm, one, set(map(id, _parameters(algorithm)))),
    }


def free_bytes(device: torch.device) -> int:
    """What can be had on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _saved_for_backward(algorithm: SFT, one: ChunkBatch, parameters: set[int]) -> int:
    seen: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        if id(x) not in parameters:
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        algorithm.loss(one)
    return sum(seen.values())


def _parameters(algorithm: SFT) -> list[Tensor]:
    return list(algorithm.learner.parameters()) if isinstance(algorithm.learner, nn.Module) else []


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
