"""Evaluation as a user starts it: sanity rows, comparison with an earlier one, films, what its figures depend on."""

import csv
import io
import json
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from simulators.point import PointEnv
from vla import evaluation
from vla.checkpoint import build_policy, save_policy
from vla.program import CONFIGS
from vla.recipes.evaluate import evaluate, main

ROWS = {"zero", "random", "blind", "wrong_instruction", "expert"}


def run(directory: Path, *overrides: str) -> dict:
    """The figures of an evaluation in the toy environment, four copies at a time unless said otherwise."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        overrides = ("videos=0", "++env.num_envs=4", *overrides, f"run_dir={directory}")
        return evaluate(compose("evaluate", overrides=[x.replace("policy=", "policy.path=") for x in overrides]))


def episodes(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "episodes.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that has learned nothing, of two colours."""
    config = {
        "_target_": "policies.token.TokenPolicy",
        "horizon": 2,
        "bins": 8,
        "encoder": {"_target_": "vla.models.state_mlp.StateMLP", "_partial_": True},
    }
    directory = tmp_path_factory.mktemp("policy")
    save_policy(directory, build_policy(OmegaConf.create(config), PointEnv(num_targets=2).spec), config)
    return directory


def sane(policy: Path) -> list[str]:
    return [
        f"policy={policy}",
        "++env.num_targets=2",
        "++env.num_envs=2",
        "seed=10003",
        "episodes=4",
        "sanity=true",
        "sanity_episodes=3",
    ]


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    return run(directory, *sane(policy)), directory


def test_every_sanity_row_plays_the_first_of_the_same_episodes(whole):
    figures, directory = whole
    checks = figures["sanity"]
    assert set(checks) == ROWS | {"policy", "told"}
    played = {name: episodes(directory / "sanity" / name) for name in ROWS}
    for name, rows in played.items():
        assert [int(x["seed"]) for x in rows] == [10_003, 10_004, 10_005]
        assert checks[name]["n"] == checks[name]["at_end"]["n"] == 3
        assert checks[name]["k"] == sum(x["success"] == "True" for x in rows)
    assert checks["expert"]["k"] == 3
    assert checks["zero"]["k"] < 3
    assert checks["policy"]["k"] == sum(x["success"] == "True" for x in episodes(directory)[:3])
    red, blue = "reach the red target", "reach the blue target"
    assert checks["told"] == {red: blue, blue: red}
    assert played["blind"] == episodes(directory)[:3]  # this policy does not look at pictures


def test_sanity_rows_go_on_after_an_interruption_and_do_not_depend_on_the_number_of_copies(
    whole, policy, tmp_path, monkeypatch
):
    left = [4]  # two batches of the policy's, two of the first row's

    def write(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return evaluation_write(*arguments)

    evaluation_write = evaluation.write_episodes
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "write_episodes", write)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *sane(policy))
    again = run(tmp_path / "cut", *sane(policy), f"resume={tmp_path / 'cut'}")
    one = run(tmp_path / "one", *sane(policy), "++env.num_envs=1")
    for name in ROWS:
        expected = (whole[1] / "sanity" / name / "episodes.csv").read_bytes()
        assert (tmp_path / "cut" / "sanity" / name / "episodes.csv").read_bytes() == expected
        alone = episodes(tmp_path / "one" / "sanity" / name)
        assert [x["steps"] for x in alone] == [x["steps"] for x in episodes(whole[1] / "sanity" / name)]
    assert again["sanity"] == whole[0]["sanity"]
    assert one["sanity"]["random"] == whole[0]["sanity"]["random"]


def test_a_finished_evaluation_is_checked_later(policy, tmp_path):
    base = [f"policy={policy}", "++env.num_targets=2", "episodes=3"]
    run(tmp_path, *base)
    figures = run(tmp_path, *base, f"resume={tmp_path}", "sanity=true")
    assert figures["sanity"]["zero"]["n"] == 3


def test_an_expert_is_neither_blinded_nor_told_anything(tmp_path):
    checks = run(tmp_path, "policy=expert", "episodes=2", "sanity=true")["sanity"]
    assert set(checks) == {"policy", "zero", "random"}


def test_without_an_expert_there_is_no_row_of_one(tmp_path, caplog):
    figures = run(tmp_path, "policy=zero", "episodes=2", "sanity=true", "~expert")
    assert set(figures["sanity"]) == {"policy", "random"}
    assert "no row of an expert: this environment has no scripted expert" in caplog.text


@pytest.mark.parametrize("name", ["zero", "random", "expert"])
def test_what_needs_no_checkpoint_is_a_policy_too(name, whole, tmp_path):
    figures = run(tmp_path, f"policy={name}", "++env.num_targets=2", "seed=10003", "episodes=3")
    assert {key: figures[key] for key in ("k", "n", "low", "high", "at_end")} == whole[0]["sanity"][name]
    assert figures["policy"] == name


@pytest.mark.parametrize(
    "execution", [["synchronous", "execution.execute=1"], ["ensembled"], ["asynchronous", "execution.execute=1"]]
)
def test_chunks_can_be_executed_in_other_ways(execution, whole, policy, tmp_path):
    figures = run(tmp_path, *sane(policy), f"execution={execution[0]}", *execution[1:])
    plain, ours = episodes(whole[1]), episodes(tmp_path)
    assert [x["steps"] for x in ours] == [x["decisions"] for x in ours]
    assert [x["decisions"] for x in ours] != [x["decisions"] for x in plain]
    assert set(figures["sanity"]) == set(whole[0]["sanity"])
    for name in ("zero", "random", "expert"):  # played as they are
        assert figures["sanity"][name] == whole[0]["sanity"][name]


