"""The table of what reinforcement learning reached: from first and last tests, pooled over seeds."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from benchmarks import rl
from vla.program import CONFIGS


def summary(k_after: int):
    tests = [{"step": 0, "k": 1, "n": 100}, {"step": 5, "k": 99, "n": 100}, {"step": 10, "k": k_after, "n": 100}]
    return {"test": tests, "env_steps": 8000, "seconds": 12.34}


def test_a_row_tells_the_first_and_the_last_test_never_the_best():
    assert rl.row_of("arm", 3, summary(k_after=60)) == rl.Row("arm", 3, 8000, 1.0, 1, 60, 100, 12.3)


def test_rows_are_read_as_they_were_written_and_pooled(tmp_path, monkeypatch):
    monkeypatch.setattr(rl, "TABLE", tmp_path / "rl.csv")
    table = [rl.row_of("b", 0, summary(50)), rl.row_of("a", 1, summary(80)), rl.row_of("a", 0, summary(100))]
    rl._write(table)
    assert rl.rows() == [table[2], table[1], table[0]]
    first, second = rl.pooled(rl.rows())
    assert (first["arm"], first["seeds"], first["k"], first["n"]) == ("a", 2, 180, 200)
    assert first["low"] < 0.9 < first["high"]
    assert second["arm"] == "b"


def test_an_arm_begins_from_what_imitated_with_its_seed_and_tells_how_much_it_learned_from(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rl, "TABLE", tmp_path / "rl.csv")
    monkeypatch.setattr(rl, "RUNS", tmp_path)
    monkeypatch.setattr(rl, "recipe", lambda *told: asked.append(told) or summary(70))
    monkeypatch.setattr(rl, "imitated", lambda *told: {"run_dir": "-".join(map(str, told))})
    monkeypatch.setitem(rl.ARMS, "mine", rl.Arm(("algorithm=grpo",), ("Lift", "flow")))
    (tmp_path / "mine_4").mkdir()
    (tmp_path / "mine_4" / "metrics.jsonl").write_text('{"test/success": 0.1}\n{"kept": 0.5}\n{"kept": 1.0}\n')
    row = rl.measure("mine", 4, episodes=100)
    assert row in rl.rows()
    assert row.kept == 0.75
    (name, place, overrides), = asked  # fmt: skip
    assert (name, place) == ("online", tmp_path / "mine_4")
    assert overrides[:3] == ["algorithm=grpo", "init=Lift-flow-4", "test_episodes=100"]
    assert "seed=4" in overrides


@pytest.mark.parametrize("arm", rl.ARMS)
def test_every_arm_is_a_recipe_of_under_twenty_lines(arm):
    """Composed with all groups, so that a misspelt setting is found before hours of learning."""
    (experiment,) = [x.partition("=")[2] for x in rl.ARMS[arm].overrides if x.startswith("experiment=")]
    assert len((Path(CONFIGS) / "experiment" / f"{experiment}.yaml").read_text().splitlines()) < 20
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        config = compose("online", list(rl.ARMS[arm].overrides))
    assert config.env.num_envs * config.algorithm.get("group", 1) == 64  # equal budgets
    assert config.steps == 40
