"""Importers: what other programs recorded, played again in the simulator or added up, and files that are wrong."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from policies.scripted import ScriptedExpert
from simulators.maniskill import ManiSkillEnv, maniskill
from vla.data.frames import load_frames
from vla.data.importers import formats
from vla.data.importers.maniskill import at
from vla.data.importers.recording import as_episode, drift
from vla.data.importers.source import Recording
from vla.data.replay import Replay
from vla.program import CONFIGS
from vla.recipes.import_demonstrations import import_demonstrations
from vla.rollout import rollout

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]  # lerobot: 20 s to import, deprecations
MODES = ("pd_joint_pos", "pd_joint_delta_pos", "pd_ee_delta_pose")
LIMITS = {"max_translation": 0.25, "max_rotation": 0.5}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """PickCube as ManiSkill's own recorder writes it, in three control modes."""
    env = ManiSkillEnv("PickCube-v1", images=False, max_steps=150)
    played = {seed: expert_targets(env, seed) for seed in SEEDS}
    env.close()
    folder = tmp_path_factory.mktemp("maniskill")
    return {mode: record(folder, mode, played) for mode in MODES}


def expert_targets(env: ManiSkillEnv, seed: int) -> list[tuple[np.ndarray, ...]]:
    """Per step of a successful episode: joints and pose as measured, as commanded, and the native gripper."""
    expert, obs, steps = ScriptedExpert("PickCube-v1", max_translation=0.015, max_rotation=0.05), env.reset(seed), []
    while True:
        before = (env.sim.agent.robot.get_qpos()[0, :7].clone(), env._measure()[0])
        command = expert.act(obs).commands[:, 0]
        step = env.step(command)
        after = (env.joints[0].clone(), env.commanded[0].clone(), command[0, 6:] * 2 - 1)
        steps.append(tuple(x.numpy() for x in (*before, *after)))
        if step.terminated.any():
            return steps
        assert not step.truncated.any()
        obs = step.obs


def native_action(mode: str, qpos, measured, joints, commanded, gripper) -> np.ndarray:
    """The action of ManiSkill's controller `mode` that aims where our command did."""
    if mode == "pd_joint_pos":
        return np.concatenate([joints, gripper])
    if mode == "pd_joint_delta_pos":
        return np.concatenate([(joints - qpos) / 0.1, gripper])
    turn = Rotation.from_quat(commanded[3:]) * Rotation.from_quat(measured[3:]).inv()
    return np.concatenate([(commanded[:3] - measured[:3]) / 0.1, turn.as_euler("XYZ") / -0.1, gripper])


def record(folder: Path, mode: str, played: dict[int, list]) -> Path:
    import gymnasium as gym
    from mani_skill.utils.wrappers.record import RecordEpisode

    sim = gym.make("PickCube-v1", obs_mode="none", control_mode=mode, sim_backend="physx_cpu", render_backend="cpu")
    sim = RecordEpisode(sim, str(folder), trajectory_name=mode, save_video=False, save_on_reset=False)
    for seed, steps in played.items():
        sim.reset(seed=seed)
        for step in steps:
            sim.step(native_action(mode, *step).astype(np.float32))
        sim.flush_trajectory()
    sim.close()
    return folder / f"{mode}.h5"


@pytest.fixture(scope="module")
def arms():
    """One scene without pictures for each kind of command."""
    limits = {"ee_delta": LIMITS, "joint_delta": {"max_rotation": 0.5}, "joint_position": {}}
    made = {
        kind: maniskill("PickCube-v1", 1, backend="cpu", command=kind, images=False, max_steps=300, **options)
        for kind, options in limits.items()
    }
    yield made
    for env in made.values():
        env.close()


def state_error(env, source, t: int, name: str = "panda") -> float:
    """How far the simulator is off the file's state `t`, in whatever units its numbers have."""
    now = env.scenes[0].sim.get_state_dict()["articulations"][name][0].numpy()
    return float(np.abs(now - at(source.states, t)["articulations"][name]).max())


