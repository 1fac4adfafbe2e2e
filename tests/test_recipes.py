"""The programs as a user starts them: what they print, write and refuse, and that they go on where they were killed."""

import contextlib
import csv
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from programs import run
from tqdm import tqdm

from simulators.point import Homing, PointEnv
from vla.data.episodes import EpisodeWriter
from vla.program import message, program, with_earlier_overrides
from vla.recipes import evaluate, inspect, online, sft
from vla.rollout import rollout
from vla.run import load_policy, read_metrics, save_policy
from vla.statistics import wilson

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
SMALL = ["policy=token_state", "env.num_envs=4", "workers=0", "device=cpu", "test_episodes=6", "videos=1"]


def refused(capsys, main, *arguments: str) -> str:
    """What a program says when it refuses to work: one message, status 2, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(main, *arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "Error executing" not in said
    return said.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve demonstrations of the point environment."""
    out = tmp_path_factory.mktemp("data") / "point"
    env = PointEnv(num_envs=12)
    with EpisodeWriter(out, env.spec, images="image") as writer:
        for i, episode in enumerate(rollout(env, Homing(horizon=1), seed=0).episodes()):
            writer.write(episode, seed=i)
    return out


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A short supervised run and its summary."""
    directory = tmp_path_factory.mktemp("sft") / "run"
    return run(sft.main, *sft_arguments(data, directory)), directory


def sft_arguments(data: Path, directory: Path) -> list[str]:
    sizes = ["steps=40", "save_every=10", "batch_size=16", "algorithm.warmup_steps=2", "algorithm.lr=3e-3"]
    return [f"data={data}", "policy=token_state", "device=cpu", *sizes, f"run_dir={directory}"]


def online_arguments(trained, directory: Path) -> list[str]:
    return [f"init={trained[1]}", *SMALL, "steps=6", "save_every=2", "test_every=3", f"run_dir={directory}"]


def killed_often(main, arguments: list[str], directory: Path, at: Sequence[int]) -> int:
    """Start a program and kill it as soon as so many steps are logged, then resume it, and so on; how often it died."""
    kills = 0
    for steps in [*at, math.inf]:
        again = [f"resume={directory}"] if (directory / "config.yaml").exists() else arguments
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                tqdm.set_lock(threading.RLock())  # its own is shared between processes: a killed one would keep it
                run(main, *again)
            finally:
                os._exit(0)
        still = os.WEXITED | os.WNOHANG | os.WNOWAIT  # look whether it has ended, and leave it to be waited for
        while len(read_metrics(directory)) < steps and not os.waitid(os.P_PID, pid, still):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    return kills


def assert_same_weights_and_metrics(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    names = sorted(x.name for x in (a / "checkpoints").iterdir())
    assert names == sorted(x.name for x in (b / "checkpoints").iterdir())
    for name in names:
        weights = [x / "checkpoints" / name / "policy" / "model.safetensors" for x in (a, b)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_sft_learns_and_says_so(trained, data):
    summary, directory = trained
    assert summary["program"] == "sft"
    assert summary == json.loads((directory / "summary.json").read_text())
    assert summary["loss_last"] < 0.7 * summary["loss_first"]
    assert [row["step"] for row in read_metrics(directory)] == list(range(1, 41))
    assert summary["epochs"] == pytest.approx(40 * 16 / summary["frames"], abs=0.01)
    policy = load_policy(summary["checkpoint"])
    assert torch.equal(policy.bins.high, load_policy(directory).bins.high)
    assert policy.bins.high.max() < 0.21  # from the data, whose commands are at most 0.2 m


def test_what_a_checkpoint_means_is_told(trained, tmp_path, capsys):
    summary = run(inspect.main, f"checkpoint={trained[1]}", f"run_dir={tmp_path / 'inspect'}")
    assert summary["command"] == "ee_delta[2] in the base frame, max 0.2 m, None rad per step, gripper 0 closed, 1 open"
    assert summary["control_hz"] == PointEnv().spec.control_hz
    assert summary["proprio"] == dict(PointEnv().spec.proprio)
    policy = load_policy(trained[1])
    assert summary["statistics"]["bins.high"] == pytest.approx(policy.bins.high.tolist(), abs=1e-5)
    assert summary["parameters"] == sum(x.numel() for x in policy.parameters())
    assert summary["written_by"] == {"program": "sft", "step": 40}
    said = refused(capsys, inspect.main, f"checkpoint={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'b'}")
    assert "no policy" in said


def test_sft_learns_from_a_mixture_averages_validates_and_tests(data, tmp_path):
    weights = f"data={{{data}:2,{data}/../point:1}}"
    told = ["env=point", "validation=0.25", "validate_every=5", "test_every=10", "test_episodes=3", "colour=0.1"]
    arguments = [x for x in sft_arguments(data, tmp_path / "run") if not x.startswith(("data=", "steps="))]
    more = ["steps=20", "algorithm.ema=0.9", "algorithm.accumulate=2"]
    summary = run(sft.main, weights, *arguments, *told, *more)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "validation_loss" in row] == [5, 10, 15, 20]
    assert [x["step"] for x in summary["test"]] == [10, 20]
    assert summary["validation_loss"] == rows[-1]["validation_loss"] < rows[4]["validation_loss"]
    assert summary["frames"] < 2 * len(sft.load(data, "action"))
    state = torch.load(Path(summary["checkpoint"]) / "state.pt", weights_only=True)
    averaged, learner = load_policy(summary["checkpoint"]).state_dict(), state["parts"]["learner"]
    assert any(not torch.equal(averaged[name], x) for name, x in learner.items())


@pytest.mark.parametrize("sharded", ["false", "true"])
def test_two_processes_learn_what_one_does(trained, data, tmp_path, sharded):
    arguments = [f"run_dir={tmp_path}" if x.startswith("run_dir=") else x for x in sft_arguments(data, tmp_path)]
    summary = run_program("vla.recipes.sft", *arguments, "processes=2", f"sharded={sharded}")
    one, two = (load_policy(x).state_dict() for x in (trained[1], summary["checkpoint"]))
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, atol=2e-4, rtol=2e-3)
    losses = ([row["sft_loss"] for row in read_metrics(x)] for x in (trained[1], tmp_path))
    assert next(losses) == pytest.approx(next(losses), rel=1e-3)


def run_program(module: str, *arguments: str) -> dict:
    """In a process of its own; the last line it prints."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_sft_killed_and_resumed_equals_one_that_was_not(trained, data, tmp_path):
    at = [1, 10, 12, 20, 33]  # at 10 and 20 a checkpoint is due
    assert killed_often(sft.main, sft_arguments(data, tmp_path / "cut"), tmp_path / "cut", at) >= 3
    assert_same_weights_and_metrics(trained[1], tmp_path / "cut")


