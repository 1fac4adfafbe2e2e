"""Collecting episodes, in this process or with Ray in several; the only file that imports ray."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import ray
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor, nn

from vla.evaluation import OnDevice
from vla.rollout import Greedy, join, rollout
from vla.types import Actor, EnvSpec, Rollout

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]


class Collector:
    """One worker: it builds its own environments, so only it imports the simulator, and keeps its own policy."""

    def __init__(self, env: Mapping[str, Any], device: str = "cpu"):
        self.config = env
        self.device = torch.device(device)

    def open(self) -> EnvSpec:
        """Build the environments (not in the constructor: Ray would not pass on why that failed)."""
        try:
            self.env = instantiate(self.config)
        except InstantiationException as error:  # what the environment said is more use than what Hydra adds
            raise error.__cause__ or error from None
        return self.env.spec

    def load(self, policy: nn.Module) -> None:
        self.policy = policy.to(self.device).eval()
        actor = cast(Actor, policy)
        self.actors = {False: self._placed(actor), True: self._placed(Greedy(actor))}

    def collect(self, weights: Mapping[str, Tensor], seed: int, *, greedy: bool = False, draw: int = 0) -> Rollout:
        """One episode per environment, from `seed` on, played by the policy with these weights."""
        if unknown := self.policy.load_state_dict(weights, strict=False).unexpected_keys:
            raise ValueError(f"weights that the policy does not have: {', '.join(unknown)}")
        return rollout(self.env, self.actors[greedy], seed=seed, draw=draw)

    def _placed(self, actor: Any) -> Any:
        return actor if self.device.type == "cpu" else OnDevice(actor, self.device)


@runtime_checkable
class Pending(Protocol):
    """Episodes still being played."""

    def get(self) -> Rollout: ...


class Collectors:
    """`env.num_envs` environments, spread evenly over Ray workers on this machine.

    Worker w plays the episodes from `seed + w * (num_envs / workers)` on, so which episodes are played does not
    depend on the number of workers. Every fleet has a Ray of its own: runs on one machine do not meet. Raises
    ValueError if the environments cannot be spread evenly, and RuntimeError if a worker dies.
    """

    def __init__(self, env: Mapping[str, Any], *, workers: int, gpus_per_worker: int | float = 0):
        num_envs = int(env["num_envs"])
        if workers < 1 or num_envs % workers:
            raise ValueError(f"env.num_envs={num_envs} cannot be spread evenly over workers={workers}: change one")
        self.share = num_envs // workers
        self.scratch = _start_ray(workers)
        make: Any = ray.remote(num_cpus=1, num_gpus=gpus_per_worker)(Collector)
        device = "cuda" if gpus_per_worker else "cpu"
        self.workers: list[Any] = [make.remote({**env, "num_envs": self.share}, device) for _ in range(workers)]
        self.loaded = False
        try:
            self.spec: EnvSpec = replace(_wait([w.open.remote() for w in self.workers])[0], num_envs=num_envs)
        except BaseException:
            self.close()
            raise

    def start(self, policy: nn.Module, seed: int, *, greedy: bool = False, draw: int = 0) -> Pending:
        """Begin one episode per environment with the policy as it is now; returns at once. `draw`: see `rollout`."""
        if not self.loaded:  # the whole module once, frozen weights included; later only what changes
            whole = ray.put(_on_cpu(policy))
            _wait([w.load.remote(whole) for w in self.workers])
            self.loaded = True
        weights = ray.put(_changing(policy))
        how = {"greedy": greedy, "draw": draw}
        calls = enumerate(self.workers)
        return _Underway([w.collect.remote(weights, seed + i * self.share, **how) for i, w in calls])

    def close(self) -> None:
        ray.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> "Collectors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OneProcess:
    """The same as `Collectors`, without Ray: for laptops, tests and GPU simulators."""

    def __init__(self, env: Mapping[str, Any], *, device: torch.device | str = "cpu"):
        self.collector = Collector(env, str(device))
        self.spec = self.collector.open()
        self.loaded = False

    def start(self, policy: nn.Module, seed: int, *, greedy: bool = False, draw: int = 0) -> Pending:
        if not self.loaded:
            self.collector.load(_on_cpu(policy))
            self.loaded = True
        return _Done(self.collector.collect(_changing(policy), seed, greedy=greedy, draw=draw))

    def close(self) -> None:
        self.collector.env.close()

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Underway:
    def __init__(self, calls: list[Any]):
        self.calls = calls

    def get(self) -> Rollout:
        return join(_wait(self.calls))


class _Done:
    def __init__(self, episodes: Rollout):
        self.episodes = episodes

    def get(self) -> Rollout:
        return self.episodes


def _start_ray(workers: int, attempts: int = 4) -> Path:
    """Start a Ray that no other program uses or finds; returns where it keeps its sockets and logs.

    Workers import this checkout. Their path of sockets must stay short, so it is not below the run directory. On a busy
    machine Ray gives up after 30 s, so it is tried again.
    """
    for attempt in range(attempts):
        scratch = Path(tempfile.mkdtemp(prefix="ray-"))
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
                _temp_dir=str(scratch),
            )
            break
        except Exception as error:  # Ray has no name for it
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)
            if "timed out during startup" not in str(error) or attempt == attempts - 1:
                raise
            log.warning("Ray did not start in time on this busy machine: trying again")
    return scratch


def _wait(calls: list[Any]) -> list[Any]:
    """The results. What a worker raised is raised here; a worker that died is a RuntimeError."""
    try:
        return ray.get(calls)
    except RayTaskError as error:
        raise error.cause from error
    except RayActorError as error:
        raise RuntimeError(
            f"a worker died while it played episodes: {error}. Out of memory? Use fewer workers or environments; "
            "with workers=0 everything runs in this process and shows its own messages."
        ) from error


def _on_cpu(policy: nn.Module) -> nn.Module:
    return copy.deepcopy(policy).cpu()


def _changing(policy: nn.Module) -> dict[str, Tensor]:
    """Weights that are trained, and buffers: what the workers' own copy may lack."""
    frozen = {name for name, x in policy.named_parameters() if not x.requires_grad}
    return {name: x.detach().cpu() for name, x in policy.state_dict().items() if name not in frozen}