CASES = [
    ("pd_joint_pos", "joint_position"),
    ("pd_joint_pos", "joint_delta"),
    ("pd_joint_pos", "ee_delta"),
    ("pd_joint_delta_pos", "joint_delta"),
    ("pd_ee_delta_pose", "ee_delta"),
    ("pd_ee_delta_pose", "joint_position"),
]


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_maniskill_files_of_any_controller_succeed_again_with_any_command(files, arms, mode, kind):
    sources = list(formats.read(files[mode]))
    assert [x.seed for x in sources] == list(SEEDS)
    assert all(x.success and x.controller == mode and x.author == "maniskill" for x in sources)
    replay = Replay(arms[kind], sources)
    for i in range(len(sources)):
        episode = rollout(replay, replay, seed=i)
        assert episode.success.any()
        assert replay.shortened.eq(0).all()


@pytest.mark.parametrize(("mode", "kind"), [x for x in CASES if x != ("pd_joint_pos", "ee_delta")])
def test_until_the_first_contact_the_simulator_is_in_the_recorded_states_exactly(files, arms, mode, kind):
    source = next(formats.read(files[mode]))  # by joints from poses, the elbow may go another way
    replay = Replay(arms[kind], [source])
    obs = replay.reset(0)
    for t in range(12):
        assert state_error(arms[kind], source, t) < 2e-5
        obs = replay.step(replay.act(obs).commands[:, 0]).obs
    assert state_error(arms[kind], source, 12 + 3) > 1e-3  # it does move


NATIVE = [((0, 1.0), (0, 0.1)), ((2, -0.5), (2, -0.05)), ((5, 1.0), (5, -0.1)), ((3, -0.5), (3, 0.05))]


@pytest.mark.parametrize(("action", "command"), NATIVE)
def test_a_native_pose_action_is_a_tenth_of_a_metre_and_minus_a_tenth_of_a_radian(arms, action, command):
    env = arms["ee_delta"]
    env.reset(0)
    native, expected = torch.zeros(1, 7), torch.zeros(1, 7)
    native[0, action[0]], expected[0, command[0]], expected[0, 6] = action[1], command[1], 0.5
    torch.testing.assert_close(env.translate(native, "pd_ee_delta_pose", {}), expected, atol=1e-5, rtol=0)
    env.reset(0)
    with pytest.raises(ValueError, match="no controller 'pd_wish', only pd_joint_delta_pos"):
        env.translate(native, "pd_wish", {})
    with pytest.raises(ValueError, match="pd_joint_vel commands speeds"):
        env.translate(native, "pd_joint_vel", {})


def configured(source: Path, out: Path, *overrides: str):
    small = ("++env.image_size=16", "++env.drawing=light", "++env.backend=cpu", f"run_dir={out}_run")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        given = [f"source={source}", f"out={out}", *small, *overrides]
        return compose("import_demonstrations", overrides=given)


def test_imported_frames_are_what_was_seen_before_each_recorded_action(files, tmp_path):
    figures = import_demonstrations(configured(files["pd_joint_pos"], tmp_path / "a", "++env.command=joint_position"))
    assert (figures["source"]["k"], figures["replay"]["k"], figures["replay"]["n"]) == (2, 2, 2)
    frames, sources = load_frames(tmp_path / "a"), list(formats.read(files["pd_joint_pos"]))
    assert figures["frames"] == len(frames)
    joints = frames.spec.proprio_slice("joint_position")
    for i, source in enumerate(sources):
        first, end = frames.episode_start[i : i + 2].tolist()
        assert 0 <= source.num_steps - (end - first) <= 1  # it may succeed a step earlier
        action = torch.tensor(source.actions[: end - first])
        torch.testing.assert_close(frames.action[first:end, :7], action[:, :7])
        torch.testing.assert_close(frames.action[first:end, 7], action[:, 7] / 2 + 0.5)
        before = torch.tensor(source.states["articulations"]["panda"][:12, 13:20])
        torch.testing.assert_close(frames.proprio[first : first + 12, joints], before, atol=1e-5, rtol=0)
    again = import_demonstrations(configured(files["pd_joint_pos"], tmp_path / "a", "++env.command=joint_position"))
    assert again == figures


