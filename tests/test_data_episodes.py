"""Episodes survive the way to disk and back, and a kill at any moment costs at most the unfinished one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tqdm import tqdm

from vla.data import frames as reading
from vla.data.chunks import chunks_at
from vla.data.episodes import EpisodeWriter
from vla.data.frames import load_column, load_frames
from vla.types import Action, Camera, Command, EnvSpec, Observation, Rollout

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]  # lerobot: 20 s to import, deprecations
CAMERAS = (Camera("front", 64, 80), Camera("wrist", 64, 64))
SPEC = EnvSpec(2, 10.0, 50, CAMERAS, (("clock", 1), ("joints", 2)), Command("ee_delta", 7, 0.05, 0.2))
LENGTHS = [7, 1, 12]


def made_up(number: int, length: int, spec: EnvSpec = SPEC) -> Rollout:
    """Episode `number`: frame t is numbered 100 number + t in every picture, in proprio and in its command."""
    t = 100 * number + torch.arange(length + 1)
    clock = t.float()[:, None]
    commands = (clock / 3)[:, None] * torch.ones(7)
    end = torch.arange(length + 1) == length - 1
    b = [length + 1]
    return Rollout(
        obs=Observation(
            images=TensorDict({c.name: numbered(t, c) for c in spec.cameras}, b),
            proprio=clock * torch.tensor([1.0, 0.1, -1.0 / 7]),
            instruction=[f"do number {number}"] * (length + 1),
            batch_size=b,
        ),
        action=Action(commands, torch.zeros(*b, 0), TensorDict({"requested": commands + 0.5}, b), batch_size=b),
        reward=-t / 7,
        success=end & (number % 2 == 0),
        terminated=end & (number % 3 == 0),
        valid=torch.arange(length + 1) < length,
        executed=commands + 0.25,
        num_steps=torch.ones(b, dtype=torch.long),
        batch_size=b,
    )


def numbered(t: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Pictures with the ten bits of a number as black and white bars, mirrored in the wrist camera."""
    bits = (t[:, None] >> torch.arange(10) & 1).to(torch.uint8) * 255
    bars = torch.zeros(len(t), camera.width, dtype=torch.uint8)
    bars[:, :60] = bits.repeat_interleave(6, dim=1)
    bars = bars.flip(1) if camera.name == "wrist" else bars
    return bars[:, None, :, None].repeat(1, camera.height, 1, 3)


def read_number(pictures: torch.Tensor, camera: str) -> list[int]:
    row = pictures[:, 32, :, 1]
    row = row.flip(1) if camera == "wrist" else row
    bits = (row[:, 3:60:6] > 127).long()
    return (bits << torch.arange(10)).sum(1).tolist()


def numbers(count: int, lengths: list[int] = LENGTHS) -> list[int]:
    return [100 * e + t for e in range(count) for t in range(lengths[e % len(lengths)])]


