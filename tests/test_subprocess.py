"""Simulators in workers that are killed, hang or raise: what is lost, what goes on, and what is left behind."""

import functools
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from fragile import Fragile, Losing, without_a_display
from programs import run

from simulators.batch import SceneBatch
from simulators.point import Homing, PointEnv
from simulators.subprocess import SubprocessEnv
from vla import evaluation
from vla.evaluation import outcomes, play
from vla.recipes import evaluate
from vla.rollout import TRIES, rollout
from vla.types import LazyEnv

pytestmark = pytest.mark.timeout(400)  # every worker imports torch, slowly where cores are busy
REST = torch.zeros(4, 2, 2)


def made(notes: Path) -> int:
    return len(list(notes.glob("made_*")))


def played(env, *, seed: int, episodes: int) -> list[evaluation.Episode]:
    return [
        x for first, batch in play(env, Homing(2), seed=seed, episodes=episodes) for x in outcomes(batch, first, 10.0)
    ]


def processes(env: SubprocessEnv) -> set[int]:
    return {worker.process.pid for worker in env.workers}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def env(notes):
    """Four fragile points in two workers; once closed, no process that ever was one is left."""
    before = set(multiprocessing.active_children())
    env = SubprocessEnv(functools.partial(Fragile, notes), 4, workers=2)
    env.seen = processes(env)
    env.made = [made(notes)]
    env.three = played(env, seed=0, episodes=3)
    env.made.append(made(notes))
    yield env
    env.seen |= processes(env)
    env.close()
    assert set(multiprocessing.active_children()) == before
    assert len(env.seen) > 4
    assert not [pid for pid in env.seen if Path(f"/proc/{pid}").exists()]  # a zombie would still be there


def assert_good_as_new(env: SubprocessEnv, seed: int) -> None:
    """All four play as points that were never lost."""
    env.seen |= processes(env)
    ours, theirs = rollout(env, Homing(2), seed=seed), rollout(PointEnv(4, max_steps=8), Homing(2), seed=seed)
    assert not ours.failed.any()
    for a, b in zip(ours.episodes(), theirs.episodes(), strict=True):
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.obs.proprio, b.obs.proprio)
        assert torch.equal(a.obs.images["top"], b.obs.images["top"])


def test_scenes_are_made_when_an_episode_first_needs_them(tmp_path):
    batch = SceneBatch(functools.partial(Fragile, tmp_path), 8)
    assert isinstance(batch, LazyEnv)
    assert batch.spec.num_envs == 8
    assert made(tmp_path) == 1
    few = played(batch, seed=3, episodes=3)
    assert made(tmp_path) == 3
    many = played(batch, seed=3, episodes=10)
    assert made(tmp_path) == 8
    assert [x.seed for x in many] == list(range(3, 13))
    assert many[:3] == few
    assert batch.first(8).reset(0).shape == batch.reset(0).shape == (8,)
    with pytest.raises(ValueError, match="from 1 to all 8 environments, got 9"):
        batch.first(9)


def test_workers_too_make_only_the_scenes_that_are_needed(env, notes):
    """Each makes one, to say what it is; three episodes need three."""
    assert env.made == [2, 3]
    assert env.three == played(PointEnv(4, max_steps=8), seed=0, episodes=3)
    before = made(notes)
    with pytest.raises(ValueError, match="from 1 to all 4 environments, got 0"):
        env.first(0)
    for few in (env.first(1), env.first(3)):  # also where a worker has nothing to do
        episodes = rollout(few, Homing(2), seed=5)
        whole = rollout(PointEnv(4, max_steps=8), Homing(2), seed=5)
        assert outcomes(episodes, 5, 10.0) == outcomes(whole, 5, 10.0)[: few.spec.num_envs]
        assert torch.equal(episodes.obs[0].images["top"], whole.obs[0].images["top"][: few.spec.num_envs])
    assert made(notes) == before
    assert_good_as_new(env, seed=0)


def test_what_was_killed_in_the_middle_is_over_and_shows_what_was_last_seen(env):
    env.reset(10)
    before = env.play(REST + 0.1)
    kept = before.clone()
    assert not before.failed.any()
    os.kill(env.workers[1].process.pid, signal.SIGKILL)
    lost = torch.tensor([False, False, True, True])
    for times in (1, 2):  # and it stays so until the next reset
        step = env.play(REST + 0.1)
        assert torch.equal(step.failed, lost)
        assert torch.equal(step.truncated, lost)
        assert step.num_steps.tolist() == [2, 2, 0, 0]
        assert not step.terminated.any()
        assert not step.success[2:].any()
        assert step.reward[2:].tolist() == [0, 0]
        assert not step.executed[2:].any()
        torch.testing.assert_close(step.obs.proprio[:2, :2], before.obs.proprio[:2, :2] + 0.2 * times)
        for name in ("proprio", "images", "privileged", "instruction"):
            ours, theirs = getattr(step.obs[2:], name), getattr(before.obs[2:], name)
            assert ours == theirs if name == "instruction" else (ours == theirs).all()
        assert step.obs.images["top"].any()
    assert (before == kept).all()
    step.obs.proprio.zero_()
    assert env.step(REST[:, 0]).obs.proprio[:2].any()
    assert_good_as_new(env, seed=10)


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_what_raises_or_hangs_loses_its_own_episodes_and_no_others(env, notes, fault, caplog, monkeypatch):
    monkeypatch.setattr(env, "timeout", 5.0 if fault == "hangs" else env.timeout)
    (notes / f"{fault}_25").touch()
    episodes = rollout(env, Homing(2), seed=24)
    monkeypatch.undo()
    said = {"raises": "ArithmeticError: the physics exploded", "hangs": "simulator worker 0 gave no answer for 5 s"}
    assert said[fault] in caplog.text
    whole = rollout(PointEnv(4, max_steps=8), Homing(2), seed=24)
    assert whole.valid.sum(0)[:2].min() > 1  # or there would have been nothing to lose
    assert episodes.lost() == [0, 1]
    assert episodes.failed[:, :2].all()
    assert not episodes.failed[:, 2:].any()
    for name in ("valid", "success", "terminated", "reward", "executed", "num_steps"):
        assert not getattr(episodes, name)[:, :2].any(), name
        rows = min(len(episodes), len(whole))
        assert torch.equal(getattr(episodes, name)[:rows, 2:], getattr(whole, name)[:rows, 2:]), name
    assert [x.seed for x in outcomes(episodes, 24, 10.0)] == [26, 27]
    assert_good_as_new(env, seed=24)