def test_online_killed_and_resumed_equals_one_that_was_not(trained, tmp_path):
    summary = run(online.main, *online_arguments(trained, tmp_path / "whole"))
    assert killed_often(online.main, online_arguments(trained, tmp_path / "cut"), tmp_path / "cut", [1, 2, 5]) >= 2
    assert_same_weights_and_metrics(tmp_path / "whole", tmp_path / "cut")
    again = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert again["test"] == summary["test"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_online_killed_at_twenty_random_moments_ends_as_if_it_never_was(trained, tmp_path):
    """In a process of its own, which takes a while to start: some kills come before the first update."""
    arguments = [*online_arguments(trained, tmp_path / "cut"), "steps=60", "save_every=1", "test_every=20"]
    source, kills = random.Random(0), 0
    while kills < 20:
        begun = (tmp_path / "cut" / "config.yaml").exists()
        again = [f"resume={tmp_path / 'cut'}"] if begun else arguments
        process = subprocess.Popen([sys.executable, "-m", "vla.recipes.online", *again], stdout=subprocess.DEVNULL)
        try:
            process.wait(source.uniform(5, 25))
        except subprocess.TimeoutExpired:
            process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    if process.returncode != 0:
        run_program("vla.recipes.online", f"resume={tmp_path / 'cut'}")
    whole = [*online_arguments(trained, tmp_path / "whole"), "steps=60", "save_every=1", "test_every=20"]
    run_program("vla.recipes.online", *whole)
    assert_same_weights_and_metrics(tmp_path / "whole", tmp_path / "cut")


def test_online_reports_rates_over_time_with_their_intervals(trained, tmp_path):
    summary = run(online.main, *online_arguments(trained, tmp_path / "run"))
    assert [x["step"] for x in summary["train"]] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in summary["test"]] == [0, 3, 6]
    assert {x["n"] for x in summary["train"]} == {4}
    assert {x["n"] for x in summary["test"]} == {6}
    last = summary["final"]
    assert (last["low"], last["high"]) == wilson(last["k"], 6)
    assert summary["episodes"] == 24
    rows = read_metrics(tmp_path / "run")
    assert summary["env_steps"] == round(sum(row["train/steps"] * 4 for row in rows[1:]))
    assert len(list((tmp_path / "run" / "videos").glob("step_000006_seed_10000_*.mp4"))) == 1
    before = load_policy(trained[1])
    after = load_policy(summary["checkpoint"])
    assert not torch.equal(before.decoder.net[0].weight, after.decoder.net[0].weight)
    assert torch.equal(before.bins.low, after.bins.low)


