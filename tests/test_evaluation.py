"""Verdicts and times of episodes worked out by hand, their file, and comparisons of two evaluations."""

import csv
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from simulators.maniskill import ManiSkillEnv
from simulators.point import Homing, PointEnv
from simulators.tally import Tally
from vla.comparison import compare, differing, earlier_episodes
from vla.evaluation import (
    Episode,
    outcomes,
    per_task,
    read_episodes,
    record,
    success_rates,
    times_to_success,
    write_episodes,
)
from vla.rollout import execute, rollout
from vla.types import Action, Observation

OLD = "seed,instruction,success,decisions,steps,total_reward\n7,lift it,True,3,6,1.0\n8,lift it,False,5,10,0.0\n"


def episode(seed: int, *, success: bool, **more) -> Episode:
    return Episode(**{"seed": seed, "instruction": "lift it", "success": success, "decisions": 3, "steps": 6,
                      "total_reward": float(success), **more})  # fmt: skip


class Passing:
    """Walks on in a straight line, so that it passes the target; `horizon` commands per decision."""

    def __init__(self, horizon: int):
        self.horizon = horizon

    def act(self, obs: Observation) -> Action:
        b = obs.batch_size
        commands = torch.tensor([0.2, 0.0]).expand(*b, self.horizon, 2)
        return Action(commands=commands, log_prob=torch.zeros(*b, 0), latent=TensorDict({}, b), batch_size=b)


class Row(PointEnv):
    """Episodes on a line: the target of episode i is 0.2 * (i + 1) m to the right of the point."""

    def _draw(self, seed: int):
        target = torch.tensor([[-0.9 + 0.2 * (seed % 100 + 1), 0.0]])
        return torch.tensor([-0.9, 0.0]), target, torch.tensor(0)


def row(**options) -> Row:
    return Row(num_envs=4, max_steps=6, **options)


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 6])
def test_a_success_that_ends_the_episode_is_one_at_its_end_and_timed_exactly(horizon):
    episodes = outcomes(rollout(row(), Passing(horizon), seed=0), 0, control_hz=10.0)
    assert [x.steps for x in episodes] == [1, 2, 3, 4]
    assert [x.time_to_success for x in episodes] == [0.1, 0.2, 0.3, 0.4]
    assert all(x.success and x.success_at_end and x.time_is_exact for x in episodes)


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 6])
def test_a_success_that_does_not_last_is_one_at_any_time_only(horizon):
    episodes = outcomes(rollout(row(ends_on_success=False), Passing(horizon), seed=0), 0, control_hz=10.0)
    assert all(x.success and not x.success_at_end for x in episodes)
    assert [x.steps for x in episodes] == [6, 6, 6, 6]
    assert [x.time_to_success for x in episodes] == [0.1, 0.2, 0.3, 0.4]
    assert all(x.time_is_exact for x in episodes)


def test_a_success_in_the_last_command_lasts_and_a_failure_has_no_time():
    episodes = outcomes(rollout(row(ends_on_success=False), Passing(4), seed=4), 4, control_hz=10.0)
    assert [x.success for x in episodes] == [True, True, False, False]
    assert [x.success_at_end for x in episodes] == [False, True, False, False]
    assert [x.time_to_success for x in episodes] == [0.5, 0.6, None, None]
    assert success_rates(episodes)["k"] == 2
    assert success_rates(episodes)["at_end"]["k"] == 1
    assert times_to_success(episodes) == {
        "mean_time_to_success": pytest.approx(0.55),
        "median_time_to_success": pytest.approx(0.55),
        "time_is_exact": True,
    }


