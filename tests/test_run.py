"""Runs: what is written, what is refused, and that a killed run goes on as if nothing had happened."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla.checkpoint import build_policy, find_policy, initial_policy, policy_config
from vla.models.state_mlp import StateMLP
from vla.run import Run, find_device, load_policy, read_metrics, save_policy, write_atomically

TRANSFORMER = {"_target_": "vla.models.denoisers.TransformerDenoiser", "_partial_": True}
POLICY = {
    "_target_": "policies.token.TokenPolicy",
    "horizon": 2,
    "bins": 8,
    "encoder": {"_target_": "vla.models.state_mlp.StateMLP", "_partial_": True},
}


def config(directory: Path, **changes):
    return OmegaConf.create(
        {"seed": 3, "steps": 12, "device": "cpu", "resume": None, "run_dir": str(directory), **changes}
    )


def make_parts():
    policy = build_policy(POLICY, PointEnv().spec)
    return {"policy": policy, "optimizer": torch.optim.Adam(policy.parameters(), lr=0.01)}


def learn(cfg) -> Path:
    """A training loop that draws from global generators.

    Python's is set at every step: the type checker of tests draws from it, more often where a run was resumed.
    """
    run = Run(cfg, "toy")
    parts = make_parts()
    for step in run.loop(run.restore(parts)):
        random.seed(step)
        noise = torch.randn(()).item() + np.random.randn()  # noqa: NPY002
        loss = sum((p - noise).square().mean() for p in parts["policy"].parameters())
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        run.log(step, {"loss": loss.item(), "noise": noise})
        if run.due(step, 3):
            run.save(step, parts, POLICY)
        time.sleep(cfg.get("pause", 0))
    run.close()
    return run.dir


def resumed(directory: Path, **changes):
    return config(directory, resume=str(directory), **changes)


def killed_after(seconds: float, function, *arguments) -> bool:
    """Run a function in a process of its own and kill that; whether it was still running."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            tqdm.set_lock(threading.RLock())  # its own is shared between processes: a killed one would keep it
            function(*arguments)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def assert_same_run(a: Path, b: Path):
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    names = [x.name for x in sorted((a / "checkpoints").iterdir())]
    assert names == [x.name for x in sorted((b / "checkpoints").iterdir())]
    for name in names:
        for file in ("policy/model.safetensors", "policy/policy.json"):
            assert (a / "checkpoints" / name / file).read_bytes() == (b / "checkpoints" / name / file).read_bytes()
        states = [torch.load(x / "checkpoints" / name / "state.pt", weights_only=True) for x in (a, b)]
        assert str(states[0]) == str(states[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_killed_again_and_again_equals_one_that_was_not(tmp_path):
    whole = learn(config(tmp_path / "whole"))
    rng = random.Random(5)
    cut, kills = tmp_path / "cut", 0
    cfg = config(cut, pause=0.02)
    while kills < 4:
        kills += killed_after(rng.uniform(0.05, 0.25), learn, cfg)
        cfg = resumed(cut, pause=0.02) if (cut / "config.yaml").exists() else cfg
        if len(read_metrics(cut)) == 12:
            break
    learn(cfg)
    assert kills >= 1
    assert_same_run(whole, cut)


def test_a_resumed_run_goes_on_from_its_last_checkpoint_and_doubles_no_line(tmp_path):
    whole = learn(config(tmp_path / "whole"))
    cut = learn(config(tmp_path / "cut", steps=8))
    assert [row["step"] for row in read_metrics(cut)] == list(range(1, 9))
    learn(resumed(cut))
    assert [row["step"] for row in read_metrics(cut)] == list(range(1, 13))
    assert read_metrics(cut) == read_metrics(whole)


def test_lines_after_the_last_checkpoint_and_torn_ones_are_dropped(tmp_path):
    cut = learn(config(tmp_path, steps=6))
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4, 5, 6, 7]
    assert Run(resumed(cut), "toy").restore(make_parts()) == 6
    assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4, 5, 6]


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    whole = learn(config(tmp_path / "whole", steps=2))
    run = Run(config(tmp_path / "cut", steps=2), "toy")
    run.restore(make_parts())
    run.log(1, {"loss": 99.0})
    assert_same_run(whole, learn(resumed(tmp_path / "cut", steps=2)))


