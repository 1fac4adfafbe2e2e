"""A small policy to fine-tune, and what two processes do with it: importable where they start."""

import copy
from functools import partial

import torch
import torch.distributed as dist

from policies.token import TokenPolicy
from policies.vlm import VlmPolicy
from simulators.point import PointEnv
from vla.algorithms.sft import SFT
from vla.algorithms.together import own
from vla.data.chunks import ChunkBatch
from vla.models.state_mlp import StateMLP
from vla.models.vlm import ActionVlm

SPEC = PointEnv().spec


def batch(rows: int = 12, seed: int = 0) -> ChunkBatch:
    obs = PointEnv(num_envs=rows).reset(seed)
    chunk = torch.rand(rows, 2, 2, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2
    return ChunkBatch(obs=obs, chunk=chunk, padded=torch.zeros(rows, 2, dtype=torch.bool), batch_size=[rows])


def new(**options) -> SFT:
    torch.manual_seed(0)
    return SFT(TokenPolicy(SPEC, StateMLP, 2), total_steps=50, warmup_steps=2, **options)


def learn_sharded(index: int, place: str) -> None:
    """In each of two processes: four steps, and the last two again from what was saved after two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}/meeting", rank=index, world_size=2)
    algorithm, saved = new(ema=0.9), {}
    algorithm.shard()
    for i in range(4):
        algorithm.update(batch(seed=i))
        if i == 1:
            saved = copy.deepcopy({name: part.state_dict() for name, part in algorithm.parts.items()})
    box = [saved]
    dist.broadcast_object_list(box)
    resumed = new(ema=0.9)
    for name, part in resumed.parts.items():
        part.load_state_dict(box[0][name])
    resumed.shard()
    metrics = [resumed.update(batch(seed=i)) for i in (2, 3)]
    share = sum(own(p).numel() for p in algorithm.learner.parameters())
    told = [x.parts["policy"].state_dict() for x in (algorithm, resumed)]
    if index == 0:
        torch.save({"weights": told, "loss": [x["sft_loss"] for x in metrics], "share": share}, f"{place}/told.pt")
    dist.destroy_process_group()


def learn_words_sharded(index: int, place: str, pretrained: str) -> None:
    """In each of two processes: three steps of a vision-language model whose layers are gathered one by one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}/meeting", rank=index, world_size=2)
    env = PointEnv(num_envs=4, num_targets=2, image_size=64)
    torch.manual_seed(1)
    words = partial(ActionVlm, pretrained=pretrained)
    policy = VlmPolicy(env.spec, words, 2, bins=16, parallel=False).train()
    algorithm = SFT(policy, total_steps=20, warmup_steps=1, recompute=True)
    algorithm.shard()
    losses = [algorithm.update(words_batch(env))["sft_loss"] for _ in range(3)]
    algorithm.parts["policy"].state_dict()
    if index == 0:
        torch.save(losses, f"{place}/told.pt")
    dist.destroy_process_group()


def words_batch(env: PointEnv) -> ChunkBatch:
    chunk = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    return ChunkBatch(obs=env.reset(0), chunk=chunk, padded=torch.zeros(4, 2, dtype=torch.bool), batch_size=[4])