def test_where_an_environment_does_not_tell_the_time_is_to_the_end_of_the_chunk():
    batch = rollout(row(ends_on_success=False), Passing(4), seed=0)
    episodes = outcomes(batch.replace(steps_to_success=None), 0, control_hz=10.0)
    assert [x.time_to_success for x in episodes] == [0.4] * 4
    assert not any(x.time_is_exact for x in episodes)
    assert not times_to_success(episodes)["time_is_exact"]
    without = batch.replace(success_at_end=None, steps_to_success=None)
    assert all(x.success_at_end is False for x in outcomes(without, 0, control_hz=10.0))  # as of the last decision


def test_episodes_that_end_at_different_times_do_not_disturb_each_other():
    env = PointEnv(num_envs=12, max_steps=16)
    together = outcomes(rollout(env, Homing(3), seed=0), 0, control_hz=10.0)
    one = PointEnv(num_envs=1, max_steps=16)
    assert together == [outcomes(rollout(one, Homing(3), seed=i), i, control_hz=10.0)[0] for i in range(12)]


def test_a_tally_counts_as_playing_command_by_command_does():
    chunk = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.1
    for ends_on_success in (True, False):
        env, alive, tally = row(ends_on_success=ends_on_success), torch.ones(4, dtype=torch.bool), Tally(chunk)
        env.reset(0)
        expected = execute(env, chunk, alive)
        env.reset(0)
        for command in chunk.unbind(1):
            step = env.step(command)
            out_of_time = bool((env.steps >= env.spec.max_steps).all())
            tally.add(alive, step.executed, step.reward, step.success, step.terminated, out_of_time=out_of_time)
            alive = alive & ~tally.over
        played = tally.step(expected.obs)
        for name in ("reward", "success", "success_at_end", "steps_to_success", "num_steps", "executed"):
            torch.testing.assert_close(getattr(played, name), getattr(expected, name), msg=name)
        assert torch.equal(played.terminated, expected.terminated)
        assert torch.equal(played.truncated, expected.truncated)


def test_files_keep_all_that_is_known(tmp_path):
    episodes = [
        episode(3, success=True, success_at_end=True, time_to_success=0.1 + 0.2, time_is_exact=False, task="Lift"),
        episode(4, success=False, success_at_end=False, instruction='say "a, b"', total_reward=-1 / 3),
    ]
    write_episodes(tmp_path, episodes)
    assert read_episodes(tmp_path) == episodes
    assert list(tmp_path.iterdir()) == [tmp_path / "episodes.csv"]


def test_a_file_from_before_these_columns_is_read_and_gone_on_with(tmp_path):
    (tmp_path / "episodes.csv").write_text(OLD)
    assert read_episodes(tmp_path) == [episode(7, success=True), episode(8, success=False, decisions=5, steps=10)]
    assert success_rates(read_episodes(tmp_path))["at_end"]["k"] == 1
    assert times_to_success(read_episodes(tmp_path))["mean_time_to_success"] is None
    played = record(tmp_path, PointEnv(num_envs=2), Homing(1), range(7, 11), name="test")
    assert [x.seed for x in played] == [7, 8, 9, 10]
    assert read_episodes(tmp_path) == played


def test_another_file_is_refused(tmp_path):
    (tmp_path / "episodes.csv").write_text("seed,colour\n1,red\n")
    with pytest.raises(ValueError, match=r"lacks \['decisions', 'instruction', 'steps', 'success', 'total_reward'\]"):
        read_episodes(tmp_path)


def test_tasks_with_the_same_instruction_are_told_apart_by_name():
    episodes = [episode(i, success=i % 2 == 0, task=name) for i, name in enumerate(["A", "A", "B"])]
    assert {name: (x["k"], x["n"]) for name, x in per_task(episodes).items()} == {
        "A: lift it": (1, 2),
        "B: lift it": (1, 1),
    }


def evaluated(directory: Path, successes: str, first_seed: int = 0, **env) -> list[Episode]:
    directory.mkdir(exist_ok=True)
    OmegaConf.save({"env": {"size": 3, "num_envs": 4, **env}}, directory / "config.yaml")
    episodes = [episode(first_seed + i, success=x == "1") for i, x in enumerate(successes)]
    write_episodes(directory, episodes)
    return episodes


