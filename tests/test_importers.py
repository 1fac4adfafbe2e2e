"""Importers: what other programs recorded, played again in the simulator or added up, and files that are wrong."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from scipy.spatial.transform import Rotation

from policies.scripted import ScriptedExpert
from simulators.maniskill import ManiSkillEnv, maniskill
from vla.data.frames import load_frames
from vla.data.importers import formats
from vla.data.importers.maniskill import at
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
        before = (env.sim.agent.robot.get_qpos()[0, :7].clone(), env._measured()[0])
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
    small = ("env.task=PickCube-v1", "++env.images=false", "++env.backend=cpu", f"run_dir={out}/run")
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
def test_a_spoilt_file_is_refused_since_its_replay_does_not_succeed(files, arms, tmp_path, change):
    sources = list(formats.read(spoiled(files["pd_ee_delta_pose"], tmp_path, SPOILT[change])))
    replay = Replay(arms["ee_delta"], sources)
    won = sum(bool(rollout(replay, replay, seed=i).success.any()) for i in range(len(sources)))
    assert won < len(sources), change