def spoiled(file: Path, out: Path, change) -> Path:
    """A copy of a ManiSkill file whose actions went through `change`."""
    out.mkdir(exist_ok=True)
    copy = Path(shutil.copy(file, out / "spoiled.h5"))
    shutil.copy(file.with_suffix(".json"), out / "spoiled.json")
    with h5py.File(copy, "a") as opened:
        for trajectory in opened.values():
            trajectory["actions"][:] = change(trajectory["actions"][:])
    return copy


SPOILT = {
    "off by one": lambda x: np.concatenate([x[1:], x[-1:]]),
    "opposite": lambda x: np.concatenate([-x[:, :6], x[:, 6:]], 1),
    "gripper inverted": lambda x: np.concatenate([x[:, :6], -x[:, 6:]], 1),
    "turned the other way": lambda x: np.concatenate([x[:, :3], -x[:, 3:6], x[:, 6:]], 1),
}


@pytest.mark.parametrize("change", SPOILT)
def test_a_spoilt_file_does_not_succeed_again(files, arms, tmp_path, change):
    sources = list(formats.read(spoiled(files["pd_ee_delta_pose"], tmp_path, SPOILT[change])))[:1]
    replay = Replay(arms["ee_delta"], sources)
    assert not rollout(replay, replay, seed=0).success.any()


def test_an_import_that_succeeds_less_often_than_its_source_is_an_error_and_no_dataset(files, tmp_path):
    file = spoiled(files["pd_ee_delta_pose"], tmp_path, SPOILT["opposite"])
    with pytest.raises(ValueError, match="0 of 2 episodes succeed when played again, in the source 2 did"):
        import_demonstrations(configured(file, tmp_path / "a"))
    assert not (tmp_path / "a" / "meta").exists()


def test_what_is_missing_in_a_maniskill_file_is_named(files, tmp_path):
    alone = Path(shutil.copy(files["pd_joint_pos"], tmp_path / "alone.h5"))
    with pytest.raises(ValueError, match=r"needs alone.json beside it"):
        list(formats.read(alone))
    copy = spoiled(files["pd_joint_pos"], tmp_path, lambda x: x)
    with pytest.raises(ValueError, match="traj_0 is of the task PickCube-v1, not PushCube-v1"):
        import_demonstrations(configured(copy, tmp_path / "a", "env.task=PushCube-v1"))
    with pytest.raises(ValueError, match="PointEnv cannot play recorded episodes"):
        import_demonstrations(configured(copy, tmp_path / "a", "env=point", "~env.backend", "~env.drawing"))
    with h5py.File(copy, "a") as opened:
        actions = opened["traj_0/actions"][:]
        del opened["traj_0/actions"]
        opened["traj_0/actions"] = actions[:-2]
    with pytest.raises(ValueError, match="states for"):
        list(formats.read(copy))
    with h5py.File(copy, "a") as opened:
        del opened["traj_0/env_states"]
    with pytest.raises(ValueError, match="record again with record_env_state=True"):
        list(formats.read(copy))


def carried(seed: int, frames: int) -> Recording:
    """A gripper carried about smoothly in a fixed frame, turned by more than half a turn on the way."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, frames)[:, None]
    position = 0.3 * np.sin(t * rng.uniform(2, 6, 3) + rng.uniform(0, 6, 3))
    turns = Rotation.from_rotvec(t * rng.normal(size=3) * 3) * Rotation.from_rotvec(rng.normal(size=3))
    picture = rng.integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)
    width = 0.04 + 0.03 * np.sin(7 * t)
    return Recording({"camera0": picture}, position, turns.as_rotvec(), width)


def umi_buffer(path: Path, episodes: list[Recording]) -> Path:
    """As UMI stores it: version 2 of zarr, all episodes end to end."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    columns = {
        "camera0_rgb": np.concatenate([x.images["camera0"] for x in episodes]),
        "robot0_eef_pos": np.concatenate([x.position for x in episodes]).astype(np.float32),
        "robot0_eef_rot_axis_angle": np.concatenate([x.rotation for x in episodes]).astype(np.float32),
        "robot0_gripper_width": np.concatenate([x.width for x in episodes]).astype(np.float32),
    }
    for name, values in columns.items():
        root.require_group("data").create_array(name, data=values)
    ends = np.cumsum([len(x.position) for x in episodes]).astype(np.int64)
    root.require_group("meta").create_array("episode_ends", data=ends)
    return path