def test_what_cannot_be_executed_is_refused_before_anything_is_played(policy, tmp_path):
    settings = ["execution=asynchronous", "execution.guided=true"]
    with pytest.raises(ValueError, match="TokenPolicy cannot: use guided=false"):
        run(tmp_path, *sane(policy), *settings)
    assert not (tmp_path / "config.yaml").exists()


def test_success_at_the_end_is_another_figure_where_an_episode_goes_on(tmp_path):
    many = ["policy=random", "episodes=16", "++env.num_envs=16"]
    ending = run(tmp_path / "ending", *many)
    going_on = run(tmp_path / "going_on", *many, "++env.ends_on_success=false")
    assert going_on["k"] == ending["k"] == ending["at_end"]["k"] > going_on["at_end"]["k"]
    for key in ("mean_time_to_success", "median_time_to_success"):
        assert going_on[key] == pytest.approx(ending[key])
    assert ending["time_is_exact"] is going_on["time_is_exact"] is True
    assert {x["steps"] for x in episodes(tmp_path / "going_on")} == {"16"}


def test_an_evaluation_is_compared_with_an_earlier_one(tmp_path):
    zero = run(tmp_path / "zero", "policy=zero", "episodes=12")
    figures = run(
        tmp_path / "expert", "policy=expert", "episodes=8", "++env.num_envs=3", f"against={tmp_path / 'zero'}"
    )
    found = figures["against"]
    solved = sum(x["success"] == "True" for x in episodes(tmp_path / "zero")[:8])
    assert zero["n"] == 12
    assert found["run_dir"] == str(tmp_path / "zero")
    assert (found["pairs"], found["both"], found["only_first"], found["only_second"]) == (8, solved, 8 - solved, 0)
    assert found["p"] == pytest.approx(2 / 2 ** (8 - solved))
    assert found["max_e"] > 20 or found["rejected_at"] is None


def test_a_comparison_that_means_nothing_is_refused_before_anything_is_played(tmp_path):
    run(tmp_path / "zero", "policy=zero", "episodes=3")
    base = ["policy=expert", "episodes=3", f"against={tmp_path / 'zero'}"]
    with pytest.raises(ValueError, match="max_steps was None, now 9"):
        run(tmp_path / "e", *base, "++env.max_steps=9")
    with pytest.raises(ValueError, match="shares no episode with 10003 to 10005: it played 10000 to 10002"):
        run(tmp_path / "e", *base, "seed=10003")
    with pytest.raises(FileNotFoundError, match="there is no evaluation"):
        run(tmp_path / "e", *base, f"against={tmp_path}")
    assert not (tmp_path / "e" / "config.yaml").exists()


def test_every_failure_can_be_filmed(tmp_path):
    figures = run(tmp_path, "policy=zero", "episodes=10", "videos=all_failures")
    failed = [x["seed"] for x in episodes(tmp_path) if x["success"] == "False"]
    assert 5 < len(failed) == 10 - figures["k"]
    assert sorted(x.name for x in (tmp_path / "videos").iterdir()) == [f"seed_{x}_failure.mp4" for x in failed]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("videos=some", "videos must be a number of films or all_failures, got some"),
        ("videos=-1", "videos must be a number of films or all_failures, got -1"),
        ("sanity_episodes=9", "sanity_episodes must be from 1 to episodes=5, got 9"),
        ("sanity_episodes=0", "sanity_episodes must be from 1 to episodes=5, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(override, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        run(tmp_path, "policy=zero", "episodes=5", override)


@pytest.mark.parametrize(("seed", "held_out"), [(10_000, True), (19_998, True), (19_999, False), (9_999, False)])
def test_it_is_said_whether_the_episodes_were_kept_for_tests(seed, held_out, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        figures = run(tmp_path, "policy=zero", "episodes=2", f"seed={seed}")
    assert figures["held_out"] is held_out
    assert ("are not all held out" in caplog.text) is not held_out


def test_figures_say_what_they_depend_on(tmp_path):
    first, again, other = (
        run(tmp_path / str(i), "policy=zero", "episodes=1", f"++env.max_steps={steps}")["fingerprint"]
        for i, steps in enumerate([5, 5, 6])
    )
    assert first == again
    assert first["hash"] != other["hash"]
    assert {"commit", "python", "torch", "platform"} <= first.keys()
    assert first["environment"] == {"_target_": "simulators.point.PointEnv", "num_envs": 4, "max_steps": 5}
    assert first["simulator"] == {}


def test_the_last_line_is_the_summary(policy, tmp_path, monkeypatch):
    arguments = [x.replace("++", "") for x in sane(policy)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "videos=0", f"run_dir={tmp_path / 'e'}"])
    with redirect_stdout(io.StringIO()) as printed:
        main()
    summary = json.loads(printed.getvalue().splitlines()[-1])
    assert summary == json.loads((tmp_path / "e" / "summary.json").read_text())
    assert {"k", "n", "low", "high", "at_end", "tasks", "sanity", "held_out", "fingerprint"} <= summary.keys()