def test_online_plays_every_episode_of_a_group(trained, tmp_path):
    grpo = ["algorithm=grpo", "algorithm.group=3", "algorithm.keep=null", "steps=2"]
    summary = run(online.main, *online_arguments(trained, tmp_path / "run"), *grpo)
    assert [x["n"] for x in summary["train"]] == [12, 12]
    assert summary["episodes"] == 24
    assert [row["kept"] for row in read_metrics(tmp_path / "run")[1:]] == [1.0, 1.0]


def test_online_learns_the_same_wherever_it_plays(trained, tmp_path):
    """Bit for bit: in this process, and from here for environments in two others."""
    ppo = ["algorithm=ppo", "steps=2", "batch=3", "test_every=0"]
    run(online.main, *online_arguments(trained, tmp_path / "here"), *ppo)
    served = ["placement=hybrid", "workers=2"]
    run(online.main, *online_arguments(trained, tmp_path / "served"), *ppo, *served)
    here, there = (read_metrics(tmp_path / x) for x in ("here", "served"))
    assert [row["pipeline/groups"] for row in there] == [2, 2]
    assert here == [{k: x for k, x in row.items() if "pipeline" not in k} for row in there]
    one, two = (load_policy(tmp_path / x).state_dict() for x in ("here", "served"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_behind(how, trained, tmp_path):
    mark = f"ended-by-{how.name}-in-{tmp_path.name}"
    served = ["placement=served", "workers=2", "servers=1", "steps=100000", "test_every=0", "save_every=1000"]
    command = [sys.executable, "-m", "vla.recipes.online", *online_arguments(trained, tmp_path / "run"), *served]
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where tests do not
    with subprocess.Popen(
        command, env={**os.environ, "MARK": mark}, stderr=subprocess.PIPE, text=True, preexec_fn=listens
    ) as process:
        try:
            while len(read_metrics(tmp_path / "run")) < 2:
                assert process.poll() is None
                time.sleep(0.2)
            process.send_signal(how)
            said = process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode == {signal.SIGINT: 130}.get(how, -how)
    if how == signal.SIGINT:
        assert said.strip().splitlines()[-1] == "online: interrupted"
    deadline = time.monotonic() + 150  # a Ray whose program was killed notices after a while
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not alive(mark)


def alive(mark: str) -> list[int]:
    """Processes that were started with this in their environment."""
    there = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in place.read_bytes():
                there.append(int(place.parent.name))
    return there


def test_online_may_play_ahead_with_weights_one_update_old(trained, tmp_path):
    ppo = ["algorithm=ppo", "steps=3", "test_every=0"]
    run(online.main, *online_arguments(trained, tmp_path / "ahead"), *ppo, "overlap=1")
    run(online.main, *online_arguments(trained, tmp_path / "not"), *ppo)
    ahead, not_ahead = (read_metrics(tmp_path / x) for x in ("ahead", "not"))
    assert [row["train/staleness"] for row in ahead] == [0, 1, 1]
    assert abs(ahead[1]["kl"] - not_ahead[1]["kl"]) > 1e-6
    assert {k: x for k, x in ahead[0].items() if k != "train/staleness"} == not_ahead[0]
    for name in ("ahead", "not"):
        assert len(read_metrics(tmp_path / name)) == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["placement=everywhere", "workers=2"], "placement must be one of colocated, served, hybrid"),
        (["placement=served", "workers=2", "servers=3"], "workers=2 cannot be spread evenly over servers=3"),
        (["workers=auto"], "workers must be a number or, where a policy serves"),
    ],
)
def test_online_refuses_places_there_are_not(capsys, trained, tmp_path, asked, said):
    assert said in refused(capsys, online.main, *online_arguments(trained, tmp_path / "run"), *asked)


def test_online_learns_and_counts_without_the_episodes_it_lost(trained, tmp_path):
    """Step 2 loses one, step 3 all, the first test one; tests, and a batch that was lost whole, are played again."""
    lost = [1_000_005, *range(1_000_008, 1_000_012), 10_001]
    losing = ["env._target_=fragile.Losing", f"++env.lost={lost}".replace(" ", ""), "steps=3"]
    summary = run(online.main, *online_arguments(trained, tmp_path / "lost"), *losing)
    whole = run(online.main, *online_arguments(trained, tmp_path / "whole"), "steps=3")
    assert [x["n"] for x in summary["train"]] == [4, 3, 4]
    assert {x["n"] for x in summary["test"]} == {6}
    rows = {x: read_metrics(tmp_path / x) for x in ("lost", "whole")}
    assert [row.get("train/lost") for row in rows["lost"]] == [None, None, 1.0, 4.0]
    assert rows["lost"][:2] == rows["whole"][:2]
    assert rows["lost"][2] != rows["whole"][2]
    assert summary["episodes"] == whole["episodes"] - 1


