"""Samples learned per second, side by side with a plain PyTorch loop and on two threads: `python -m benchmarks.sft`."""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla.algorithms.sft import SFT
from vla.data.chunks import ChunkBatch
from vla.models.film_cnn import FilmCNN
from vla.types import EnvSpec

BATCH, PIXELS, HORIZON, ROUNDS, STEPS = 64, 64, 4, 6, 4


def main() -> None:
    """One camera of 64 pixels. The contenders take turns, and each's best round counts, so that a busy machine is fair.

    The plain loop is the common baseline: the convolutions of DQN (Mnih et al. 2015), L1 regression of the chunk, no
    instruction.
    """
    batch = make_batch()
    ours, plain = ours_on(batch), plain_on(batch)
    contenders = {"film_cnn_tokens": (ours, 1), "plain_l1": (plain, 1), "film_cnn_tokens_2_threads": (ours, 2)}
    rates = dict.fromkeys(contenders, 0.0)
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, (step, threads) in contenders.items():
            rates[name] = max(rates[name], rate(step, threads))
    figures = {
        "program": "benchmarks.sft",
        "batch": BATCH,
        "pixels": PIXELS,
        "samples_per_second": {name: round(x) for name, x in rates.items()},
        "ratio_to_plain": round(rates["film_cnn_tokens"] / rates["plain_l1"], 3),
        "ratio_2_threads": round(rates["film_cnn_tokens_2_threads"] / rates["film_cnn_tokens"], 3),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def make_batch() -> ChunkBatch:
    obs = PointEnv(num_envs=BATCH, image_size=PIXELS, num_targets=2, targets_seen=False).reset(0)
    chunk = torch.rand(BATCH, HORIZON, 2) * 0.4 - 0.2
    return ChunkBatch(obs=obs, chunk=chunk, padded=torch.zeros(BATCH, HORIZON, dtype=torch.bool), batch_size=[BATCH])


def ours_on(batch: ChunkBatch) -> Callable[[], object]:
    spec: EnvSpec = PointEnv(image_size=PIXELS, targets_seen=False).spec
    algorithm = SFT(TokenPolicy(spec, FilmCNN, HORIZON), total_steps=10**6)
    return lambda: algorithm.update(batch)


def plain_on(batch: ChunkBatch) -> Callable[[], object]:
    net = PlainCNN(batch.obs.proprio.shape[-1], batch.chunk[0].numel())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)

    def step() -> float:
        predicted = net(batch.obs.images["top"], batch.obs.proprio)
        loss = (predicted - batch.chunk.flatten(1)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class PlainCNN(nn.Module):
    def __init__(self, proprio: int, numbers: int):
        super().__init__()
        self.eye = nn.Sequential(
            *(nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
        )
        seen = self.eye(torch.zeros(1, 3, PIXELS, PIXELS)).shape[-1]
        self.head = nn.Sequential(nn.Linear(seen + proprio, 512), nn.ReLU(), nn.Linear(512, numbers))

    def forward(self, pictures: Tensor, proprio: Tensor) -> Tensor:
        return self.head(torch.cat([self.eye(pictures.permute(0, 3, 1, 2).float() / 255), proprio], -1))


def rate(step: Callable[[], object], threads: int) -> float:
    """Samples per second over a few steps, after one to warm up."""
    torch.set_num_threads(threads)
    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