def record(out: Path, first: int, last: int, **options) -> None:
    with EpisodeWriter(out, SPEC, **options) as writer:
        for number in range(first, last):
            writer.write(made_up(number, LENGTHS[number % 3]), seed=number)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Five episodes as video: three, and two that were added later."""
    out = tmp_path_factory.mktemp("recorded") / "data"
    record(out, 0, 3, env={"task": "count"})
    record(out, 3, 5, env={"task": "count"})
    return out


def test_frame_i_of_a_video_decodes_to_frame_i_in_every_camera(recorded):
    frames = load_frames(recorded)
    assert frames.episode_start.tolist() == [0, 7, 8, 20, 27, 28]
    for name, pictures in frames.images.items():
        assert read_number(pictures, name) == numbers(5)
    for camera in CAMERAS:
        original = numbered(torch.tensor(numbers(5)), camera)
        assert (frames.images[camera.name].float() - original.float()).abs().mean() < 6  # lossy, but the same picture
    assert all((recorded / "videos" / f"observation.images.{c.name}").is_dir() for c in CAMERAS)


def test_numbers_and_texts_come_back_exactly(recorded):
    frames = load_frames(recorded)
    clock = torch.tensor(numbers(5)).float()
    assert torch.equal(frames.proprio, clock[:, None] * torch.tensor([1.0, 0.1, -1.0 / 7]))
    assert torch.equal(frames.action, (clock / 3)[:, None] * torch.ones(7) + 0.25)
    assert torch.equal(frames.reward, -clock / 7)
    ends = frames.episode_start[1:] - 1
    assert frames.success.nonzero().flatten().tolist() == ends[::2].tolist()
    assert frames.terminated.nonzero().flatten().tolist() == ends[::3].tolist()
    texts = [frames.instructions[i] for i in frames.task.tolist()]
    assert texts == [f"do number {n // 100}" for n in numbers(5)]
    assert frames.spec == SPEC


def test_the_label_may_be_what_the_actor_asked_for(recorded):
    requested = load_frames(recorded, label="action.requested").action
    torch.testing.assert_close(requested, load_frames(recorded).action + 0.25)
    with pytest.raises(ValueError, match=r"lacks \['action.wanted'\]"):
        load_frames(recorded, label="action.wanted")


def test_lerobots_own_loader_reads_the_same_frames_and_chunks(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = {"action": [i / 10 for i in range(4)]}
    theirs = LeRobotDataset("local/x", root=recorded, delta_timestamps=times, video_backend="pyav")
    ours = load_frames(recorded)
    last = torch.repeat_interleave(ours.episode_start[1:] - 1, ours.episode_start.diff())
    batch = chunks_at(ours, torch.arange(len(ours)), 4, last)
    assert len(theirs) == len(ours)
    for i, item in enumerate(theirs):
        assert torch.equal(item["observation.state"], batch.obs.proprio[i])
        assert torch.equal(item["action"], batch.chunk[i])
        assert torch.equal(item["action_is_pad"], batch.padded[i])
        assert item["task"] == batch.obs.instruction[i]
        for name, pictures in batch.obs.images.items():
            picture = (item[f"observation.images.{name}"] * 255).round().permute(1, 2, 0)
            torch.testing.assert_close(picture, pictures[i].float(), rtol=0, atol=1)
    done = [bool(theirs[i]["next.done"]) for i in range(len(theirs))]
    assert [i for i, x in enumerate(done) if x] == [6, 7, 19, 26, 27]


def test_a_frame_says_when_by_whom_and_in_which_episode_it_was_recorded(tmp_path):
    import pyarrow.parquet as pq

    times = torch.tensor([1e6, 1e6 + 0.1, 1e6 + 0.3], dtype=torch.float64)
    with EpisodeWriter(tmp_path / "data", SPEC, sources=("policy", "human"), images="image") as writer:
        writer.write(made_up(0, 3), seed=70, times=times, source=["policy", "human", "policy"])
        writer.write(made_up(1, 2), seed=71, source="human")
        with pytest.raises(ValueError, match=r"\['ghost'\] is none of"):
            writer.write(made_up(1, 2), seed=72, source="ghost")
        with pytest.raises(ValueError, match=r"has 2 frames, but \{'capture.time': 3\}"):
            writer.write(made_up(1, 2), seed=72, times=times)
    table = pq.read_table(next((tmp_path / "data" / "data").rglob("*.parquet")))
    assert table["capture.time"].to_pylist() == [*times.tolist(), 0.0, 0.1]
    assert table["source"].to_pylist() == [0, 1, 0, 1, 1]
    assert table["seed"].to_pylist() == [70, 70, 70, 71, 71]
    exact = load_frames(tmp_path / "data").images["wrist"]
    assert torch.equal(exact, numbered(torch.tensor([0, 1, 2, 100, 101]), CAMERAS[1]))


def test_what_is_kept_beside_an_episode_and_said_of_it_comes_back(tmp_path):
    """Numbers beside the steps, to the last bit; what was taken back is not there, and its seed comes again."""
    pushed = torch.rand(5, 1, 2, dtype=torch.float64)
    episode = made_up(0, 4)
    latent = {**episode.action.latent, "operator.input": pushed[:, 0]}
    episode = episode.replace(action=episode.action.replace(latent=TensorDict(latent, [5])))
    beside = {"operator.input": ("x", "y")}
    with EpisodeWriter(tmp_path, SPEC, images="image", beside=beside) as writer:
        writer.write(episode, seed=3, label={"success": False, "note": "near"})
        writer.write(episode, seed=4)
        assert writer.undo().seed == 4
        assert writer.next_seed == 4
        writer.write(episode, seed=4, label={"success": True})
    with pytest.raises(ValueError, match=r"keeps .* beside its episodes, and this writer"):
        EpisodeWriter(tmp_path, SPEC, images="image")
    with EpisodeWriter(tmp_path, SPEC, images="image", beside=beside) as writer:
        assert [(x.seed, x.label) for x in writer.attempts] == [
            (3, {"success": False, "note": "near"}),
            (4, {"success": True}),
        ]
        with pytest.raises(ValueError, match="put into the dataset already"):
            writer.undo()
    np.testing.assert_array_equal(load_column(tmp_path, "operator.input")[:4], pushed[:4, 0].numpy())
    assert load_column(tmp_path, "policy.action") is None


def test_what_somebody_did_is_left_out_without_chunks_over_the_gap(tmp_path):
    with EpisodeWriter(tmp_path, SPEC, images="image", sources=("human", "policy")) as writer:
        writer.write(made_up(0, 6), seed=0, source=["policy", "human", "human", "policy", "human", "policy"])
        writer.write(made_up(6, 3), seed=1, source="human")
        writer.write(made_up(9, 2), seed=2, source="policy")
    everything = load_frames(tmp_path)
    frames = load_frames(tmp_path, without=["policy"])
    kept = [1, 2, 4, 6, 7, 8]
    assert frames.episode_start.tolist() == [0, 2, 3, 6]
    assert torch.equal(frames.action, everything.action[kept])
    assert torch.equal(frames.images["front"], everything.images["front"][kept])
    assert len(load_frames(tmp_path, without=["expert"])) == 11


def test_pictures_are_decoded_once_and_again_when_the_dataset_changed(recorded, tmp_path, monkeypatch):
    first = load_frames(recorded)
    out = tmp_path / "data"
    record(out, 0, 1)
    assert read_number(load_frames(out).images["front"], "front") == numbers(1)
    record(out, 1, 2)
    assert read_number(load_frames(out).images["front"], "front") == numbers(2)
    assert len(list((out / ".cache").iterdir())) == 1  # what was decoded of the old one is gone
    monkeypatch.setattr(reading, "_decode_film", lambda *_: pytest.fail("decoded again"))
    assert read_number(load_frames(out).images["front"], "front") == numbers(2)
    second = load_frames(recorded)
    assert all(torch.equal(first.images[name], second.images[name]) for name in first.images)


def killed(work) -> int:
    """Run `work` in a child process and kill it at a random moment; its status, 0 if it was faster."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    time.sleep(random.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return status