def test_online_tests_are_the_evaluation_of_the_same_checkpoint(trained, tmp_path):
    summary = run(online.main, *online_arguments(trained, tmp_path / "run"), "test_episodes=8")
    evaluated = run(
        evaluate.main, f"policy={tmp_path / 'run'}", "env.num_envs=4", "episodes=8", f"run_dir={tmp_path / 'e'}"
    )
    assert {key: evaluated[key] for key in ("k", "n", "low", "high")} == {
        key: summary["final"][key] for key in ("k", "n", "low", "high")
    }


def test_evaluation_plays_exactly_the_episodes_asked_for(tmp_path):
    arguments = ["policy=expert", "env.num_envs=4", "seed=70", "videos=0", "env.num_targets=2"]
    seven = run(evaluate.main, *arguments, "episodes=7", f"run_dir={tmp_path / 'seven'}")
    one_by_one = run(evaluate.main, *arguments, "episodes=7", "env.num_envs=1", f"run_dir={tmp_path / 'one'}")
    rows = [list(csv.DictReader((tmp_path / x / "episodes.csv").read_text().splitlines())) for x in ("seven", "one")]
    assert [int(row["seed"]) for row in rows[0]] == list(range(70, 77))
    same = [{name: row[name] for name in ("seed", "instruction", "success", "steps")} for row in rows[0]]
    assert same == [{name: row[name] for name in ("seed", "instruction", "success", "steps")} for row in rows[1]]
    assert seven["k"] == one_by_one["k"] == sum(row["success"] == "True" for row in rows[0])
    assert seven["n"] == 7
    assert sum(x["n"] for x in seven["tasks"].values()) == 7
    assert set(seven["tasks"]) == {row["instruction"] for row in rows[0]}
    assert len(seven["tasks"]) == 2
    assert seven["mean_return"] == pytest.approx(sum(float(row["total_reward"]) for row in rows[0]) / 7)


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    arguments = ["policy=expert", "env.num_envs=4", "episodes=10", "videos=2"]
    whole = run(evaluate.main, *arguments, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patched:
        patched.setattr(evaluate.evaluation, "write_episodes", interrupted_after(1, evaluate.evaluation.write_episodes))
        with pytest.raises(SystemExit) as stopped:
            run(evaluate.main, *arguments, f"run_dir={tmp_path / 'cut'}")
    assert stopped.value.code == 130
    played = []
    monkeypatch.setattr(evaluate.evaluation, "outcomes", noting(played, evaluate.evaluation.outcomes))
    again = run(evaluate.main, f"resume={tmp_path / 'cut'}")
    assert played == [10_004, 10_008]
    assert again["k"] == whole["k"]
    assert (tmp_path / "cut" / "episodes.csv").read_bytes() == (tmp_path / "whole" / "episodes.csv").read_bytes()
    assert [x.name for x in sorted((tmp_path / "cut" / "videos").iterdir())] == [
        "seed_10000_success.mp4",
        "seed_10001_success.mp4",
    ]


def interrupted_after(calls: int, function):
    def wrapped(*arguments):
        nonlocal calls
        if calls == 0:
            raise KeyboardInterrupt
        calls -= 1
        return function(*arguments)

    return wrapped


def noting(seeds: list[int], function):
    def wrapped(batch, first, *more):
        seeds.append(first)
        return function(batch, first, *more)

    return wrapped


def test_a_resumed_evaluation_is_of_the_same_policy(trained, tmp_path, capsys):
    run(evaluate.main, "policy=expert", "episodes=2", "videos=0", f"run_dir={tmp_path / 'e'}")
    said = refused(capsys, evaluate.main, f"resume={tmp_path / 'e'}", f"policy={trained[1]}")
    assert "policy was {'path': 'expert'}, now" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=moon"], r"Could not find 'env/moon'.*point"),
        (["policy=nowhere"], "no policy: nowhere does not exist"),
        ([], r"policy\.path=\.\.\. is required"),
        (["policy=expert", "episodes=0"], "episodes must be at least 1, got 0"),
        (["policy=expert", "env.num_targets=7"], "num_targets must be from 1 to 2, got 7"),
        (["policy=expert", "env.nmu_envs=7"], "PointEnv.*unexpected keyword argument 'nmu_envs'"),
        (["policy=expert", "episode=3"], "Could not override 'episode'"),
        (["policy=expert", "run_dir=/dev/null/x"], "/dev/null/x"),
        (["policy=expert", "resume=nowhere"], "resume=nowhere: there is no run"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_evaluate_refuses(arguments, expected, tmp_path, capsys):
    run_dir = [] if any("run_dir" in x or "resume" in x for x in arguments) else [f"run_dir={tmp_path / 'e'}"]
    said = " ".join(capsys_text(capsys, evaluate.main, *arguments, *run_dir).split())
    assert re.search(expected, said)


def capsys_text(capsys, main, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(main, *arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_online_refuses(trained, tmp_path, capsys):
    base = [f"init={trained[1]}", *SMALL, f"run_dir={tmp_path / 'o'}"]
    assert "overlap training episodes 1000000 to" in refused(capsys, online.main, *base, "test_seed=1000003")
    assert "overlap training episodes" in refused(capsys, online.main, *base, "test_seed=999995")
    assert "cannot be spread evenly over workers=3" in refused(capsys, online.main, *base, "workers=3")
    assert "disagree on the proprio" in refused(capsys, online.main, *base, "env.targets_seen=false")
    assert "gives chunks of 3 commands" in refused(capsys, online.main, *base, "expert.horizon=3")
    assert not (tmp_path / "o" / "config.yaml").exists()


def test_sft_refuses(trained, data, tmp_path, capsys):
    base = ["policy=token_state", f"run_dir={tmp_path / 's'}"]
    assert "data=... is required" in refused(capsys, sft.main, *base)
    assert "holds no LeRobotDataset" in refused(capsys, sft.main, *base, f"data={tmp_path}")
    assert "lacks ['wish']" in refused(capsys, sft.main, *base, f"data={data}", "label=wish")
    env = PointEnv(num_envs=2)
    with EpisodeWriter(tmp_path / "tests", env.spec, images="image") as writer:
        for seed, episode in zip((9_999, 10_000), rollout(env, Homing(horizon=1), seed=9_999).episodes(), strict=True):
            writer.write(episode, seed=seed)
    said = refused(capsys, sft.main, *base, f"data={tmp_path / 'tests'}")
    assert re.search(r"holds 1 episodes to test on \(seeds 10000 to 10000\)", said)
    assert "test_every=5 needs a simulator" in refused(capsys, sft.main, *base, f"data={data}", "test_every=5")
    assert "got 1.5" in refused(capsys, sft.main, *base, f"data={data}", "validation=1.5")
    assert "leaves none to validate" in refused(capsys, sft.main, *base, f"data={data}", "validation=0.01")
    spec = PointEnv(targets_seen=False).spec
    policy = sft.initial_policy(OmegaConf.create(json.loads(policy_json(trained))["policy"]), None, spec)[0]
    save_policy(tmp_path / "other", policy, json.loads(policy_json(trained))["policy"])
    said = refused(capsys, sft.main, *base, f"data={data}", f"init={tmp_path / 'other'}")
    assert "policy and environment disagree on the proprio" in said


def policy_json(trained) -> str:
    return (Path(trained[0]["checkpoint"]) / "policy" / "policy.json").read_text()


def test_an_unexpected_error_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(cfg):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(program("evaluate", broken), f"run_dir={tmp_path}", "policy.path=expert")


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("ARMATURE_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no policy"):
        run(evaluate.main, "policy=nowhere", f"run_dir={tmp_path}")


def test_resuming_repeats_the_overrides_of_the_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- env=point\n- ++env.num_envs=4\n- steps=5\n- run_dir=old\n")
    assert with_earlier_overrides([f"resume={tmp_path}", "steps=9"]) == [
        "env=point",
        "++env.num_envs=4",
        f"resume={tmp_path}",
        "steps=9",
        f"run_dir={tmp_path}",
    ]
    assert with_earlier_overrides(["steps=9"]) == ["steps=9"]
    assert with_earlier_overrides(["resume=null"]) == ["resume=null"]


def test_messages_are_short():
    assert message(ValueError("no such thing")) == "no such thing"


@pytest.mark.slow
def test_a_program_as_a_command(tmp_path):
    command = [sys.executable, "-m", "vla.recipes.evaluate", "policy=expert", "episodes=5", f"run_dir={tmp_path / 'e'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert len(done.stdout.splitlines()) == 1
    summary = json.loads(done.stdout)
    assert (summary["program"], summary["n"]) == ("evaluate", 5)
    assert "evaluate: 100%" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("evaluate: run_dir=")
    assert again.stderr.count("\n") == 1
