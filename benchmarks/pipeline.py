"""What overlap of environments and policy gains, and what a message costs: `python -m benchmarks.pipeline`.

A, scheduler only: both stages sleep, as work on other devices would, `ms` milliseconds per chunk of all environments
and in proportion for a part of them. B, a real simulator with a policy that sleeps. C, all real on the cores at hand.
G, all real on one GPU, only if asked for: ManiSkill on it, or on the cores, and a transformer of random weights.
All arms of a line take turns in one run; rows are medians, from when the first environments are ready. The bound is
that of the model (`vla.pipeline.Measured`) with free messages. Rows go to `docs/pipeline.csv`.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import nn
from transformers import LlamaConfig, LlamaModel

from benchmarks import table
from policies.token import TokenPolicy
from vla.collect import OneProcess, OwnPolicy
from vla.evaluation import OnDevice
from vla.models.film_cnn import FilmCNN
from vla.pipeline import Measured, Pace, planned
from vla.serving import Served, start_ray, stop_ray
from vla.types import Action, Command, EnvSpec, Observation, Step

TABLE = Path(__file__).parents[1] / "docs" / "pipeline.csv"
VLAS = {"tiny": (128, 2), "0.5B": (1024, 30), "3B": (2560, 32), "7B": (4096, 32)}  # width and layers
MOST = 4  # groups
NUM_ENVS = 12  # divisible by 1, 2, 3 and 4
CHUNKS = {5: 60, 20: 60, 100: 30, 300: 12}
SLEEPING = {"_target_": "benchmarks.pipeline.Sleeping", "num_envs": NUM_ENVS}
SIMULATORS = {
    "PushCube-v1": {
        "_target_": "simulators.maniskill.maniskill",
        "task": "PushCube-v1",
        "image_size": 64,
        "drawing": "light",
    },
    "Lift": {"_target_": "simulators.robosuite.robosuite", "task": "Lift", "image_size": 64},
}


@dataclass(frozen=True)
class Row:
    part: str
    env: str
    env_ms: float
    policy_ms: float
    payload: int  # bytes of pictures per chunk of all environments
    arm: str
    groups: int
    seconds: float
    per_chunk_ms: float
    faster: float  # than the same with one group in this run
    bound: float  # how much faster it could be
    share_of_bound: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["A", "B", "C"])
    parser.add_argument("--ms", type=int, nargs="+", default=[5, 20, 100, 300])
    parser.add_argument("--more", action="store_true", help="part A also with uneven stages and large pictures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vlas", nargs="+", choices=VLAS, default=["0.5B", "3B"], help="policies of part G, by size")
    parser.add_argument("--envs", type=int, nargs="+", default=[48, 192], help="of part G, divisible by 12")
    parser.add_argument("--simulators", nargs="+", choices=("cpu", "gpu"), default=["gpu", "cpu"], help="of part G")
    parser.add_argument("--workers", type=int, default=12, help="of part G, in all, divisible by 12")
    parser.add_argument("--device", default="cuda", help="of part G: cpu is only to try it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kept = [row for row in rows() if row.part not in asked.parts]
    new: list[Row] = []
    scratch = start_ray(16)
    try:
        for part in asked.parts:
            for some in PARTS[part](asked):
                new += some
                table.write(TABLE, [*kept, *new], Row)
    finally:
        stop_ray(scratch)
    print(json.dumps({"program": "benchmarks.pipeline", "load": os.getloadavg(), "rows": len(new)}))  # noqa: T201


def scheduler_only(asked: argparse.Namespace) -> Iterator[list[Row]]:
    equal = [(ms, ms, 16) for ms in asked.ms]
    uneven = [(20, 180, 16), (180, 20, 16)] if asked.more else []
    heavy = [(100, 100, 112)] if asked.more else []
    for env_ms, policy_ms, side in [*equal, *uneven, *heavy]:
        chunks = CHUNKS.get(env_ms, 30)
        env = {**SLEEPING, "seconds": env_ms / 1000, "max_steps": chunks, "side": side}
        policy = SleepingPolicy(policy_ms / 1000)
        with _groups(env) as fleets:
            plain = {("plain Ray", k): _plain(env, policy, k, chunks) for k in (1, 2)}
            measured = _proportional(NUM_ENVS, env_ms, policy_ms, NUM_ENVS)
            yield _compared("A", "sleeps", env, measured, _arms(fleets, policy) | plain, chunks, asked.repeats)


def real_simulator(asked: argparse.Namespace) -> Iterator[list[Row]]:
    """The policy sleeps as long as the simulator takes for all environments, or a quarter of that."""
    for name, options in SIMULATORS.items():
        env = {**options, "num_envs": NUM_ENVS, "max_steps": 20, "ends_on_success": False}
        _, _, env_ms = _alone(env, horizon=2)
        with _groups(env) as fleets:
            for share in (1.0, 0.25):
                arms = _arms(fleets, SleepingPolicy(share * env_ms / 1000, horizon=2))
                measured = _proportional(NUM_ENVS, env_ms, share * env_ms, os.cpu_count() or 1)
                yield _compared("B", name, env, measured, arms, 10, asked.repeats)


def all_real(asked: argparse.Namespace) -> Iterator[list[Row]]:
    """The negative control: where both need the same cores there is little to hide."""
    env = {**SIMULATORS["PushCube-v1"], "num_envs": NUM_ENVS, "max_steps": 20, "ends_on_success": False}
    spec, obs, env_ms = _alone(env, horizon=2)
    policy = TokenPolicy(spec, FilmCNN, horizon=2, bins=32).eval()
    with torch.no_grad():
        policy_ms = _milliseconds(functools.partial(policy.act, obs))
    measured = _proportional(NUM_ENVS, env_ms, policy_ms, os.cpu_count() or 1, shared=True)
    with _groups(env) as fleets:
        yield _compared("C", "PushCube-v1", env, measured, _arms(fleets, policy), 10, asked.repeats)


def on_a_gpu(asked: argparse.Namespace) -> Iterator[list[Row]]:
    """Whether division pays where simulator and policy share a GPU, and where the simulator has the cores.

    Those are the same for every number of groups, so that a smaller group has fewer of them and is no faster.
    """
    for backend, num_envs in ((b, n) for b in asked.simulators for n in asked.envs):
        spread = {"workers": asked.workers} if backend == "cpu" else {}
        env = {**SIMULATORS["PushCube-v1"], **spread, "backend": backend, "num_envs": num_envs}
        env |= {"max_steps": 24, "ends_on_success": False}
        _, obs, env_ms = _alone(env, horizon=8)
        with _groups(env) as fleets:
            for vla in asked.vlas:
                policy = RandomVla(*VLAS[vla], asked.device)
                alone = OnDevice(policy, torch.device(asked.device))
                rows_of = {n: obs[:n] for n in (num_envs // k for k in fleets)}
                with torch.no_grad():
                    decide = {n: _milliseconds(functools.partial(alone.act, x)) for n, x in rows_of.items()}
                play = {num_envs: env_ms} if backend == "cpu" else {0: 0.0, num_envs: env_ms}
                measured = Measured(
                    _seconds(play), _seconds(decide), 0.0, 2 * len(fleets), shared=asked.device == "cpu"
                )
                told = f"PushCube-v1 on {backend}, {num_envs} copies, {vla}"
                yield _compared("G", told, env, measured, _arms(fleets, policy), 3, asked.repeats)


def _alone(env: dict[str, Any], horizon: int) -> tuple[EnvSpec, Observation, float]:
    """What the environments are, show first, and take for a chunk in this process: milliseconds."""
    with closing(instantiate(env)) as group:
        obs = group.reset(0)
        return group.spec, obs, _milliseconds(functools.partial(group.play, torch.zeros(env["num_envs"], horizon, 7)))


def _compared(
    part: str,
    name: str,
    env: dict[str, Any],
    measured: Measured,
    arms: dict[tuple[str, int], Callable[[], float]],
    chunks: int,
    repeats: int,
) -> list[Row]:
    num_envs = env["num_envs"]
    taken: dict[tuple[str, int], list[float]] = {arm: [] for arm in arms}
    for turn in range(repeats + 1):
        for arm, play in arms.items():
            seconds = play()
            if turn:  # the first is to warm up
                taken[arm].append(seconds)
    told = []
    for (arm, k), seconds in taken.items():
        median = statistics.median(seconds)
        one = statistics.median(taken[arm, 1])
        bound = measured.round(1, num_envs) / measured.round(k, num_envs)
        least = chunks * measured.round(k, num_envs)
        row = Row(
            part,
            name,
            round(1000 * measured.play[num_envs], 1),
            round(1000 * measured.decide[num_envs], 1),
            num_envs * (env.get("side") or env["image_size"]) ** 2 * 3,
            arm,
            k,
            round(median, 3),
            round(1000 * median / chunks, 2),
            round(one / median, 3),
            round(bound, 3),
            round(least / median, 3),
        )
        sys.stderr.write(f"{row}\n")
        told.append(row)
    return told


def _proportional(num_envs: int, env_ms: float, policy_ms: float, cores: int, *, shared: bool = False) -> Measured:
    """A stage takes part of the environments so much less time."""
    play, decide = ({0: 0.0, num_envs: ms / 1000} for ms in (env_ms, policy_ms))
    return Measured(play, decide, 0.0, cores, shared)


@contextmanager
def _groups(env: dict[str, Any]) -> Iterator[dict[int, OneProcess]]:
    """By the number of groups, all of them there from the beginning; simulators' processes are shared out."""
    fleets: dict[int, OneProcess] = {}
    try:
        for k in range(1, MOST + 1):
            own = {"workers": env["workers"] // k} if "workers" in env else {}
            fleets[k] = OneProcess(Served({**env, **own}, plan=planned(env["num_envs"], k, 1)))
        yield fleets
    finally:
        for fleet in fleets.values():
            fleet.close()


def _arms(fleets: dict[int, OneProcess], policy: nn.Module) -> dict[tuple[str, int], Callable[[], float]]:
    return {("ours", k): functools.partial(_play, cast(Served, x.player), policy) for k, x in fleets.items()}


def _play(player: Served, policy: nn.Module) -> float:
    """Seconds of an episode by this policy itself, not by a copy: some are large."""
    player.own = OwnPolicy(_device(policy))
    player.own.load(policy)
    player.pipeline.pace = Pace()
    player.pipeline.play(lambda: player.own.actor(greedy=False), seed=0)
    return player.pipeline.pace.seconds


def _device(policy: nn.Module) -> str:
    return next(policy.parameters(), torch.zeros(0)).device.type


def _plain(env: dict[str, Any], policy: nn.Module, groups: int, chunks: int) -> Callable[[], float]:
    """What one writes with Ray alone: an actor per group, one for the policy, calls queued ahead, answers passed on."""

    class Environments:
        def __init__(self) -> None:
            self.env = Sleeping(**{k: v for k, v in {**env, "num_envs": NUM_ENVS // groups}.items() if k != "_target_"})

        def reset(self) -> Any:
            return self.env.reset(0)

        def step(self, action: Any) -> Any:
            return self.env.step(action.commands[:, 0]).obs

    class Decider:
        def act(self, obs: Any) -> Any:
            return policy.act(obs)  # type: ignore[operator]

    members = [ray.remote(num_cpus=1)(Environments).remote() for _ in range(groups)]
    decider = ray.remote(num_cpus=1)(Decider).remote()

    def play() -> float:
        seen = [x.reset.remote() for x in members]
        ray.wait(seen, num_returns=len(seen))
        begun = time.perf_counter()
        for _ in range(chunks):
            seen = [x.step.remote(decider.act.remote(obs)) for x, obs in zip(members, seen, strict=True)]
        ray.get(seen)
        return time.perf_counter() - begun

    return play


class Sleeping:
    """Environments whose step takes `seconds` for NUM_ENVS of them, in which nothing happens."""

    def __init__(self, num_envs: int, seconds: float, max_steps: int, side: int):
        self.seconds = seconds * num_envs / NUM_ENVS
        self.side = side
        command = Command("ee_delta", 7, 0.05, 0.2)
        self.spec = EnvSpec(num_envs, 20.0, max_steps, (), (("state", 8),), command)

    def reset(self, seed: int) -> Observation:
        time.sleep(self.seconds)
        self.steps = 0
        return self._obs()

    def step(self, command: torch.Tensor) -> Step:
        time.sleep(self.seconds)
        self.steps += 1
        never = torch.zeros(self.spec.num_envs, dtype=torch.bool)
        return Step(
            obs=self._obs(),
            reward=torch.zeros(self.spec.num_envs),
            success=never,
            terminated=never,
            truncated=~never if self.steps == self.spec.max_steps else never,
            executed=command,
            batch_size=[self.spec.num_envs],
        )

    def close(self) -> None: ...

    def _obs(self) -> Observation:
        n = self.spec.num_envs
        pictures = TensorDict({"top": torch.zeros(n, self.side, self.side, 3, dtype=torch.uint8)}, [n])
        return Observation(images=pictures, proprio=torch.zeros(n, 8), instruction=["wait"] * n, batch_size=[n])


class SleepingPolicy(nn.Module):
    """It takes `seconds` to decide for NUM_ENVS environments, in proportion for fewer."""

    def __init__(self, seconds: float, horizon: int = 1):
        super().__init__()
        self.seconds, self.horizon = seconds, horizon

    def act(self, obs: Observation) -> Action:
        time.sleep(self.seconds * len(obs) / NUM_ENVS)
        n = len(obs)
        commands = torch.zeros(n, self.horizon, 7)
        return Action(commands=commands, log_prob=torch.zeros(n, 0), latent=TensorDict({}, [n]), batch_size=[n])


class RandomVla(nn.Module):
    """What a vision-language-action model of this size takes to decide (as OpenVLA-OFT does, all numbers at once).

    A picture in patches of 14 pixels, 32 words and a place for each number, through a decoder of random weights.
    """

    def __init__(self, width: int, layers: int, device: str, horizon: int = 8):
        super().__init__()
        heads = width // 128 or 1
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=width,
            intermediate_size=round(2.7 * width),
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
        with torch.device(device):
            self.model, self.horizon = LlamaModel(config), horizon
            self.eye = nn.Conv2d(3, width, 14, 14)
            self.words = nn.Parameter(0.02 * torch.randn(1, 32 + 7 * horizon, width))
            self.head = nn.Linear(width, 1)
        self.to(torch.bfloat16).requires_grad_(requires_grad=False)

    def act(self, obs: Observation) -> Action:
        picture = next(iter(obs.images.values())).permute(0, 3, 1, 2).to(self.words)
        seen = self.eye(nn.functional.interpolate(picture / 255, (224, 224))).flatten(2).transpose(1, 2)
        said = torch.cat([seen, self.words.expand(len(seen), -1, -1)], 1)
        numbers = self.head(self.model(inputs_embeds=said, use_cache=False).last_hidden_state[:, -7 * self.horizon :])
        commands = 0.01 * numbers.float().tanh().view(-1, self.horizon, 7)
        none = commands.new_zeros(len(commands), 0)
        return Action(commands=commands, log_prob=none, latent=TensorDict({}, [len(none)]), batch_size=[len(none)])


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def _seconds(ms: dict[int, float]) -> dict[int, float]:
    return {n: x / 1000 for n, x in ms.items()}


def _milliseconds(run: Callable[[], Any]) -> float:
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken)


PARTS = {"A": scheduler_only, "B": real_simulator, "C": all_real, "G": on_a_gpu}

if __name__ == "__main__":
    main()