def test_kills_at_any_moment_lose_at_most_the_unfinished_episode(tmp_path, recorded):
    """`recorded` has imported lerobot before the children are forked. Killed in play, in writing, in building."""
    random.seed(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with the children: one killed in it would hold it for ever
    out, count = tmp_path / "data", 9
    safe = tmp_path / "safe"
    safe.touch()

    def play() -> None:
        torch.set_num_threads(1)
        with EpisodeWriter(out, SPEC, images="image") as writer:
            assert writer.num_episodes >= len(safe.read_text())  # what write() had returned for is there
            while writer.num_episodes < count:
                number = writer.num_episodes
                writer.write(made_up(number, LENGTHS[number % 3]), seed=number)
                with open(safe, "a") as file:
                    file.write("x" * (writer.num_episodes - len(safe.read_text())))
                time.sleep(0.01)

    kills = sum(os.WIFSIGNALED(killed(play)) for _ in range(15))
    play()
    assert kills > 5
    frames = load_frames(out)
    assert read_number(frames.images["front"], "front") == frames.proprio[:, 0].long().tolist() == numbers(count)
    attempts = json.loads((out / "meta" / "armature.json").read_text())["attempts"]
    assert [x["seed"] for x in attempts] == list(range(count))
    assert sorted(x.name for x in out.iterdir()) == [".cache", "data", "meta"]


def test_an_episode_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path, SPEC)
    writer.write(made_up(0, 3), seed=0)
    with monkeypatch.context() as patch:
        fail_after(patch, 0, begun=True)
        with pytest.raises(InterruptedError):
            writer.write(made_up(1, 3), seed=1)
    writer.lock.close()
    again = EpisodeWriter(tmp_path, SPEC)
    assert (again.num_episodes, again.next_seed) == (1, 1)
    assert len(list((tmp_path / ".unfinished").glob("episode_*.safetensors"))) == 1