def test_an_unfinished_checkpoint_is_never_used(tmp_path):
    directory = learn(config(tmp_path, steps=3))
    (directory / "checkpoints" / ".unfinished" / "policy").mkdir(parents=True)
    run = Run(resumed(directory), "toy")
    assert run.restore(make_parts()) == 3
    run.save(4, make_parts(), POLICY)
    assert [x.name for x in sorted((directory / "checkpoints").iterdir())] == ["step_000003", "step_000004"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    directory = learn(config(tmp_path, keep_last=2))
    assert [x.name for x in sorted((directory / "checkpoints").iterdir())] == ["step_000009", "step_000012"]


def test_everything_is_restored(tmp_path):
    run = Run(config(tmp_path), "toy")
    parts = make_parts()
    run.restore(parts)
    sum(p.sum() for p in parts["policy"].parameters()).backward()
    parts["optimizer"].step()
    run.save(1, parts, POLICY)
    expected = (torch.rand(2), np.random.rand(2))  # noqa: NPY002
    random.seed(99)
    others = make_parts()
    assert Run(resumed(tmp_path), "toy").restore(others) == 1
    after = random.getstate()
    for a, b in zip(parts["policy"].parameters(), others["policy"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert others["optimizer"].state_dict()["state"][0]["step"] == 1
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(2) == expected[1]).all()  # noqa: NPY002
    saved = torch.load(tmp_path / "checkpoints" / "step_000001" / "state.pt", weights_only=True)
    assert after == saved["random"]["python"]


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path):
    draws = []
    for i, seed in enumerate((1, 1, 2)):
        Run(config(tmp_path / str(i), seed=seed), "toy")
        draws.append((torch.rand(()).item(), float(np.random.rand()), random.random()))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    learn(config(tmp_path, steps=1))
    with pytest.raises(ValueError, match=f"holds a run already: resume={tmp_path} goes on"):
        Run(config(tmp_path, steps=1), "toy")


def test_a_run_that_was_refused_leaves_its_directory_free(tmp_path):
    Run(config(tmp_path), "toy")  # something is refused before `restore`
    Run(config(tmp_path), "toy")


def test_a_run_is_not_resumed_with_another_configuration(tmp_path):
    learn(config(tmp_path, steps=1))
    with pytest.raises(ValueError, match="seed was 3, now 4"):
        Run(resumed(tmp_path, seed=4), "toy")
    Run(resumed(tmp_path, steps=99, workers=7), "toy")
    with pytest.raises(FileNotFoundError, match="there is no run"):
        Run(resumed(tmp_path / "elsewhere"), "toy")


def test_a_missing_value_is_refused(tmp_path):
    with pytest.raises(Exception, match="data"):
        Run(config(tmp_path, data="???"), "toy")


def test_when_something_is_due(tmp_path):
    run = Run(config(tmp_path, steps=10), "toy")
    assert [step for step in range(1, 11) if run.due(step, 4)] == [4, 8, 10]
    assert not any(run.due(step, 0) for step in range(1, 11))


def test_tensorboard_shows_what_the_log_says(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn(config(tmp_path, steps=4))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(x.step, x.value) for x in events.Scalars("loss")]
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    assert [x for _, x in shown] == pytest.approx([row["loss"] for row in read_metrics(tmp_path)], rel=1e-6)


def test_a_run_says_what_it_was(tmp_path):
    learn(config(tmp_path, steps=1))
    identity = json.loads((tmp_path / "identity.json").read_text())
    assert identity["torch"].startswith("2.")
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 3


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def torn(self, content):
        with open(self, "wb") as file:
            file.write(content[:1])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_devices():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no usable GPU; use device=cpu"):
            find_device("cuda")
    assert not torch.backends.cudnn.allow_tf32  # or decisions, scored again on a GPU, are not those that were made


def test_a_policy_comes_back_as_it_was(tmp_path):
    policy = build_policy(POLICY, PointEnv(num_envs=3).spec)
    with torch.no_grad():
        policy.bins.low.sub_(0.1)  # a buffer, as `set_statistics` changes it
    save_policy(tmp_path, policy, POLICY, {"step": 7})
    again = load_policy(tmp_path)
    assert isinstance(again, TokenPolicy)
    assert isinstance(again.encoder, StateMLP)
    assert not again.training
    assert again.spec == policy.spec
    assert policy_config(tmp_path) == POLICY
    obs = PointEnv(num_envs=3).reset(0)
    assert torch.equal(again.mode(obs).commands, policy.mode(obs).commands)


def test_a_policy_is_found_in_its_run(tmp_path):
    directory = learn(config(tmp_path / "run"))
    assert find_policy(directory) == directory / "checkpoints" / "step_000012" / "policy"
    assert find_policy(directory / "checkpoints" / "step_000009").parent.name == "step_000009"
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no checkpoint in it"):
        find_policy(tmp_path)


@pytest.mark.parametrize("target", ["os.system", "policies.token.torch.load", "vla.run.shutil.rmtree", "vla.run.Run"])
@pytest.mark.parametrize("place", ["top", "nested"])
def test_a_checkpoint_may_not_choose_what_runs(tmp_path, target, place):
    policy = build_policy(POLICY, PointEnv().spec)
    nested = {**POLICY, "encoder": [{"_target_": target}]}
    save_policy(tmp_path, policy, {**POLICY, "_target_": target} if place == "top" else nested)
    with pytest.raises(ValueError, match=f"asks for '{target}'.*refused"):
        load_policy(tmp_path)


def test_damaged_checkpoints_are_named(tmp_path):
    policy = build_policy(POLICY, PointEnv().spec)
    save_policy(tmp_path, policy, {**POLICY, "bins": 9})
    with pytest.raises(ValueError, match=r"do not fit[\s\S]*decoder"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text('{"policy": {')
    with pytest.raises(ValueError, match=r"policy\.json is damaged"):
        load_policy(tmp_path)


def test_training_starts_from_a_checkpoint_if_it_fits(tmp_path):
    spec = PointEnv().spec
    policy = build_policy(POLICY, spec)
    save_policy(tmp_path, policy, POLICY)
    again, found = initial_policy({"_target_": "ignored"}, str(tmp_path), spec)
    assert found == POLICY
    assert again.training
    assert torch.equal(again.bins.low, policy.bins.low)
    with pytest.raises(ValueError, match="disagree on the proprio"):
        initial_policy(POLICY, str(tmp_path), PointEnv(targets_seen=False).spec)
    fresh, found = initial_policy(OmegaConf.create(POLICY), None, spec)
    assert isinstance(fresh, nn.Module)
    assert found == POLICY


def test_a_flow_that_imitated_without_chance_gets_some_for_reinforcement(tmp_path):
    spec = PointEnv().spec
    config = {"_target_": "policies.flow.FlowPolicy", "horizon": 2, "steps": 4, "encoder": POLICY["encoder"]}
    policy = build_policy(config, spec).eval()
    save_policy(tmp_path, policy, config)
    obs = PointEnv(num_envs=3).reset(0)
    for chain, factors in (("sde", 4), ("noise", 16)):
        changed, found = initial_policy({}, tmp_path, spec, {"chain": chain})
        assert found == {**config, "chain": chain}
        assert torch.equal(changed.mode(obs).commands, policy.mode(obs).commands)
        assert changed.act(obs).log_prob.shape == (3, factors)
        save_policy(tmp_path / chain, changed, found)
        assert load_policy(tmp_path / chain).chain == chain
    with pytest.raises(ValueError, match=r"do not fit[\s\S]*denoiser"):
        initial_policy({}, tmp_path, spec, {"denoiser": TRANSFORMER})
    with pytest.raises(ValueError, match=r"init_with=\{'chain': 'sde'\} changes a checkpoint, and init names none"):
        initial_policy(config, None, spec, {"chain": "sde"})
