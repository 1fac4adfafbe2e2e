"""Several processes that learn one policy: each from its part of every batch, all with the mean of their gradients."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

Helper = Callable[[Any], None]  # from the configuration to the end of the work


@contextmanager
def together(count: int, helper: Helper, cfg: Any) -> Iterator[None]:
    """This process, and `count - 1` more that run `helper(cfg)`, in one group; with 1 there is no group.

    Each has a GPU of its own where there are some. An error of a helper is raised here at the end, or by torch when the
    group waits for it in vain.
    """
    if count < 1:
        raise ValueError(f"processes must be at least 1, got {count}")
    if count == 1:
        yield
        return
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise ValueError(f"processes={count}, but there are only {torch.cuda.device_count()} GPUs")
    with tempfile.TemporaryDirectory() as place:
        meeting = f"file://{place}/meeting"
        helpers = mp.spawn(_join, (count, meeting, helper, cfg), nprocs=count - 1, join=False)
        _enter(0, count, meeting)
        try:
            yield
            helpers.join()
        finally:
            dist.destroy_process_group()
            for process in helpers.processes:
                process.kill()


def rank_and_count() -> tuple[int, int]:
    """Which of how many this process is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace every gradient by the mean over all processes."""
    _, count = rank_and_count()
    if count == 1:
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(p, DTensor):
                continue  # sharded: the backward pass did it
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= count


def average(x: float) -> float:
    """The mean over all processes."""
    _, count = rank_and_count()
    if count == 1:
        return x
    total = torch.tensor(x, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.item() / count


def shard(module: nn.Module, entrance: str) -> None:
    """Keep of each parameter only this process's part (FSDP2); all of them are whole while `entrance` runs.

    A module that names its `blocks()`, each of which is called by itself, has only one of them whole at a time.
    """
    kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    blocks: Any = getattr(module, "blocks", list)
    for block in (*blocks(), module):
        fully_shard(block, mesh=mesh)
    register_fsdp_forward_method(module, entrance)


def shard_like(x: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that goes with a parameter, such as Adam's averages, in the same parts; others stay whole."""
    if not isinstance(parameter, DTensor) or x.shape != parameter.shape:
        return x
    return distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)


def own(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor; a whole one as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


class Whole:
    """A part of a checkpoint whose state is put together from all processes: each must ask for it, in one order."""

    def __init__(self, part: Any):
        self.part = part

    def state_dict(self) -> Any:
        """Of all processes, in the first one; what the others get is of no use."""
        first = rank_and_count()[0] == 0

        def gathered(x: Any) -> Any:
            if not isinstance(x, DTensor):
                return x
            whole = x.full_tensor()
            return whole.cpu() if first else None

        return tree_map(gathered, self.part.state_dict())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


def from_first(x: Any) -> Any:
    """What the first process has, everywhere."""
    if rank_and_count()[1] == 1:
        return x
    box = [x]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _join(index: int, count: int, meeting: str, helper: Helper, cfg: Any) -> None:
    _enter(index + 1, count, meeting)
    helper(cfg)
    dist.destroy_process_group()


def _enter(rank: int, count: int, meeting: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", meeting, rank=rank, world_size=count)
