"""Samples learned per second, side by side with a plain PyTorch loop, on two threads, and with lerobot-train.

`python -m benchmarks.sft`: first bare steps on one batch in memory, then whole programs, `vla.recipes.sft` and
`lerobot-train`, that fine-tune the same ACT (ResNet-18, 128 wide, chunks of 16) on the same dataset of one camera.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

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
PROGRAM = {"batch": 16, "pixels": 128, "chunk": 16, "steps": 60, "log": 10, "turns": 2}


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
        "programs": programs(),
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


def programs() -> dict[str, float]:
    """Samples per second of both, the better of two turns each, without their start; and the ratio."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = PROGRAM["pixels"]
        record = ["env=point", "expert=point", f"env.image_size={size}", "env.num_targets=2", "env.targets_seen=false"]
        _run("vla.recipes.demonstrate", *record, "episodes=200", f"out={folder / 'data'}", f"run_dir={folder / 'made'}")
        make_act(folder / "act", size)
        rates: dict[str, float] = {"ours": 0.0, "lerobot": 0.0}
        for turn in range(PROGRAM["turns"]):
            rates["ours"] = max(rates["ours"], _ours(folder, turn))
            rates["lerobot"] = max(rates["lerobot"], _theirs(folder, turn))
    return {**{name: round(x, 1) for name, x in rates.items()}, "ratio": round(rates["ours"] / rates["lerobot"], 2)}


def make_act(folder: Path, size: int) -> None:
    """A policy of random weights, as `lerobot-train` leaves it."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    spec = PointEnv(num_targets=2, targets_seen=False).spec
    config = make_policy_config(
        "act",
        device="cpu",
        push_to_hub=False,
        input_features={
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, size, size)),
            "observation.state": PolicyFeature(FeatureType.STATE, (spec.proprio_dim,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim,))},
        chunk_size=PROGRAM["chunk"],
        n_action_steps=PROGRAM["chunk"],
        dim_model=128,
        dim_feedforward=512,
        n_heads=4,
        pretrained_backbone_weights=None,
    )
    policy = get_policy_class("act")(config)
    for part in (policy, *make_pre_post_processors(config, dataset_stats={})):
        part.save_pretrained(folder)


def _ours(folder: Path, turn: int) -> float:
    run = folder / f"ours_{turn}"
    settings = ["policy=lerobot", f"policy.pretrained={folder / 'act'}", "algorithm.warmup_steps=10", "save_every=1000"]
    size = [f"batch_size={PROGRAM['batch']}", f"steps={PROGRAM['steps']}"]
    _run("vla.recipes.sft", f"data={folder / 'data'}", *settings, *size, f"run_dir={run}")
    return json.loads((run / "summary.json").read_text())["samples_per_second"]


def _theirs(folder: Path, turn: int) -> float:
    """From the times of its own log lines: from the first to the last."""
    told = [f"--policy.path={folder / 'act'}", "--policy.push_to_hub=false", "--policy.device=cpu"]
    told += ["--dataset.repo_id=local/point", f"--dataset.root={folder / 'data'}", "--save_checkpoint=false"]
    told += [f"--batch_size={PROGRAM['batch']}", f"--steps={PROGRAM['steps']}", f"--log_freq={PROGRAM['log']}"]
    text = _run("lerobot.scripts.lerobot_train", *told, f"--output_dir={folder / f'theirs_{turn}'}")
    lines = [x for x in text.splitlines() if "updt_s:" in x]
    times = [datetime.fromisoformat(re.search(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d", x)[0]) for x in lines]  # type: ignore[index]
    learned = (len(lines) - 1) * PROGRAM["log"] * PROGRAM["batch"]
    return learned / (times[-1] - times[0]).total_seconds()


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