def test_a_reset_in_which_a_worker_dies_is_tried_again(env, notes):
    (notes / "killed_in_reset_32").touch()
    env.reset(30)
    assert not list(notes.glob("killed*"))
    assert_good_as_new(env, seed=30)


def test_a_reset_in_which_one_worker_after_the_other_fails_is_given_up(env, notes, monkeypatch):
    faults = [notes / "raises_in_reset_40", notes / "raises_in_reset_41"]  # both are the first worker's
    monkeypatch.setattr("simulators.subprocess.ATTEMPTS", 2)
    for fault in faults:
        fault.touch()
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 failed 2 times in a row.*the physics exploded"):
        env.reset(40)
    assert_good_as_new(env, seed=40)


def test_an_episode_that_ended_before_its_worker_died_counts():
    whole = rollout(PointEnv(4), Homing(2), seed=0)
    late = rollout(Losing(lost=[0, 1, 2, 3], after=6), Homing(2), seed=0)
    early = [i for i, n in enumerate(whole.num_steps.sum(0).tolist()) if n < 6]
    assert 0 < len(early) < 4
    assert [i for i in range(4) if i not in late.lost()] == early
    assert outcomes(late, 0, 10.0) == [x for i, x in enumerate(outcomes(whole, 0, 10.0)) if i in early]


class Wavering(Homing):
    """Decides at random."""

    def act(self, obs):
        action = super().act(obs)
        return action.replace(commands=action.commands + 0.05 * torch.randn_like(action.commands))


@pytest.mark.parametrize("actor", [Homing(2), Wavering(2)])
def test_lost_episodes_are_played_again_until_all_are_as_if_nothing_had_happened(actor):
    lost = Counter()
    ours = list(play(Losing(lost=[0, 0, 3, 8]), actor, seed=0, episodes=10, lost=lost))
    theirs = list(play(PointEnv(4), actor, seed=0, episodes=10))
    assert lost == {0: 2, 3: 1, 8: 1}
    for (first, a), (_, b) in zip(ours, theirs, strict=True):
        assert outcomes(a, first, 10.0) == outcomes(b, first, 10.0)
        assert torch.equal(a.valid, b.valid)
        assert torch.equal(a.executed, b.executed)


def test_an_episode_that_is_lost_every_time_is_named():
    with pytest.raises(RuntimeError, match=f"episode of seed 6 was lost {TRIES} times"):
        list(play(Losing(lost=[6] * TRIES), Homing(2), seed=0, episodes=8))


def test_an_evaluation_with_killed_workers_equals_one_without(env, tmp_path, monkeypatch):
    """Twelve episodes; a worker is killed from outside in the first batch and kills itself in the last."""

    class Assassin(Homing):
        decisions = 0

        def act(self, obs):
            self.decisions += 1
            if self.decisions == 2:
                os.kill(env.workers[1].process.pid, signal.SIGKILL)
            return super().act(obs)

    notes = env.workers[0].make.args[0]
    (notes / "killed_10011").touch()
    summaries = {}
    for name, parts in {"cut": (env, Assassin(2)), "whole": (PointEnv(4, max_steps=8), Homing(2))}.items():
        with monkeypatch.context() as patch:
            played, actor = parts
            left = iter((played, lambda policy: policy, actor))  # as they are made: environment, execution, expert
            patch.setattr(evaluate, "instantiate", lambda _, left=left: next(left))
            patch.setattr(env, "close", lambda: None)
            summaries[name] = run(
                evaluate.main, "policy=expert", "episodes=12", "videos=2", f"run_dir={tmp_path / name}"
            )
    files = [(tmp_path / name / evaluation.EPISODES).read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]
    assert summaries["cut"].pop("lost_episodes") == 3  # two and one: the other had ended
    same = summaries["whole"].keys() - {"seconds", "run_dir"}
    assert {name: summaries["cut"][name] for name in same} == {name: summaries["whole"][name] for name in same}
    assert_good_as_new(env, seed=0)


def test_a_scene_that_cannot_be_made_is_given_up(monkeypatch):
    monkeypatch.setattr("simulators.subprocess.ATTEMPTS", 1)
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 failed 1 times in a row.*OSError: no display"):
        SubprocessEnv(without_a_display, 1, workers=1)
    assert set(multiprocessing.active_children()) == before