@pytest.mark.parametrize("step", range(10))
def test_an_interruption_between_any_two_steps_of_putting_it_in_place_is_mended(tmp_path, recorded, monkeypatch, step):
    """Adding to a finished dataset: renames and removals after the dataset was built fail from the n-th on."""
    out = tmp_path / "data"
    record(out, 0, 2, images="image")
    with EpisodeWriter(out, SPEC) as writer:
        writer.write(made_up(2, LENGTHS[2]), seed=2)
        with monkeypatch.context() as patch:
            fail_after(patch, step)
            try:
                writer.close()
            except InterruptedError:
                writer.lock.close()
    record(out, 3, 4)
    frames = load_frames(out)
    assert read_number(frames.images["front"], "front") == frames.proprio[:, 0].long().tolist() == numbers(4)
    assert [x["seed"] for x in json.loads((out / "meta" / "armature.json").read_text())["attempts"]] == [0, 1, 2, 3]


def fail_after(patch, steps: int, *, begun: bool = False) -> None:
    """From the dataset being built on, only so many renames, removals of files and of directories succeed."""
    left = [steps if begun else None]

    def limited(function):
        def call(*args, **kwargs):
            if left[0] is not None:
                if left[0] == 0:
                    raise InterruptedError
                left[0] -= 1
            return function(*args, **kwargs)

        return call

    def build(writer, target):
        BUILD(writer, target)
        left[0] = steps

    patch.setattr(EpisodeWriter, "_build", build)
    patch.setattr(Path, "rename", limited(Path.rename))
    patch.setattr(Path, "unlink", limited(Path.unlink))
    patch.setattr(Path, "rmdir", limited(Path.rmdir))
    patch.setattr("vla.data.episodes.shutil.rmtree", limited(shutil.rmtree))


BUILD = EpisodeWriter._build


def test_attempts_that_were_not_kept_count_also_after_a_torn_line(tmp_path):
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.skip(seed=5, success=False)
        writer.skip(seed=6, success=True)
    with open(tmp_path / ".unfinished" / "attempts.jsonl", "a") as file:
        file.write('\n{"seed": 7, "succ')
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.skip(seed=7, success=True)
    writer = EpisodeWriter(tmp_path, SPEC)
    assert [(x.seed, x.success, x.kept) for x in writer.attempts] == [
        (5, False, False),
        (6, True, False),
        (7, True, False),
    ]
    assert (writer.next_seed, writer.num_episodes) == (8, 0)


