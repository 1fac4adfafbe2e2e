"""Demonstrations: what is kept and counted, going on after an interruption, and replay in the environment."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from simulators.point import Homing, PointEnv
from vla.data.frames import Frames, load_frames
from vla.program import CONFIGS
from vla.recipes import demonstrate as recipe
from vla.recipes.demonstrate import demonstrate
from vla.rollout import rollout

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]  # lerobot: 20 s to import, deprecations
SMALL = ("env=point", "env.num_envs=4", "++env.num_targets=2", "++env.max_steps=6")  # too few steps for some


def configured(out: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("demonstrate", overrides=[*SMALL, f"out={out}", *overrides])


def outcomes(count: int) -> list[bool]:
    """Whether the expert succeeds in the episodes of seeds 0 .. count - 1, played one by one."""
    env = PointEnv(num_envs=1, num_targets=2, max_steps=6)
    return [bool(rollout(env, Homing(1), seed=seed).success.any()) for seed in range(count)]


def seeds(out: Path) -> list[int]:
    column = pq.read_table(next((out / "data").rglob("*.parquet")), columns=["seed"])["seed"].to_pylist()
    return sorted(set(column))


def test_only_successes_are_kept_but_all_that_was_played_counts(tmp_path):
    figures = demonstrate(configured(tmp_path, "episodes=6"))
    solved = outcomes(40)
    wanted = [seed for seed, success in enumerate(solved) if success][:6]
    played = -(-(wanted[-1] + 1) // 4) * 4  # whole batches of four
    assert wanted != list(range(6))
    assert seeds(tmp_path) == wanted
    assert (figures["success"]["k"], figures["success"]["n"]) == (sum(solved[:played]), played)
    frames = load_frames(tmp_path)
    assert frames.succeeded().all()
    assert (figures["episodes"], figures["frames"]) == (frames.num_episodes, len(frames)) == (6, len(frames))


def test_an_episode_lost_with_its_simulator_is_no_attempt_but_played_again(tmp_path):
    losing = ["env._target_=fragile.Losing", "++env.lost=[1,1,9]", "noise=0.2"]
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    expected = demonstrate(configured(whole, "episodes=12", "keep=all", "noise=0.2"))
    figures = demonstrate(configured(lost, "episodes=12", "keep=all", *losing))
    assert figures == {**expected, "out": str(lost), "lost_episodes": 3}
    assert same(load_frames(whole), load_frames(lost))
    described = [json.loads((out / "meta" / "armature.json").read_text()) for out in (whole, lost)]
    assert described[0]["attempts"] == described[1]["attempts"]
    assert [x["seed"] for x in described[1]["attempts"]] == list(range(12))


def test_failures_are_kept_when_all_are_wanted(tmp_path):
    figures = demonstrate(configured(tmp_path, "episodes=6", "keep=all"))
    assert seeds(tmp_path) == list(range(6))
    assert load_frames(tmp_path).succeeded().tolist() == outcomes(6)
    assert (figures["success"]["k"], figures["success"]["n"]) == (sum(outcomes(8)), 8)


def test_recorded_commands_replayed_from_their_seeds_lead_to_the_recorded_states(tmp_path):
    demonstrate(configured(tmp_path, "episodes=6", "noise=0.3"))
    frames = load_frames(tmp_path)
    env = PointEnv(num_envs=1, num_targets=2, max_steps=6)
    for episode, seed in enumerate(seeds(tmp_path)):
        obs = env.reset(seed)
        for i in range(*frames.episode_start[episode : episode + 2].tolist()):
            torch.testing.assert_close(frames.proprio[i], obs.proprio[0])
            assert torch.equal(frames.images["top"][i], obs.images["top"][0])
            assert frames.instructions[frames.task[i]] == obs.instruction[0]
            step = env.step(frames.action[i][None])
            obs = step.obs
            torch.testing.assert_close(frames.reward[i], step.reward[0])
        assert step.success.item() is frames.success[i].item() is True


def test_the_label_of_disturbed_demonstrations_is_the_experts_own_command(tmp_path):
    demonstrate(configured(tmp_path, "episodes=6", "noise=1.0", "disturbance.probability=0.5"))
    executed, requested = load_frames(tmp_path), load_frames(tmp_path, label="action.requested")
    position, goals = executed.proprio[:, :2], executed.proprio[:, 2:].unflatten(-1, (2, 2))
    colours = torch.tensor(["blue" in executed.instructions[i] for i in executed.task.tolist()]).long()
    clean = (goals[torch.arange(len(goals)), colours] - position).clamp(-0.2, 0.2)
    torch.testing.assert_close(requested.action, clean)
    assert (executed.action - clean).abs().max() > 0.1


def test_an_interrupted_recording_goes_on_and_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = demonstrate(configured(whole, "episodes=12", "noise=0.2"))
    for number in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(recipe, "rollout", interrupted_after(number))
            with pytest.raises(KeyboardInterrupt):
                demonstrate(configured(parts, "episodes=12", "noise=0.2"))
        assert not (parts / "meta").exists()
    figures = demonstrate(configured(parts, "episodes=12", "noise=0.2"))
    assert {**figures, "out": ""} == {**expected, "out": ""}
    assert same(load_frames(whole), load_frames(parts))
    with monkeypatch.context() as patch:  # nothing is left to play
        patch.setattr(recipe, "rollout", interrupted_after(0))
        assert demonstrate(configured(parts, "episodes=12")) == figures


def interrupted_after(count: int):
    left = [count]

    def play(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rollout(*args, **kwargs)

    return play


def same(a: Frames, b: Frames) -> bool:
    names = ("proprio", "action", "reward", "success", "terminated", "task", "episode_start")
    pairs = [(getattr(a, x), getattr(b, x)) for x in names] + [(a.images["top"], b.images["top"])]
    return all(torch.equal(x, y) for x, y in pairs)


def test_more_episodes_are_added_with_new_seeds(tmp_path):
    demonstrate(configured(tmp_path, "episodes=2", "keep=all"))
    demonstrate(configured(tmp_path, "episodes=5", "keep=all"))
    attempts = json.loads((tmp_path / "meta" / "armature.json").read_text())["attempts"]
    assert [x["seed"] for x in attempts] == list(range(8))
    assert [x["seed"] for x in attempts if x["kept"]] == [0, 1, 4, 5, 6]
    assert load_frames(tmp_path).num_episodes == 5


def test_an_expert_that_never_succeeds_is_given_up(tmp_path):
    with pytest.raises(ValueError, match="none of 8 episodes succeeded: Homing cannot do"):
        demonstrate(configured(tmp_path, "++env.max_steps=1", "give_up=8", "seed=1000"))


@pytest.mark.parametrize(("seed", "episodes"), [(10_000, 1), (19_999, 1), (9_999, 1), (9_990, 9)])
def test_episodes_to_test_on_are_never_recorded(seed, episodes, tmp_path):
    with pytest.raises(ValueError, match="reach into 10000 to 19999, which are kept for tests"):
        demonstrate(configured(tmp_path, f"seed={seed}", f"episodes={episodes}"))


def test_a_recording_that_runs_into_episodes_to_test_on_stops_and_goes_on_behind_them(tmp_path):
    with pytest.raises(ValueError, match="demonstrate from another seed, for example 20000"):
        demonstrate(configured(tmp_path, "seed=9992", "episodes=8"))  # eight would do if none failed
    demonstrate(configured(tmp_path, "seed=20000", "episodes=8"))
    recorded = seeds(tmp_path)
    assert len(recorded) == 8
    assert 0 < sum(9992 <= seed < 10_000 for seed in recorded) < 8
    assert not any(10_000 <= seed < 20_000 for seed in recorded)


def test_what_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=success or keep=all"):
        demonstrate(configured(tmp_path, "keep=some"))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not an Armature dataset"):
        demonstrate(configured(tmp_path))


def test_the_program_ends_in_one_line_of_json(tmp_path, monkeypatch, capsys):
    places = [f"out={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["demonstrate", *(x.lstrip("+") for x in SMALL), "episodes=3", *places])
    recipe.main()
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["program"] == "demonstrate"
    assert set(summary["success"]) == {"k", "n", "low", "high"}
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["episodes"] == load_frames(summary["out"]).num_episodes == 3
