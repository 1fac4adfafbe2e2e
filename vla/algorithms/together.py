"""Several processes that learn one policy: each from its part of every batch, all with the mean of their gradients."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
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
PATIENCE = timedelta(days=7)  # for what the first process sends: it may have played for hours
_patient: list[dist.ProcessGroup] = []  # this process's group that has it


@contextmanager
def together(count: int, helper: Helper, cfg: Any) -> Iterator[None]:
    """This process, and `count - 1` more that run `helper(cfg)`, in one group; with 1 there is no group.

    Each has a GPU of its own where there are some. An error of a helper is raised here: at the end, or when the group
    waits for it in vain. No helper outlives this.
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
        try:
            while len(list(Path(place).glob("ready_*"))) < count - 1:
                helpers.join(timeout=0.1)
            _enter(0, count, meeting)
            yield
            while not helpers.join():
                pass
        except RuntimeError:
            ending = any(Path(x).exists() for x in helpers.error_files)
            helpers.join(timeout=60.0 if ending else 1.0)  # raises why a helper ended: this error may only follow
            raise
        finally:
            for process in helpers.processes:
                process.kill()
                process.join()
            _leave()


def rank_and_count() -> tuple[int, int]:
    """Which of how many this process is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace every gradient by the mean over all processes; what has none in any of them keeps none."""
    _, count = rank_and_count()
    if count == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    whole = [p for p in parameters if not isinstance(p, DTensor)]  # the backward pass did it for sharded ones
    known = total(torch.tensor([p.grad is not None for p in whole], dtype=torch.long))
    for p in (p for p, processes in zip(whole, known.tolist(), strict=True) if processes):
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        dist.all_reduce(p.grad)
        p.grad /= count


def average(x: float) -> float:
    """The mean over all processes."""
    return total(torch.tensor(x, dtype=torch.float64)).item() / rank_and_count()[1]


def total(x: Tensor) -> Tensor:
    """The sum over all processes, of numbers that are not differentiated."""
    if rank_and_count()[1] == 1:
        return x
    there = x.to("cuda", copy=True) if dist.get_backend() == "nccl" else x.clone()
    dist.all_reduce(there)
    return there.to(x.device)


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


def alike(parts: Mapping[str, Any]) -> None:
    """Bring the parts of every process into the state of the first one's."""
    rank, count = rank_and_count()
    for part in parts.values() if count > 1 else ():
        state = from_first(tree_map(_on_cpu, part.state_dict()) if rank == 0 else None)
        if rank > 0:
            part.load_state_dict(state)


def from_first(x: Any) -> Any:
    """What the first process has, everywhere."""
    if rank_and_count()[1] == 1:
        return x
    box = [x]
    dist.broadcast_object_list(box, src=0, group=_patient[0])
    return box[0]


def _on_cpu(x: Any) -> Any:
    return x.cpu() if isinstance(x, Tensor) else x


def _join(index: int, count: int, meeting: str, helper: Helper, cfg: Any) -> None:
    Path(meeting.removeprefix("file://")).with_name(f"ready_{index}").touch()
    _enter(index + 1, count, meeting)
    helper(cfg)
    _leave()


def _enter(rank: int, count: int, meeting: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", meeting, rank=rank, world_size=count)
    _patient[:] = [dist.new_group(backend="gloo", timeout=PATIENCE)]


def _leave() -> None:
    _patient.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
