"""Online learning in two processes: it is what one learns, and ends for all when it ends for one of them."""

from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from programs import run
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from vla.algorithms import minibatches
from vla.recipes import online
from vla.run import load_policy, read_metrics

pytestmark = pytest.mark.timeout(400)
SMALL = ["env.num_envs=6", "env.max_steps=7", "workers=0", "device=cpu", "test_every=0", "algorithm.minibatch=9"]
COMMANDS = ["algorithm.critic.per_command=true", "algorithm.granularity=command", "algorithm.critic_only=1"]
LEARNERS = {
    "ppo": ["algorithm=ppo", "policy=gaussian", *COMMANDS, "algorithm.max_kl=1e-4", "algorithm.epochs=3"],
    "grpo": ["algorithm=grpo", "policy=token_state", "algorithm.group=2", "algorithm.keep=null"],
    "distill": ["algorithm=distill", "policy=token_state", "algorithm.divergence=reverse_exact", "algorithm.replay=2"],
}


def arguments(name: str, directory: Path, *more: str) -> list[str]:
    """Three updates; the 7th command is alone in a chunk of 2, so parts of a minibatch count differently."""
    return [*LEARNERS[name], *SMALL, "steps=3", "save_every=2", f"run_dir={directory}", *more]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run of PPO in two processes."""
    directory = tmp_path_factory.mktemp("together") / "ppo"
    run(online.main, *arguments("ppo", directory, "processes=2"))
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_policy(directory).state_dict()


def assert_learned_alike(two: Path, one: Path) -> None:
    for ours, theirs in zip(read_metrics(two), read_metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-5)
    for name, x in weights(one).items():
        torch.testing.assert_close(weights(two)[name], x, atol=1e-4, rtol=1e-3)


def test_ppo_in_two_processes_learns_what_it_does_in_one(together, tmp_path):
    run(online.main, *arguments("ppo", tmp_path))
    rows = read_metrics(tmp_path)
    assert [row["epochs"] for row in rows] == [3, 2, 3]
    assert all(row["value_loss"] > 0 for row in rows)
    assert_learned_alike(together, tmp_path)


@pytest.mark.parametrize("name", ["grpo", "distill"])
def test_others_do_too(name, tmp_path):
    run(online.main, *arguments(name, tmp_path / "one", "steps=2"))
    run(online.main, *arguments(name, tmp_path / "two", "steps=2", "processes=2"))
    assert_learned_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(("size", "sizes"), [(7, [2, 2, 2, 2, 1, 1]), (2, [2] * 15)])
def test_processes_share_a_minibatch_or_each_has_all_of_one_too_small_to_share(size, sizes, monkeypatch):
    """Ten decisions in portions of 5 for three processes, or of 2."""
    found = []
    for rank in range(3):
        torch.manual_seed(4)
        monkeypatch.setattr(minibatches, "rank_and_count", lambda rank=rank: (rank, 3))
        found += [rows for (rows,) in minibatches.shuffled(size, torch.device("cpu"), torch.arange(10))]
    seen = torch.cat(found).tolist()
    assert all(seen.count(row) == sum(sizes) / 10 for row in range(10))
    assert [len(x) for x in found] == sizes


def test_two_processes_resumed_equal_two_that_were_not(together, tmp_path):
    """Bit for bit: both have the optimizer's averages and the critic of the first."""
    run(online.main, *arguments("ppo", tmp_path, "steps=2", "processes=2"))
    run(online.main, f"resume={tmp_path}", "steps=3")
    assert read_metrics(tmp_path) == read_metrics(together)
    assert all(torch.equal(x, weights(together)[name]) for name, x in weights(tmp_path).items())


@pytest.mark.parametrize(
    ("rank", "fault", "error", "said"),
    [
        (1, "raises", ProcessRaisedException, "ArithmeticError: the sums do not add up"),
        (1, "killed", ProcessExitedException, "process 0 terminated with signal SIGKILL"),
        (0, "raises", ArithmeticError, "the sums do not add up"),
    ],
)
def test_an_end_of_one_process_is_that_of_all_and_the_last_line_says_why(rank, fault, error, said, tmp_path):
    faulty = ["algorithm._target_=tiny_together.Faulty", f"algorithm.rank={rank}", f"algorithm.fault={fault}"]
    with pytest.raises(error) as stopped:
        run(online.main, *arguments("grpo", tmp_path, *faulty, "processes=2"))
    assert str(stopped.value).strip().splitlines()[-1] == said
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert not active_children()


def test_what_cannot_be_is_refused(tmp_path, capsys):
    for wrong, said in (("processes=0", "processes must be at least 1, got 0"), ("sharded=true", "for supervised")):
        with pytest.raises(SystemExit):
            run(online.main, *arguments("grpo", tmp_path, wrong))
        assert said in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