def test_evaluations_are_compared_on_the_seeds_both_played_in_their_order(tmp_path):
    first = evaluated(tmp_path / "a", "1" * 12)
    second = evaluated(tmp_path / "b", "1" + "0" * 12, first_seed=1)
    found = compare(list(reversed(first)), second)
    assert {k: found[k] for k in ("pairs", "both", "only_first", "only_second", "neither")} == {
        "pairs": 11,
        "both": 1,
        "only_first": 10,
        "only_second": 0,
        "neither": 0,
    }
    assert found["p"] == pytest.approx(2 / 2**10)
    # e of 6 wins is 14.4, of 7 it is 26.8: the first pair is a tie, so the eighth decides, which is seed 8
    assert (found["rejected_at"], found["rejected_at_seed"]) == (8, 8)
    assert found["max_e"] == pytest.approx(180.4, abs=0.1)


def test_alike_evaluations_are_not_told_apart(tmp_path):
    episodes = evaluated(tmp_path, "1010")
    found = compare(episodes, episodes)
    assert (found["p"], found["max_e"], found["rejected_at"], found["rejected_at_seed"]) == (1.0, 1.0, None, None)


def test_only_the_same_environment_and_seeds_are_compared(tmp_path):
    evaluated(tmp_path / "a", "1010", first_seed=5)
    env = {"size": 3, "num_envs": 99, "workers": 7}
    assert len(earlier_episodes(tmp_path / "a", env, range(8, 100))) == 4
    with pytest.raises(ValueError, match=r"another environment.*size was 3, now 4"):
        earlier_episodes(tmp_path / "a", {**env, "size": 4}, range(100))
    with pytest.raises(ValueError, match="colour was None, now red"):
        earlier_episodes(tmp_path / "a", {**env, "colour": "red"}, range(100))
    with pytest.raises(ValueError, match="shares no episode with 9 to 99: it played 5 to 8"):
        earlier_episodes(tmp_path / "a", env, range(9, 100))
    with pytest.raises(FileNotFoundError, match="there is no evaluation"):
        earlier_episodes(tmp_path, env, range(9))
    assert differing({"a": 1, "num_envs": 2}, {"a": 1, "workers": 3}) == []


@pytest.fixture(scope="module")
def cube():
    """One PickCube scene that plays on after a success."""
    env = ManiSkillEnv("PickCube-v1", images=False, ends_on_success=False, max_steps=60)
    yield env
    env.close()


def test_a_simulated_success_is_kept_and_its_command_found(cube):
    from policies.scripted import ScriptedExpert

    expert = ScriptedExpert("PickCube-v1", horizon=4)
    batch = rollout(cube, expert, seed=3)
    episode = outcomes(batch, 3, cube.spec.control_hz, "PickCube-v1")[0]
    assert episode.success
    assert episode.success_at_end
    assert episode.steps == 60
    ending = ManiSkillEnv("PickCube-v1", images=False, max_steps=60)
    usual = outcomes(rollout(ending, expert, seed=3), 3, 20.0)[0]
    ending.close()
    assert usual.steps < 60
    assert episode.time_to_success == usual.time_to_success == usual.steps / 20


def test_a_simulator_says_what_its_results_depend_on(cube):
    said = cube.fingerprint()
    assert said["task"] == "PickCube-v1"
    assert said["simulator"].startswith("mani-skill 3")
    assert said["physics"].startswith("physx_cpu")
    assert said["drawing"] == "none"
    assert said == cube.fingerprint()


def test_columns_of_the_file(tmp_path):
    write_episodes(tmp_path, [episode(1, success=True, success_at_end=True, time_to_success=0.25)])
    rows = list(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert (rows[0]["success"], rows[0]["success_at_end"], rows[0]["time_to_success"]) == ("True", "True", "0.25")
