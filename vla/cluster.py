"""Episodes collected by processes of Ray, on this machine or on many."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from vla.collect import Collector, Pending, changing, on_cpu
from vla.pipeline import Lost, Plan, planned
from vla.rollout import TRIES, join
from vla.serving import Served, result, start_ray, stop_ray, wait
from vla.types import EnvSpec, Metrics, Rollout

log = logging.getLogger(__name__)


class Collectors:
    """`env.num_envs` environments in `workers` Ray processes, the policy in all of them or in so many `servers`.

    Episodes are numbered through all processes and chance belongs to the episode, so what is played does not depend on
    how many processes play. One that dies, or takes longer than `timeout` seconds for a chunk (of a server's
    environments) or for its episodes (all others), is replaced and its episodes, the same ones, are played again; after
    TRIES losses in a row a RuntimeError says why.

    Without an `address` this fleet has a Ray of its own: runs on one machine do not meet. Raises ValueError if the
    environments cannot be spread evenly.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        *,
        workers: int | str,
        servers: int = 0,
        gpus: int | float = 0,
        batch: int | None = None,
        deadline: int | float = 0.0,
        timeout: int | float = 600.0,
        address: str | None = None,
        patience: int | float = 60.0,
    ):
        self.plan = planned(int(env["num_envs"]), workers, servers)
        self.env, self.gpus, self.waits = env, gpus, {"deadline": deadline, "timeout": timeout}
        self.timeout = 10 * timeout if servers else timeout  # a server looks after its environments itself
        self.how = {"device": "cuda" if gpus else "cpu", "batch": batch}
        self.whole: Any = None  # the policy, once there is one
        self.scratch = start_ray(self.plan.cpus, address)
        try:
            self.places = _reserved(self.plan, gpus, patience)
            self.members = [self._make(i) for i in range(self.plan.members)]
            spec = wait([x.open.remote() for x in self.members])[0]
            self.spec: EnvSpec = replace(spec, num_envs=int(env["num_envs"]))
        except BaseException:
            self.close()
            raise

    def start(self, policy: nn.Module, seed: int, *, greedy: bool = False, draw: int = 0) -> Pending:
        """Begin one episode per environment with the policy as it is now; returns at once."""
        if self.whole is None:  # the whole module once, frozen weights included; later only what changes
            self.whole = ray.put(on_cpu(policy))
            wait([x.load.remote(self.whole) for x in self.members])
        return _Underway(self, ray.put(changing(policy)), seed, {"greedy": greedy, "draw": draw})

    def collect(self, member: int, weights: Any, seed: int, how: Mapping[str, Any]) -> Any:
        """The call that has a process play its share."""
        return self.members[member].collect.remote(weights, seed + member * self.plan.share, **how)

    def renew(self, member: int, lost: Any) -> None:
        """Put a new process in the place of `lost`, unless that was done."""
        if self.members[member] is not lost:
            return
        ray.kill(lost)
        self.members[member] = self._make(member)
        wait([self.members[member].open.remote(), self.members[member].load.remote(self.whole)])

    def pace(self) -> Metrics:
        told = wait([x.pace.remote() for x in self.members])
        return {name: sum(x[name] for x in told) / len(told) for name in told[0]}

    def close(self) -> None:
        stop_ray(self.scratch)

    def __enter__(self) -> "Collectors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, member: int) -> Any:
        env = {**self.env, "num_envs": self.plan.share}
        where = PlacementGroupSchedulingStrategy(
            self.places, placement_group_bundle_index=member, placement_group_capture_child_tasks=True
        )
        if not self.plan.groups:
            remote: Any = ray.remote(num_cpus=1, num_gpus=self.gpus, scheduling_strategy=where)(Collector)
            return remote.remote(env, **self.how)
        remote = ray.remote(num_cpus=1, num_gpus=self.gpus, scheduling_strategy=where)(Served)
        return remote.remote(env, **self.how, plan=self.plan, **self.waits)


def _reserved(plan: Plan, gpus: int | float, patience: int | float) -> PlacementGroup:
    """Room for every process; those that play for one policy are on one machine with it."""
    need = {"CPU": 1.0 + plan.groups, **({"GPU": float(gpus)} if gpus else {})}
    places = placement_group([need] * plan.members, strategy="PACK")
    if not places.wait(patience):
        raise RuntimeError(
            f"the cluster has no room for {plan.members} times {need}; in all it has {ray.cluster_resources()}. Use "
            "fewer workers or servers, or add machines (ray start)"
        )
    return places


class _Underway:
    def __init__(self, fleet: Collectors, weights: Any, seed: int, how: Mapping[str, Any]):
        self.fleet, self.told = fleet, (weights, seed, how)
        members = list(fleet.members)
        self.calls = [(x, fleet.collect(i, *self.told)) for i, x in enumerate(members)]

    def get(self) -> Rollout:
        return join([self._of(i) for i in range(len(self.calls))])

    def _of(self, member: int) -> Rollout:
        for attempt in range(1, TRIES + 1):
            played_by, call = self.calls[member]
            answer = result(call, self.fleet.timeout)
            if not isinstance(answer, Lost):
                return answer
            log.warning("the process %d of %d %s; it is replaced", member + 1, len(self.calls), answer.reason)
            if attempt < TRIES:
                self.fleet.renew(member, played_by)
                self.calls[member] = self.fleet.members[member], self.fleet.collect(member, *self.told)
        raise RuntimeError(
            f"the process that plays the episodes from {self.told[1] + member * self.fleet.plan.share} on was lost "
            f"{TRIES} times, the last time it {answer.reason}. Out of memory? Use fewer workers or environments; with "
            "workers=0 everything runs in this process and shows its own messages."
        )
