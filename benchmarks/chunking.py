"""What executing chunks costs when decisions take time: `python -m benchmarks.chunking` writes `docs/chunking.json`.

A puck slides past a disc, on either side, to a target, in a wind that nobody sees; nor does anybody see how fast it is.
A flow learns it from an expert that passes on a side drawn for each episode. Decisions take 0 to 4 control steps, one
is made every 5; their chunks have 10 commands. The next chunk is a free one; or has its first commands put in place of
noise (hard prefix); or is guided by the old one, without and with the network's Jacobian. For each seed of training the
same 200 episodes, with decisions drawn from new noise; without a delay a free chunk is synchronous execution, in which
the world waits.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from tqdm import trange

from policies.flow import FlowPolicy
from policies.realtime import guidance
from vla.chunking import Asynchronous
from vla.data.normalise import Statistics
from vla.models.denoisers import UNet1D
from vla.models.state_mlp import StateMLP
from vla.rollout import TEST_SEEDS, rollout
from vla.run import write_atomically
from vla.statistics import bootstrap, mcnemar, rate
from vla.types import Action, Command, EnvSpec, Observation, Step

REPORT = Path(__file__).parents[1] / "docs" / "chunking.json"
HORIZON, EXECUTE, DELAYS = 10, 5, (0, 1, 2, 3, 4)
STEPS = 5  # from noise to a chunk
DISC, REACHED = 0.3, 0.12  # radii
SLIDE, PUSH = 0.5, 0.5  # of the velocity what is left after a step, of a command what is added to it
WIND = 0.002  # m per step, the standard deviation of its changes


class Windy:
    """A puck from the left to (0.8, 0), in metres; success ends an episode, and so does touching the disc at (0, 0)."""

    def __init__(self, num_envs: int, max_steps: int = 50):
        self.spec = EnvSpec(num_envs, 10.0, max_steps, (), (("position", 2),), Command("ee_delta", 2, 0.2))

    def reset(self, seed: int) -> Observation:
        sources = [torch.Generator().manual_seed(seed + i) for i in range(self.spec.num_envs)]
        height = torch.stack([0.1 * torch.randn((), generator=source) for source in sources])
        self.position = torch.stack([torch.full_like(height, -0.9), height], -1)
        self.velocity = torch.zeros_like(self.position)
        gusts = torch.stack([torch.randn(self.spec.max_steps, 2, generator=source) for source in sources], 1)
        self.wind = torch.zeros_like(gusts)
        for t in range(1, len(gusts)):
            self.wind[t] = 0.9 * self.wind[t - 1] + WIND * gusts[t]
        self.steps = 0
        return self._observe()

    def step(self, command: Tensor) -> Step:
        executed = command.clamp(-0.2, 0.2)
        self.velocity = SLIDE * self.velocity + PUSH * executed + self.wind[self.steps]
        self.position = self.position + self.velocity
        self.steps += 1
        success = (self.position - torch.tensor([0.8, 0.0])).norm(dim=-1) < REACHED
        over = success | (self.position.norm(dim=-1) < DISC)
        return Step(
            obs=self._observe(),
            reward=success.float(),
            success=success,
            terminated=over,
            truncated=~over & (self.steps >= self.spec.max_steps),
            executed=executed,
            batch_size=[len(over)],
        )

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        n = self.spec.num_envs
        return Observation(
            images=TensorDict({}, [n]),
            proprio=self.position,
            instruction=["reach the target"] * n,
            batch_size=[n],
        )


class Expert:
    """Passes on the side of the disc that is drawn for the episode, with an unsteady hand."""

    def begin(self, seed: int) -> None:
        self.seed = seed

    def act(self, obs: Observation) -> Action:
        n = len(obs)
        sides = torch.tensor([float((self.seed + i) % 2) * 2 - 1 for i in range(n)])
        position = obs.proprio
        passing = torch.stack([torch.zeros(n), 0.45 * sides], -1)
        goal = torch.where(position[:, :1] < -0.05, passing, torch.tensor([0.8, 0.0]))
        way = goal - position
        command = 0.07 * way / way.norm(dim=-1, keepdim=True).clamp(min=0.15) + 0.01 * torch.randn(n, 2)
        return Action(commands=command[:, None], log_prob=torch.zeros(n, 0), latent=TensorDict({}, [n]), batch_size=[n])


class Free(FlowPolicy):
    """Keeps every chunk it decides upon."""

    guided, schedule = False, "exp"

    def commands_of(self, state: Tensor) -> Tensor:
        commands = super().commands_of(state)
        self.said.append(commands)
        return commands


class HardPrefix(Free):
    """The commands that will be played stand in the noisy chunk as they would if it led to them."""

    guided, schedule = True, "zeros"

    def guided_step(
        self, features: Tensor, noisy: Tensor, index: Tensor, target: Tensor, weights: Tensor, max_guidance: float
    ) -> Tensor:
        time = self._time(index)[:, None, None]
        noise = (noisy - (1 - time) * target) / time
        held = torch.lerp(target, noise, time - 1 / self.steps)
        return torch.where(weights > 0, held, self.fixed_step(features, noisy, index))


class WithoutJacobian(Free):
    """What the chunk lacks is added to it as it is."""

    guided = True

    def guided_step(
        self, features: Tensor, noisy: Tensor, index: Tensor, target: Tensor, weights: Tensor, max_guidance: float
    ) -> Tensor:
        time = self._time(index)
        velocity = self.denoiser(noisy, time, features)
        lacking = weights * (target - (noisy - time[:, None, None] * velocity))
        return noisy - (velocity - guidance(time, max_guidance)[:, None, None] * lacking) / self.steps


class Guided(Free):
    guided = True


ARMS = {"free": Free, "hard prefix": HardPrefix, "guided without Jacobian": WithoutJacobian, "guided": Guided}


@dataclass
class Played:
    """Of each episode whether it succeeded, and the mean jump where a chunk took over; none if none did."""

    success: list[bool]
    jumps: list[float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--demonstrations", type=int, default=300)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[Played]] = {(arm, delay): [] for arm in ARMS for delay in DELAYS}
    for seed in range(asked.seeds):
        weights = learned(seed, asked.demonstrations, asked.updates)
        for (arm, delay), runs in found.items():
            runs.append(played(arm, delay, weights, asked.episodes))
    rows = [row(arm, delay, found) for delay in DELAYS for arm in ARMS]
    for x in rows:
        sys.stderr.write(f"{x}\n")
    settings = {"horizon": HORIZON, "execute": EXECUTE, **vars(asked)}
    report = {"program": "benchmarks.chunking", **settings, "rows": rows}
    write_atomically(REPORT, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))  # noqa: T201


def learned(seed: int, demonstrations: int, updates: int) -> dict[str, Tensor]:
    """The weights of a flow that imitated the expert, another policy and other demonstrations for each seed."""
    torch.manual_seed(seed)
    shown = rollout(Windy(demonstrations), Expert(), seed=1_000_000 + 10_000 * seed)
    assert shown.executed is not None
    said, valid = shown.executed[:, :, 0], shown.valid
    policy = Free(Windy(1).spec, StateMLP, HORIZON, _small, STEPS)
    policy.said = []
    policy.set_statistics(Statistics.of(shown.obs.proprio[valid]), Statistics.of(said[valid]))
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    starts = valid.nonzero()
    for _ in trange(updates, desc=f"seed {seed}"):
        time, env = starts[torch.randint(len(starts), (128,))].unbind(-1)
        later = time[:, None] + torch.arange(HORIZON)
        within = later.clamp(max=len(valid) - 1)
        padded = (later >= len(valid)) | ~valid[within, env[:, None]]
        optimizer.zero_grad()
        policy.imitation_loss(shown.obs[time, env], said[within, env[:, None]], padded).mean().backward()
        optimizer.step()
        schedule.step()
    return policy.state_dict()


def played(arm: str, delay: int, weights: dict[str, Tensor], episodes: int) -> Played:
    policy = ARMS[arm](Windy(1).spec, StateMLP, HORIZON, _small, STEPS).eval()
    policy.load_state_dict(weights)
    policy.said = []
    actor = Asynchronous(policy, EXECUTE, delay, guided=policy.guided, schedule=policy.schedule)
    done = rollout(Windy(episodes), actor, seed=TEST_SEEDS.start)
    steps = done.valid.sum(0)
    jumps = torch.full((len(policy.said), episodes), torch.nan)
    for n in range(1, len(policy.said)):
        jump = (policy.said[n][:, delay] - policy.said[n - 1][:, EXECUTE + delay]).norm(dim=-1)
        jumps[n] = torch.where(steps > n * EXECUTE + delay, jump, torch.nan)
    means = jumps.nanmean(0).tolist()
    return Played(done.success.any(0).tolist(), [None if x != x else x for x in means])


def row(arm: str, delay: int, found: dict[tuple[str, int], list[Played]]) -> dict[str, Any]:
    """All seeds of an arm together, and how often on the same episode only it, or only the free one, succeeded."""
    success = [x for run in found[arm, delay] for x in run.success]
    jumps = [x for run in found[arm, delay] for x in run.jumps if x is not None]
    others = [x for run in found["free", delay] for x in run.success]
    only = [sum(a and not b for a, b in zip(success, others, strict=True))]
    only.append(sum(b and not a for a, b in zip(success, others, strict=True)))
    low, high = bootstrap(jumps)
    return {
        "delay": delay,
        "arm": arm,
        **rate(sum(success), len(success)),
        "by_seed": [sum(run.success) for run in found[arm, delay]],
        "jump": {"mean": sum(jumps) / len(jumps), "low": low, "high": high, "n": len(jumps)},
        "against_free": {"only_this": only[0], "only_free": only[1], "p": mcnemar(*only)},
    }


def _small(features: int, action: int, horizon: int) -> UNet1D:
    return UNet1D(features, action, horizon, channels=(32, 32))


if __name__ == "__main__":
    main()