SAID = ("recording.instruction=fold the towel", "recording.control_hz=60", "images=image")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_umi_buffer_becomes_commands_that_add_up_to_its_poses(tmp_path, zipped):
    recorded = [carried(0, 40), carried(1, 25)]
    buffer = umi_buffer(tmp_path / "umi.zarr", recorded)
    if zipped:
        buffer = Path(shutil.make_archive(str(buffer), "zip", buffer))
    figures = import_demonstrations(configured(buffer, tmp_path / "a", *SAID))
    assert figures["episodes"] == 2
    frames = load_frames(tmp_path / "a")
    assert frames.spec.command.frame == "recording"
    assert frames.spec.control_hz == 60
    assert set(frames.instructions) == {"fold the towel"}
    for i, truth in enumerate(recorded):
        first, end = frames.episode_start[i : i + 2].tolist()
        assert end - first == len(truth.position) - 1
        position, turn = truth.position[0], Rotation.from_rotvec(truth.rotation[0])
        for t, action in enumerate(frames.action[first:end].double().numpy()):
            position, turn = position + action[:3], Rotation.from_rotvec(action[3:6]) * turn
            assert np.linalg.norm(position - truth.position[t + 1]) < 1e-4
            assert (turn * Rotation.from_rotvec(truth.rotation[t + 1]).inv()).magnitude() < 1e-4
            assert action[6] == pytest.approx(truth.width[t + 1, 0] / 0.08, abs=1e-5)
        seen = torch.tensor(truth.images["camera0"][:-1])
        assert torch.equal(frames.images["camera0"][first:end], seen)
        matrix = Rotation.from_rotvec(truth.rotation[:-1]).as_matrix()
        expected = np.concatenate([truth.position[:-1], matrix[:, :, 0], matrix[:, :, 1], truth.width[:-1] / 0.08], 1)
        np.testing.assert_allclose(frames.proprio[first:end].numpy(), expected, atol=1e-5)


@settings(max_examples=12)
@given(st.integers(0, 1000), st.integers(3, 20))
def test_commands_of_any_recording_add_up_and_shifted_or_flipped_ones_do_not(seed, frames):
    recording = carried(seed, frames)
    episode = as_episode(recording, instruction="carry", max_width=0.08, success=True)
    assert max(drift(episode, recording)) < 1e-4
    commands = episode.action.commands
    episode.action.commands = torch.roll(commands, 1, 0)
    assert max(drift(episode, recording)) > 1e-3
    episode.action.commands = torch.cat([commands[..., :3], -commands[..., 3:6], commands[..., 6:]], -1)
    assert drift(episode, recording)[1] > 1e-3


def test_buffers_that_are_no_arms_or_lack_something_are_refused(tmp_path):
    buffer = umi_buffer(tmp_path / "umi.zarr", [carried(0, 10)])
    with pytest.raises(ValueError, match="does not say what was to be done or how fast"):
        import_demonstrations(configured(buffer, tmp_path / "a", "recording.control_hz=60"))
    with pytest.raises(ValueError, match=r"gripper_width=0.03 is too small"):
        import_demonstrations(configured(buffer, tmp_path / "a", *SAID, "recording.gripper_width=0.03"))
    described = buffer / "data" / "camera0_rgb" / ".zarray"
    compressed = {**json.loads(described.read_text()), "compressor": {"id": "some_picture_codec"}}
    described.write_text(json.dumps(compressed))
    with pytest.raises(ValueError, match=r"pip install imagecodecs.*some_picture_codec"):
        list(formats.read(buffer))
    root = zarr.open_group(tmp_path / "pusht.zarr", mode="w", zarr_format=2)
    for name, size in {"state": 5, "action": 2, "keypoint": 18}.items():
        root.require_group("data").create_array(name, data=np.zeros((9, size), np.float32))
    ends = root.require_group("meta").create_array("episode_ends", data=np.array([4, 9]))
    with pytest.raises(ValueError, match="targets in pixels of a drawing"):
        list(formats.read(tmp_path / "pusht.zarr"))
    ends[:] = np.array([4, 8])
    with pytest.raises(ValueError, match="must rise by at least 2 to the number of frames"):
        list(formats.read(tmp_path / "pusht.zarr"))
    with pytest.raises(ValueError, match="no zarr group of version 2"):
        list(formats.read(tmp_path))
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="none of the formats"):
        formats.read(tmp_path / "notes.txt")