def test_only_one_writer_at_a_time(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    with pytest.raises(ValueError, match="being written by another process"):
        EpisodeWriter(tmp_path, SPEC)
    writer.lock.close()
    EpisodeWriter(tmp_path, SPEC)


def test_a_place_that_is_not_ours_is_refused_before_anything_is_played(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds \['thesis.tex'\], not an Armature dataset"):
        EpisodeWriter(tmp_path, SPEC)
    with pytest.raises(ValueError, match="is a file"):
        EpisodeWriter(tmp_path / "thesis.tex", SPEC)
    with pytest.raises(PermissionError, match="cannot write into"):
        EpisodeWriter(tmp_path / "thesis.tex" / "data", SPEC)
    assert [x.name for x in tmp_path.iterdir()] == ["thesis.tex"]


def test_episodes_of_another_environment_are_refused(tmp_path):
    EpisodeWriter(tmp_path, SPEC).lock.close()
    other = EnvSpec(2, 20.0, 50, SPEC.cameras, SPEC.proprio, SPEC.command)
    with pytest.raises(ValueError, match=r"another environment.*control rate in Hz.*10\.0.*20\.0"):
        EpisodeWriter(tmp_path, other)


def test_what_would_spoil_a_dataset_is_refused(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    broken = made_up(0, 3)
    broken.executed[1, 0, 2] = torch.nan
    with pytest.raises(ValueError, match="action of this episode is not finite"):
        writer.write(broken, seed=0)
    chunked = made_up(0, 3)
    chunked.executed = chunked.executed.repeat(1, 2, 1)
    with pytest.raises(ValueError, match="horizon 1"):
        writer.write(chunked, seed=0)
    with pytest.raises(ValueError, match=r"one element of Rollout.episodes\(\)"):
        writer.write(made_up(0, 3)[:-1], seed=0)
    narrow = made_up(0, 3)
    narrow.obs.images["front"] = narrow.obs.images["wrist"]
    with pytest.raises(ValueError, match=r"images.front has shape \(64, 64, 3\) .* spec says \(64, 80, 3\)"):
        writer.write(narrow, seed=0)
    assert writer.num_episodes == 0


def test_a_dataset_of_another_origin_needs_only_the_meaning_of_its_commands(recorded, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(recorded, foreign)
    (foreign / "meta" / "armature.json").unlink()
    with pytest.raises(ValueError, match=r"meaning of its commands is unknown: say by command="):
        load_frames(foreign)
    command = Command("joint_position", 7)
    frames = load_frames(foreign, command=command)
    assert frames.spec == EnvSpec(1, 10.0, 12, CAMERAS, (("state", 3),), command)
    assert torch.equal(frames.action, load_frames(recorded).action)
    with pytest.raises(ValueError, match=r"given command has size 2"):
        load_frames(foreign, command=Command("joint_position", 2))
    with pytest.raises(ValueError, match="has commands ee_delta"):
        load_frames(recorded, command=command)


def test_what_is_no_dataset_or_a_damaged_one_is_named(recorded, tmp_path):
    with pytest.raises(FileNotFoundError, match="record one"):
        load_frames(tmp_path)
    EpisodeWriter(tmp_path / "begun", SPEC).lock.close()
    with pytest.raises(FileNotFoundError, match="run it again to finish"):
        load_frames(tmp_path / "begun")
    damaged = tmp_path / "damaged"
    shutil.copytree(recorded, damaged, ignore=shutil.ignore_patterns(".cache"))
    film = sorted((damaged / "videos").rglob("*.mp4"))[-1]
    whole, short = film.read_bytes(), film.with_name("file-000.mp4")
    film.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"file-001\.mp4 is damaged"):
        load_frames(damaged)
    film.write_bytes(whole)
    short.write_bytes(whole)
    with pytest.raises(ValueError, match=r"file-000\.mp4 is damaged: 12 of 20 frames are not in it, 8 first"):
        load_frames(damaged)
    info = json.loads((damaged / "meta" / "info.json").read_text())
    info["codebase_version"] = "v2.1"
    (damaged / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"format v2\.1; convert"):
        load_frames(damaged)


def test_cameras_too_small_for_video_are_kept_as_pictures(tmp_path):
    spec = EnvSpec(1, 10.0, 50, (Camera("front", 16, 60),), SPEC.proprio, SPEC.command)
    with EpisodeWriter(tmp_path, spec) as writer:
        writer.write(made_up(0, 3, spec), seed=0)
    frames = load_frames(tmp_path)
    assert np.array_equal(frames.images["front"].numpy(), numbered(torch.arange(3), spec.cameras[0]).numpy())


@pytest.mark.slow
def test_stock_lerobot_train_learns_from_our_dataset(recorded, tmp_path):
    train = Path(sys.executable).with_name("lerobot-train")
    small = ["dim_model=64", "n_heads=2", "dim_feedforward=64", "chunk_size=8", "n_action_steps=8", "device=cpu"]
    policy = ["type=act", "pretrained_backbone_weights=null", "push_to_hub=false", *small]
    data = ["dataset.repo_id=local/x", f"dataset.root={recorded}", "num_workers=0", "batch_size=2"]
    run = [*data, "steps=2", f"output_dir={tmp_path / 'out'}", "save_checkpoint=false", "dataset.video_backend=pyav"]
    command = [str(train), *(f"--policy.{x}" for x in policy), *(f"--{x}" for x in run)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dataset.num_frames=28" in done.stderr
    assert "End of training" in done.stderr
