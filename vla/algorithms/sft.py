"""Supervised fine-tuning: imitate the chunks of a dataset."""

import math

import torch

from vla.algorithms.descent import adamw, descend, device_of
from vla.data.chunks import ChunkBatch
from vla.types import Imitator, Metrics


class SFT:
    """One AdamW step per batch; the learning rate warms up, then falls to zero along a cosine over `total_steps`."""

    def __init__(
        self,
        policy: Imitator,
        total_steps: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
        max_grad_norm: float = 1.0,
    ):
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must be from 0 to total_steps - 1, got {warmup_steps} of {total_steps}")
        self.policy = policy
        self.max_grad_norm = max_grad_norm
        self.optimizer = adamw(policy, lr=lr, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps)
        )
        self.parts = {"policy": policy, "optimizer": self.optimizer, "schedule": self.schedule}

    def update(self, batch: ChunkBatch) -> Metrics:
        batch = batch.to(device_of(self.optimizer))
        lr = float(self.schedule.get_last_lr()[0])
        loss = self.policy.imitation_loss(batch.obs, batch.chunk, batch.padded).mean()
        grad_norm = descend(self.optimizer, loss, self.max_grad_norm)
        self.schedule.step()
        return {"sft_loss": loss.item(), "grad_norm": grad_norm, "lr": lr}


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor of the learning rate: linear up to 1, then half a cosine down to 0; 0 after the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return (1 + math.cos(math.pi * done)) / 2
