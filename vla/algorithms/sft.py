"""Supervised fine-tuning: imitate the chunks of a dataset."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vla.algorithms.descent import adamw, device_of, step
from vla.algorithms.together import Whole, average, average_gradients, own, rank_and_count, shard, shard_like
from vla.data.chunks import ChunkBatch
from vla.types import Imitator, Metrics

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class SFT:
    """One AdamW step per batch; the learning rate warms up, then falls to zero along a cosine over `total_steps`.

    A batch is learned in `accumulate` parts, one after the other, where it does not fit in memory whole; of several
    processes (`vla.algorithms.together`) each takes its share of the rows. With `ema`,
    `policy` is a running average of what is trained, by that share of the old each step (less in the first steps, as
    in Diffusion Policy, 2023); it is what is saved and played. `precision` is that of the forward pass.
    """

    def __init__(
        self,
        policy: Imitator,
        total_steps: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
        max_grad_norm: float = 1.0,
        accumulate: int = 1,
        ema: float | None = None,
        precision: str = "float32",
        *,
        recompute: bool = False,
    ):
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must be from 0 to total_steps - 1, got {warmup_steps} of {total_steps}")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema must be between 0 and 1 (0.999, say), got {ema}; null for none")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        self.policy = policy
        self.learner = policy if ema is None else deepcopy(policy)
        self.ema = ema
        self.accumulate, self.dtype, self.max_grad_norm = accumulate, PRECISIONS[precision], max_grad_norm
        if recompute:
            _recompute(self.learner)
        factor = partial(warmup_cosine, warmup_steps=warmup_steps, total_steps=total_steps)
        self.begin = partial(_begin, factor=factor, lr=lr, weight_decay=weight_decay)
        self.optimizer, self.schedule = self.begin(self.learner)
        self.sharded = False

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        found = {"policy": self.policy, "optimizer": self.optimizer, "schedule": self.schedule}
        found |= {} if self.ema is None else {"learner": self.learner}
        return {name: Whole(part) for name, part in found.items()} if self.sharded else found

    def shard(self) -> None:
        """Keep only this process's part of all weights, from now on; each process of a group must call it."""
        states = self.optimizer.state_dict(), self.schedule.state_dict()
        for module in {id(x): x for x in (self.policy, self.learner)}.values():
            shard(cast(nn.Module, module), "imitation_loss")
        self.optimizer, self.schedule = self.begin(self.learner)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        known = {
            i: {name: shard_like(x, parameters[i]) for name, x in state.items()}
            for i, state in states[0]["state"].items()
        }
        self.optimizer.load_state_dict({**states[0], "state": known})
        self.schedule.load_state_dict(states[1])
        self.sharded = True

    def update(self, batch: ChunkBatch) -> Metrics:
        rank, count = rank_and_count()
        if len(batch) % (self.accumulate * count):
            told = f"accumulate={self.accumulate}" + (f" times {count} processes" if count > 1 else "")
            raise ValueError(f"a batch of {len(batch)} does not divide into {told} equal parts")
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        mine = batch[rank::count]
        for part in mine.split(len(mine) // self.accumulate):
            loss = self.loss(part) / self.accumulate
            loss.backward()
            total += loss.item()
        average_gradients(self.optimizer)
        grad_norm = step(self.optimizer, self.max_grad_norm)
        self.schedule.step()
        if self.ema is not None:
            self._average(self.ema)
        return {"sft_loss": average(total), "grad_norm": grad_norm, "lr": lr}

    @torch.no_grad()
    def validate(self, batch: ChunkBatch) -> float:
        """The loss of what is saved and played, on chunks it does not learn from, with the same chance each time."""
        device = device_of(self.optimizer)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            on = batch.to(device)
            return self.policy.imitation_loss(on.obs, on.chunk, on.padded).mean().item()

    @torch.no_grad()
    def _average(self, ema: float) -> None:
        steps = self.schedule.last_epoch
        share = min(ema, (1 + steps) / (10 + steps))
        averages, news = ([own(p.data) for p in cast(nn.Module, x).parameters()] for x in (self.policy, self.learner))
        torch._foreach_lerp_(averages, news, 1 - share)

    def loss(self, batch: ChunkBatch) -> Tensor:
        """Of the batch, to be differentiated."""
        batch = batch.to(device_of(self.optimizer))
        with torch.autocast(batch.chunk.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.learner.imitation_loss(batch.obs, batch.chunk, batch.padded).mean()


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor of the learning rate: linear up to 1, then half a cosine down to 0; 0 after the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return (1 + math.cos(math.pi * done)) / 2


def _begin(
    learner: Imitator, factor: Callable[[int], float], lr: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = adamw(learner, lr=lr, weight_decay=weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _recompute(learner: Any) -> None:
    """Have every pretrained model in it compute its layers again in the backward pass; ValueError if there is none."""
    models = [x for x in learner.modules() if hasattr(x, "gradient_checkpointing_enable")]
    able = [x for x in models if getattr(x, "supports_gradient_checkpointing", True)]
    if not able:
        raise ValueError(f"{type(learner).__name__} has no pretrained model that can recompute: set recompute=false")
    for model in able:
        model.gradient_checkpointing_enable()
