"""The table of what reinforcement learning reached: from first and last tests, pooled over seeds."""

from benchmarks import rl


def summary(k_after: int):
    tests = [{"step": 0, "k": 1, "n": 100}, {"step": 5, "k": 99, "n": 100}, {"step": 10, "k": k_after, "n": 100}]
    return {"test": tests, "env_steps": 8000, "seconds": 12.34}


def test_a_row_tells_the_first_and_the_last_test_never_the_best():
    assert rl.row_of("arm", 3, summary(k_after=60)) == rl.Row("arm", 3, 8000, 1, 60, 100, 12.3)


def test_rows_are_read_as_they_were_written_and_pooled(tmp_path, monkeypatch):
    monkeypatch.setattr(rl, "TABLE", tmp_path / "rl.csv")
    table = [rl.row_of("b", 0, summary(50)), rl.row_of("a", 1, summary(80)), rl.row_of("a", 0, summary(100))]
    rl._write(table)
    assert rl.rows() == [table[2], table[1], table[0]]
    first, second = rl.pooled(rl.rows())
    assert (first["arm"], first["seeds"], first["k"], first["n"]) == ("a", 2, 180, 200)
    assert first["low"] < 0.9 < first["high"]
    assert second["arm"] == "b"


def test_the_seed_is_put_into_what_an_arm_begins_from(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rl, "TABLE", tmp_path / "rl.csv")
    monkeypatch.setattr(rl, "recipe", lambda *told: asked.append(told) or summary(70))
    monkeypatch.setitem(rl.ARMS, "mine", ["algorithm=grpo", "init=runs/sft_{seed}"])
    assert rl.measure("mine", 4, episodes=100) in rl.rows()
    (name, place, overrides), = asked  # fmt: skip
    assert (name, place) == ("online", rl.RUNS / "mine_4")
    assert overrides[:3] == ["algorithm=grpo", "init=runs/sft_4", "test_episodes=100"]
    assert "seed=4" in overrides
