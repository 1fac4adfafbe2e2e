"""A policy of many denoising steps made one of a single step (consistency distillation, as in RL-100, 2025)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla.algorithms.descent import adamw, descend, device_of
from vla.algorithms.sft import warmup_cosine
from vla.checkpoint import load_policy
from vla.data.chunks import ChunkBatch
from vla.types import Metrics


class OneStep:
    """From the same noise the `policy` must come to the same chunk as its teacher, at the observations of a dataset.

    The map from noise to chunks is learned, not the mean of chunks, so what the teacher does in several ways stays
    several. `teacher` is a checkpoint; the policy takes over its weights where names and shapes agree. A flow of
    `steps: 1` is a good student of any teacher: it predicts the chunk without dividing by what is left of it.
    """

    def __init__(
        self,
        policy: Any,
        teacher: Path | str | nn.Module,
        total_steps: int,
        lr: float = 1e-3,
        warmup_steps: int = 100,
        max_grad_norm: float = 1.0,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    ):
        known: Any = teacher if isinstance(teacher, nn.Module) else load_policy(teacher)
        if not hasattr(policy, "follow") or not hasattr(known, "follow"):
            raise ValueError(f"{type(policy).__name__} of {type(known).__name__}: both must be flow or diffusion")
        if policy.origin.shape != known.origin.shape:
            raise ValueError(
                f"the teacher's chunks are {tuple(known.origin.shape)} numbers, the policy's "
                f"{tuple(policy.origin.shape)}: make them equal"
            )
        self.policy = take_over(policy, known)
        self.teacher: Any = known.eval().requires_grad_(requires_grad=False)
        self.loss, self.max_grad_norm = loss, max_grad_norm
        self.optimizer = adamw(policy, lr=lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda done: warmup_cosine(done, warmup_steps, total_steps)
        )
        self.parts = {"policy": policy, "optimizer": self.optimizer, "schedule": self.schedule}

    def update(self, batch: ChunkBatch) -> Metrics:
        obs = batch.obs.to(device_of(self.optimizer))
        self.teacher.to(device_of(self.optimizer))
        noise = torch.randn(len(batch), *self.policy.origin.shape, device=device_of(self.optimizer))
        with torch.no_grad():
            wanted = self.teacher.follow(obs, noise)
        loss = self.loss(self.policy.follow(obs, noise), wanted)
        grad_norm = descend(self.optimizer, loss, self.max_grad_norm)
        lr = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        return {"sft_loss": loss.item(), "grad_norm": grad_norm, "lr": lr}


def take_over(policy: Any, teacher: nn.Module) -> Any:
    """The policy with the teacher's weights where names and shapes agree, its normalisation in any case."""
    theirs = teacher.state_dict()
    ours = {
        name: theirs[name]
        for name, x in policy.state_dict().items()
        if name in theirs and theirs[name].shape == x.shape
    }
    policy.load_state_dict(ours, strict=False)
    return policy
