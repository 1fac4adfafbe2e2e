"""Playing a demonstration again: our simulator's states, pictures and verdict for another program's actions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla.data.importers.source import Source
from vla.types import Action, Observation, Replayable, Step


class Replay:
    """An environment whose episode i is `sources[i]`, and the actor that plays it: `rollout(replay, replay, seed=i)`.

    An episode starts from the source's own state and ends when the task says so or the source has no more actions.
    Observations are the environment's, so each precedes its action whatever the file has done. Copies beyond the last
    source play it again. `shortened` counts the commands of the episodes so far that the environment's limits changed.
    """

    def __init__(self, env: Replayable, sources: Sequence[Source]):
        self.env, self.sources = env, sources
        self.spec = replace(env.spec, max_steps=max(x.num_steps for x in sources))
        self.shortened = torch.zeros(env.spec.num_envs, dtype=torch.long)

    def reset(self, seed: int) -> Observation:
        last = len(self.sources) - 1
        self.playing = [self.sources[min(seed + i, last)] for i in range(self.spec.num_envs)]
        self.steps = 0
        self.lengths = torch.tensor([x.num_steps for x in self.playing])
        self.shortened = torch.zeros(self.spec.num_envs, dtype=torch.long)
        return self.env.restore([x.start for x in self.playing])

    def act(self, obs: Observation) -> Action:
        n = self.spec.num_envs
        rows = [x.actions[min(self.steps, x.num_steps - 1)] for x in self.playing if x.actions is not None]
        first = self.playing[0]
        command = self.env.translate(torch.from_numpy(np.stack(rows)).float(), first.controller or "", first.settings)
        return Action(commands=command[:, None], log_prob=torch.zeros(n, 0), latent=TensorDict({}, [n]), batch_size=[n])

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        step = self.env.step(command)
        going = self.steps < self.lengths
        self.steps += 1
        changed = (step.executed - command).abs().amax(-1) > 1e-4
        self.shortened += changed & going
        return step.replace(truncated=step.truncated | ~step.terminated & (self.steps >= self.lengths))

    def close(self) -> None:
        self.env.close()
