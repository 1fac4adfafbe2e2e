"""Collecting episodes with a policy's weights of the moment: in this process, or (`vla.cluster`) in others."""

import copy
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from vla.evaluation import OnDevice
from vla.messages import known, packed, unpacked
from vla.rollout import Greedy, execute, rollout
from vla.types import Actor, EnvSpec, LazyEnv, Metrics, Rollout, Seeded


@runtime_checkable
class Player(Protocol):
    """Environments and a policy for them: `Collector`, or `vla.cluster.Served`."""

    def open(self) -> EnvSpec: ...
    def load(self, policy: nn.Module) -> None: ...
    def collect(self, weights: Mapping[str, Tensor], seed: int, *, greedy: bool = False, draw: int = 0) -> Rollout: ...
    def pace(self) -> Metrics: ...
    def close(self) -> None: ...


@runtime_checkable
class Pending(Protocol):
    """Episodes still being played."""

    def get(self) -> Rollout: ...


@runtime_checkable
class Fleet(Protocol):
    """What plays for training: `OneProcess` here, `vla.cluster.Collectors` in several."""

    spec: EnvSpec

    def start(self, policy: nn.Module, seed: int, *, greedy: bool = False, draw: int = 0) -> Pending:
        """Begin one episode per environment with the policy as it is now. `draw`: see `rollout`."""
        ...

    def pace(self) -> Metrics:
        """Where the time went since this was last asked, if there is anything to tell."""
        ...

    def close(self) -> None: ...


class Collector:
    """Environments and a policy in one process: it builds the environments, so only it imports the simulator."""

    def __init__(self, env: Mapping[str, Any], device: str = "cpu", batch: int | None = None):
        self.config, self.batch = env, batch
        self.own = OwnPolicy(device)

    def open(self) -> EnvSpec:
        """Build the environments (not in the constructor: Ray would not pass on why that failed)."""
        self.env = _built(self.config)
        return self.env.spec

    def load(self, policy: nn.Module) -> None:
        self.own.load(policy)

    def collect(self, weights: Mapping[str, Tensor], seed: int, *, greedy: bool = False, draw: int = 0) -> Rollout:
        """One episode per environment, from `seed` on, played by the policy with these weights."""
        self.own.update(weights)
        return rollout(self.env, self.own.actor(greedy=greedy), seed=seed, draw=draw, batch=self.batch)

    def pace(self) -> Metrics:
        return {}

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self.env.close()


class OwnPolicy:
    """This process's own copy of the policy, which is sent what has changed."""

    def __init__(self, device: str):
        self.device = torch.device(device)

    def load(self, policy: nn.Module) -> None:
        self.policy = policy.to(self.device).eval()

    def update(self, weights: Mapping[str, Tensor]) -> None:
        if unknown := self.policy.load_state_dict(weights, strict=False).unexpected_keys:
            raise ValueError(f"weights that the policy does not have: {', '.join(unknown)}")

    def actor(self, *, greedy: bool) -> Actor:
        """The policy as an actor, with a memory of its own where it has one; weights are shared."""
        own = cast(Actor, self.policy)
        if isinstance(own, Seeded):
            weights = [*self.policy.parameters(), *self.policy.buffers()]
            own = copy.deepcopy(own, {id(x): x for x in weights})
        actor = cast(Actor, Greedy(own)) if greedy else own
        return actor if self.device.type == "cpu" else OnDevice(actor, self.device)


class Group:
    """Environments in a process of their own, for a policy in another."""

    def __init__(self, env: Mapping[str, Any]):
        self.config = env

    def open(self) -> EnvSpec:
        self.env = _built(self.config)
        return self.env.spec

    def reset(self, seed: int) -> bytes:
        return packed(known(self.env.reset(seed).to_dict()))

    def seconds(self, num_envs: int, horizon: int, repeats: int = 3) -> float:
        """How long a chunk takes so many environments; one that cannot play with fewer takes as long as for all."""
        env = self.env.first(num_envs) if isinstance(self.env, LazyEnv) else self.env
        env.reset(0)
        n, still = env.spec.num_envs, []
        for _ in range(repeats):
            begun = time.perf_counter()
            execute(env, torch.zeros(n, horizon, env.spec.action_dim), torch.ones(n, dtype=torch.bool))
            still.append(time.perf_counter() - begun)
        return sorted(still)[repeats // 2]

    def pid(self) -> int:
        return os.getpid()

    def play(self, told: bytes) -> bytes:
        commands, alive = unpacked(told)
        return packed(known(execute(self.env, commands, alive).to_dict()))


class OneProcess:
    """Plays where it is called, at once: for laptops, tests, GPU simulators, and a policy that serves from here."""

    def __init__(self, player: Player):
        self.player = player
        self.spec = self.player.open()
        self.loaded = False

    def start(self, policy: nn.Module, seed: int, *, greedy: bool = False, draw: int = 0) -> Pending:
        if not self.loaded:
            self.player.load(on_cpu(policy))
            self.loaded = True
        return _Done(self.player.collect(changing(policy), seed, greedy=greedy, draw=draw))

    def pace(self) -> Metrics:
        return self.player.pace()

    def close(self) -> None:
        self.player.close()

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Done:
    def __init__(self, episodes: Rollout):
        self.episodes = episodes

    def get(self) -> Rollout:
        return self.episodes


def on_cpu(policy: nn.Module) -> nn.Module:
    """A copy for another process."""
    return copy.deepcopy(policy).cpu()


def changing(policy: nn.Module) -> dict[str, Tensor]:
    """Weights that are trained, and buffers: what the workers' own copy may lack."""
    frozen = {name for name, x in policy.named_parameters() if not x.requires_grad}
    return {name: x.detach().cpu() for name, x in policy.state_dict().items() if name not in frozen}


def _built(config: Mapping[str, Any]) -> Any:
    try:
        return instantiate(config)
    except InstantiationException as error:  # what the environment said is more use than what Hydra adds
        raise error.__cause__ or error from None
