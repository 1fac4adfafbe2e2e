"""Policies that serve environments through Ray, and what happens when processes or machines are lost."""

import os
import signal
import time
from contextlib import closing

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla.cluster import Collectors
from vla.collect import Collector, OneProcess
from vla.models.state_mlp import StateMLP
from vla.pipeline import planned
from vla.serving import Served

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets of Ray's own test clusters
]
ENV = {"_target_": "simulators.point.PointEnv", "num_envs": 6, "max_steps": 8}
PLACES = {
    "colocated": {"workers": 2},
    "served": {"workers": 2, "servers": 1},
    "served by two": {"workers": 2, "servers": 2, "deadline": 0.01},
}


@pytest.fixture(scope="module")
def address():
    """A Ray that is running already: each fleet joins it, which is quicker than to start one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 12, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return TokenPolicy(PointEnv().spec, StateMLP, horizon=2, bins=8).eval()


@pytest.fixture(scope="module")
def here(policy):
    """What one process plays."""
    return OneProcess(Collector(ENV, batch=3)).start(policy, 40, draw=1).get()


def assert_same(ours, theirs):
    assert torch.equal(ours.valid, theirs.valid)
    assert torch.equal(ours.action.commands, theirs.action.commands)
    assert torch.equal(ours.obs.images["top"], theirs.obs.images["top"])
    assert torch.equal(ours.reward, theirs.reward)


def fragile(notes, **options):
    return {"_target_": "fragile.FragileGroup", "num_envs": 6, "notes": str(notes), **options}


def test_the_same_episodes_are_played_by_a_policy_that_serves_from_this_process(policy, here):
    with closing(OneProcess(Served(ENV, batch=3, plan=planned(6, 3, 1)))) as fleet:
        assert_same(fleet.start(policy, 40, draw=1).get(), here)
    assert not ray.is_initialized()


def test_how_many_groups_are_best_is_measured(policy, here):
    with closing(OneProcess(Served(ENV, batch=3, plan=planned(6, "auto", 1)))) as fleet:
        assert_same(fleet.start(policy, 40, draw=1).get(), here)
        pace = fleet.pace()
    predicted = {k: pace[f"pipeline/predicted_{k}"] for k in (1, 2, 3)}
    assert min(predicted.values()) > 0
    assert predicted[pace["pipeline/groups"]] <= 1.001 * min(predicted.values()) / 0.97


@pytest.mark.parametrize("place", PLACES)
def test_the_same_episodes_are_played_wherever_the_policy_is(place, policy, here, address):
    with Collectors(ENV, address=address, batch=3, **PLACES[place]) as fleet:
        assert fleet.spec.num_envs == 6
        assert_same(fleet.start(policy, 40, draw=1).get(), here)
        pace = fleet.pace()
    if "served" in place:
        assert 0 < pace["pipeline/deciding"] < 1
        assert 1 <= pace["pipeline/rows_per_call"] <= 6


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", ["killed", "hangs"])
def test_a_process_that_dies_or_hangs_is_replaced_and_plays_the_same(
    place, fault, policy, here, tmp_path, monkeypatch, address
):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    (tmp_path / f"{fault}_42").touch()
    with Collectors(fragile(tmp_path), address=address, batch=3, timeout=20, **PLACES[place]) as fleet:
        assert_same(fleet.start(policy, 40, draw=1).get(), here)
        assert_same(fleet.start(policy, 40, draw=1).get(), here)
    assert not list(tmp_path.glob(f"{fault}_*"))


def test_a_server_that_is_killed_is_replaced_with_all_its_environments(policy, here, address):
    with Collectors(ENV, address=address, batch=3, **PLACES["served by two"]) as fleet:
        fleet.start(policy, 40).get()
        pending = [fleet.start(policy, 40, draw=1) for _ in range(3)]
        os.kill(ray.get(fleet.members[1].pid.remote()), signal.SIGKILL)
        for x in pending:
            assert_same(x.get(), here)


def test_what_dies_again_and_again_is_an_error(policy, tmp_path, monkeypatch, address):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    said = r"episodes from 40 on was lost 3 times.*Out of memory"
    with (
        Collectors(fragile(tmp_path, always="killed"), address=address, workers=2) as fleet,
        pytest.raises(RuntimeError, match=said),
    ):
        fleet.start(policy, 40).get()


def test_what_an_environment_raises_in_a_group_is_raised_here(policy):
    with pytest.raises(ValueError, match="num_targets must be from 1 to 2, got 9"):
        Collectors({**ENV, "num_targets": 9}, workers=2, servers=1)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_machine_that_is_lost_costs_nothing_but_time(policy, here):
    """A cluster of three simulated machines; a run joins it, and the one with a server goes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    others = [cluster.add_node(num_cpus=4) for _ in range(2)]
    try:
        with Collectors(ENV, batch=3, address=cluster.address, timeout=120, **PLACES["served by two"]) as fleet:
            assert_same(fleet.start(policy, 40, draw=1).get(), here)
            pending = fleet.start(policy, 40, draw=1)
            for node in others[:1]:
                cluster.remove_node(node, allow_graceful=False)
            assert_same(pending.get(), here)
    finally:
        cluster.shutdown()


def test_no_room_in_a_cluster_is_said_at_once(policy):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        with pytest.raises(RuntimeError, match="the cluster has no room for 2 times"):
            Collectors(ENV, workers=2, address=cluster.address, patience=3)
    finally:
        cluster.shutdown()


def test_nothing_is_left_behind(policy, address):
    with Collectors(ENV, address=address, workers=3, servers=1) as fleet:
        fleet.start(policy, 40).get()
        pids = ray.get([fleet.members[0].pid.remote()])
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_over_a_thousand_collections(policy, address):
    """Of this process, which serves, and of one with environments: after a hundred, no more than 30 MB."""
    env = {**ENV, "max_steps": 2}
    with Collectors(env, address=address, workers=2, servers=1) as fleet:
        server = ray.get(fleet.members[0].pid.remote())
        used = []
        for i in range(1000):
            fleet.start(policy, i).get()
            fleet.pace()
            if i in (100, 999):
                used.append([_megabytes(pid) for pid in (os.getpid(), server)])
        store = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
    for before, after in zip(*used, strict=True):
        assert after - before < 30
    assert store < 50e6


def _megabytes(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