def test_jpeg_xl_pictures_are_read_where_imagecodecs_is_installed(tmp_path):
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codecs.register_codecs(verbose=False)
    recording = carried(0, 6)
    buffer = umi_buffer(tmp_path / "umi.zarr", [recording])
    shutil.rmtree(buffer / "data" / "camera0_rgb")
    coder = codecs.Jpegxl(level=100, lossless=True, numthreads=1)
    made = zarr.open_group(buffer, mode="a", zarr_format=2)["data"].create_array(
        "camera0_rgb", shape=(6, 16, 16, 3), chunks=(1, 16, 16, 3), dtype="uint8", compressors=coder
    )
    made[:] = recording.images["camera0"]
    (source,) = formats.read(buffer)
    np.testing.assert_array_equal(source.recording.images["camera0"], recording.images["camera0"])


@pytest.fixture(scope="module")
def lift():
    """States before each action, actions and rewards of robosuite's Lift, really stepped."""
    import robosuite

    options = {"controller_configs": robosuite.load_controller_config(default_controller="OSC_POSE")}
    sim = robosuite.make(
        "Lift", "Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False, **options
    )
    np.random.seed(0)  # noqa: NPY002 (robosuite 1.4 draws from it)
    sim.reset()
    states, actions, rewards = [], [], []
    for t in range(4):
        states.append(sim.sim.get_state().flatten())
        actions.append(np.array([0.3, 0, -0.5, 0, 0, 0.1 * t, -1.0]))
        rewards.append(sim.step(actions[-1])[1])
    model = sim.sim.model.get_xml()
    sim.close()
    return {
        "states": np.stack(states),
        "actions": np.stack(actions),
        "rewards": np.array(rewards),
        "model": model,
        **options,
    }


def test_robomimic_files_are_read(tmp_path, lift):
    env = {"env_name": "Lift", "type": 1, "env_kwargs": {"controller_configs": lift["controller_configs"]}}
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(env)
        for i in (10, 9):
            demo = file["data"].create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = 4, lift["model"]
            for name in ("states", "actions", "rewards"):
                demo[name] = lift[name]
        file["data/demo_10/rewards"][3] = 1.0
    first, second = formats.read(tmp_path / "demo.hdf5")
    assert (first.name, second.name, first.env, first.controller) == ("demo_9", "demo_10", "Lift", "OSC_POSE")
    assert (first.success, second.success) == (False, True)
    assert first.settings["output_max"][0] == 0.05
    np.testing.assert_array_equal(first.start["state"], lift["states"][0])
    np.testing.assert_allclose(first.actions, lift["actions"], atol=1e-7)


def test_libero_files_are_read_without_their_late_pictures(tmp_path, lift):
    problem = {"language_instruction": "open the drawer", "problem_name": "p", "domain_name": "d"}
    with h5py.File(tmp_path / "KITCHEN_open_the_drawer_demo.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        file["data"].attrs["problem_info"] = json.dumps(problem)
        demo["states"], demo["actions"], demo["dones"] = (
            lift["states"],
            lift["actions"],
            np.array([0, 0, 0, 1], np.uint8),
        )
        demo["obs/agentview_rgb"] = np.zeros((4, 8, 8, 3), np.uint8)
    (source,) = formats.read(tmp_path / "KITCHEN_open_the_drawer_demo.hdf5")
    assert (source.instruction, source.success, source.controller) == ("open the drawer", True, "OSC_POSE")
    np.testing.assert_array_equal(source.start["state"], lift["states"][0])
