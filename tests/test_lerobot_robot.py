"""Unmodified programs of LeRobot move a twin through our driver: teleoperate, record, and a policy of its own plays."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from twins import BUSY, running

from real import fr3
from real.robot import Robot
from real.safety import Fault, Limits
from real.settings import Settings

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "real" / "lerobot_plugin"
HOST = "127.0.0.15"
ROOM = {"low": [0.2, -0.6, 0.0], "high": [0.8, 0.6, 0.9]}
WIDE = [f"--robot.{name}={corner}" for name, corner in ROOM.items()]
ROBOT = [
    "--robot.type=armature_franka",
    f"--robot.address={HOST}",
    "--robot.id=twin",
    "--robot.hz=15",
    f"--robot.stale={BUSY}",
    *WIDE,
]
STREAM = f"{{type: armature_stream, source: 'http://{HOST}:1340/base_camera', height: 64, width: 64, fps: 30}}"
CAMERAS = [f"--robot.cameras={{base_camera: {STREAM}}}"]
WAVE = ["--teleop.type=armature_wave", "--teleop.id=nobody", "--teleop.amplitude=0.1", "--teleop.seconds=4"]
DATA = ["--dataset.repo_id=local/waves", "--dataset.single_task=swing", "--dataset.fps=15", "--play_sounds=false"]
QUIET = ["--dataset.push_to_hub=false", "--dataset.video=false", "--dataset.reset_time_s=0.5"]
NAMES = [*(f"joint_{i}.pos" for i in range(1, 8)), "gripper.pos"]
STILL = 0.02  # rad/s


@pytest.fixture(scope="module")
def operator():
    with running(HOST, "--cameras", "1340") as operator:
        yield operator


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment in which the plug-in is installed, with the name that its own build gives it."""
    site, copy = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("copy") / "plugin"
    shutil.copytree(PLUGIN, copy)
    build = f"from setuptools.build_meta import prepare_metadata_for_build_wheel as made; made({str(site)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    path = os.pathsep.join(map(str, (site, PLUGIN, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HOME": str(site)}


@pytest.fixture(scope="module")
def plugin():
    """The plug-in in this process."""
    sys.path.insert(0, str(PLUGIN))
    try:
        import lerobot_robot_armature

        yield lerobot_robot_armature
    finally:
        sys.path.remove(str(PLUGIN))


@pytest.fixture
def connected(operator, plugin, tmp_path):
    """A robot of LeRobot's on a twin that nothing is wrong with, at home."""
    operator.tell("user_stop", pressed=False)
    config = plugin.ArmatureFrankaConfig(
        address=HOST, calibration_dir=tmp_path, recover=True, home=True, stale=BUSY, **ROOM
    )
    robot = plugin.ArmatureFranka(config)
    robot.connect()
    yield robot
    robot.disconnect()


def run(environment, program, *options, status=0, meanwhile=lambda: None):
    """What a program wrote before it ended with this status; something is done twenty times a second meanwhile."""
    command, deadline = [str(Path(sys.executable).with_name(program)), *options], time.monotonic() + 240
    with TemporaryFile("w+") as wrote:
        with subprocess.Popen(command, env=environment, stdout=wrote, stderr=wrote) as process:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    process.kill()
                meanwhile()
                time.sleep(0.05)
        wrote.seek(0)
        said = wrote.read()
    assert process.returncode == status, said[-3000:]
    return said


def watched(operator, environment, program, *options):
    """Joints (rad) of the twin while a program runs."""
    seen = []
    run(environment, program, *options, meanwhile=lambda: seen.append(operator.look()["qpos"][:7]))
    return np.array(seen)


def recorded(environment, where, episodes):
    options = [f"--dataset.root={where}", f"--dataset.num_episodes={episodes}", "--dataset.episode_time_s=2"]
    run(environment, "lerobot-record", *ROBOT, *CAMERAS, *WAVE, *DATA, *QUIET, *options)
    return LeRobotDataset("local/waves", root=where)


def swung(angle):
    """Where an action sends the first joint, all others at home."""
    q = np.array(fr3.HOME, float)
    q[0] += angle
    return dict(zip(NAMES, [*q.tolist(), 1.0], strict=True))


def test_every_joint_swings_as_the_teleoperator_does_and_is_left_at_rest(operator, installed):
    seen = watched(operator, installed, "lerobot-teleoperate", *ROBOT, *WAVE, "--fps=15", "--teleop_time_s=6")
    swing = seen - np.array(fr3.HOME)
    assert swing.max(0) == pytest.approx(np.full(7, 0.1), abs=0.03)
    assert swing.min(0) == pytest.approx(np.full(7, -0.1), abs=0.03)
    assert operator.look()["fastest"] < STILL
    assert operator.look()["mode"] == "IDLE"


def test_episodes_are_recorded_with_pictures_and_joints_that_follow_what_was_asked(operator, installed, tmp_path):
    data = recorded(installed, tmp_path / "waves", 2)
    assert data.num_episodes == 2
    assert data.meta.robot_type == "armature_franka"
    assert data.features["action"]["names"] == data.features["observation.state"]["names"] == NAMES
    assert data.features["observation.images.base_camera"]["shape"] == (64, 64, 3)
    state, asked = (np.stack([np.asarray(x) for x in data.hf_dataset[key]]) for key in ("observation.state", "action"))
    assert (state[:, :7].max(0) - state[:, :7].min(0) > 0.05).all()
    assert np.abs(state - asked)[-15:, :7].max() < 0.06  # a period of 66 ms behind, at up to 0.16 rad/s, and a spring
    picture = data[0]["observation.images.base_camera"]
    assert picture.shape == (3, 64, 64)
    assert picture.std() > 0.05
    assert operator.look()["fastest"] < STILL


@pytest.mark.slow
def test_a_policy_of_lerobots_plays_on_it_and_the_arm_goes_back_to_where_it_was(operator, installed, tmp_path):
    """ACT trained for two steps: what matters is that it moves the arm, not where it wants to have it."""
    recorded(installed, tmp_path / "waves", 1)
    small = ["--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=32", "--policy.chunk_size=8"]
    model = ["--policy.type=act", "--policy.pretrained_backbone_weights=null", "--policy.n_action_steps=8", *small]
    learn = ["--steps=2", "--save_freq=2", "--batch_size=4", "--num_workers=0", "--policy.device=cpu"]
    where = [f"--dataset.root={tmp_path / 'waves'}", f"--output_dir={tmp_path / 'act'}", "--policy.push_to_hub=false"]
    run(installed, "lerobot-train", "--dataset.repo_id=local/waves", *model, *learn, *where)
    checkpoint = tmp_path / "act" / "checkpoints" / "last" / "pretrained_model"
    begun = moved_to(swung(0.3))
    rate = ["--fps=15", "--duration=4", "--device=cpu", f"--policy.path={checkpoint}", "--task=swing"]
    seen = watched(operator, installed, "lerobot-rollout", *ROBOT, *CAMERAS, *rate)
    assert np.abs(seen - begun).max() > 0.1
    assert operator.look()["qpos"][:7] == pytest.approx(begun, abs=0.05)
    assert operator.look()["fastest"] < STILL


@pytest.mark.slow
def test_a_program_of_lerobots_ends_with_the_robots_own_words(operator, installed):
    operator.tell("user_stop", pressed=True)
    wrote = run(installed, "lerobot-teleoperate", *ROBOT, *WAVE, "--fps=15", "--teleop_time_s=6", status=1)
    operator.tell("user_stop", pressed=False)
    assert "User" in wrote


def test_what_was_sent_is_told_and_is_what_the_limiter_let_through(connected):
    sent = [connected.send_action(swung(2.0))["joint_1.pos"] for _ in range(3)]
    assert list(connected.action_features) == NAMES
    assert set(connected.get_observation()) == set(NAMES)
    assert max(sent) < 0.1  # of the 2 rad that were asked for
    with pytest.raises(ValueError, match=r"needs joint_2\.pos, gripper\.pos too"):
        connected.send_action({k: v for k, v in swung(0.0).items() if k not in ("joint_2.pos", "gripper.pos")})


def test_an_arm_at_rest_through_a_pause_follows_again_from_where_it_stands(operator, connected):
    connected.send_action(swung(0.1))
    time.sleep(0.2)
    assert operator.look()["mode"] == "MOVE"
    until_idle(operator)
    before = connected.get_observation()["joint_1.pos"]
    assert connected.send_action(swung(0.5))["joint_1.pos"] == pytest.approx(before, abs=0.1)
    assert operator.look()["mode"] == "MOVE"


@pytest.mark.parametrize("paused", [False, True], ids=["in motion", "in a pause"])
@pytest.mark.parametrize(
    ("mischief", "words"),
    [(("reflex", {"reason": "joint_reflex"}), "eflex"), (("user_stop", {"pressed": True}), "User ?[Ss]top")],
    ids=["reflex", "user stop"],
)
def test_what_stops_the_robot_stays_in_force_in_its_own_words(operator, connected, plugin, paused, mischief, words):
    connected.send_action(swung(0.1))
    if paused:
        until_idle(operator)
    what, how = mischief
    operator.tell(what, **how)
    with pytest.raises(Fault, match=words):
        until_refused(connected)
    with pytest.raises(Fault, match=words):
        connected.send_action(swung(0.1))
    before = operator.look()["qpos"][:7]
    operator.tell("user_stop", pressed=False)
    time.sleep(0.3)
    with pytest.raises(Fault, match=words):  # that it would be allowed to move again is not for a program to say
        connected.get_observation()
    assert operator.look()["qpos"][:7] == pytest.approx(before, abs=0.01)


def test_a_reflex_outlives_the_program_until_somebody_says_that_they_have_looked(operator, plugin, tmp_path):
    operator.tell("reflex", reason="joint_reflex")
    for recover in (False, True):
        config = plugin.ArmatureFrankaConfig(
            address=HOST, calibration_dir=tmp_path, recover=recover, stale=BUSY, **ROOM
        )
        robot = plugin.ArmatureFranka(config)
        robot.connect()
        with contextlib.nullcontext() if recover else pytest.raises(Fault, match="eflex"):
            robot.send_action(swung(0.0))
        robot.disconnect()


def test_speeds_keep_to_their_limits_however_often_it_is_aimed(operator):
    """LeRobot goes back to the start at 50 Hz whatever the rate was, and teleoperates at 60 if it is told nothing."""
    robot = Robot(Settings(HOST, "joint_position", 15.0, limits=Limits(**ROOM), stale=BUSY))
    try:
        for pause in (0.0, 0.02):
            begun = robot.ask("home", patience=40.0)
            robot.ask("start")
            wanted, fastest, told = np.array(list(swung(0.8).values())), 0.0, begun
            start = told = robot.ask("aim", wanted)
            while told.state.time < start.state.time + 0.6:
                time.sleep(pause)
                told = robot.ask("aim", wanted)
                fastest = max(fastest, float(np.abs(told.state.dq).max()))
            limit = Limits.joint_speed * fr3.VELOCITY[0]
            assert 0.5 * limit < fastest < 1.05 * limit
            assert told.executed[0] - begun.state.q[0] < limit * (told.state.time - begun.state.time) + 0.02
            robot.ask("rest")
    finally:
        robot.close()


def test_only_joint_positions_can_be_aimed_at(operator):
    robot = Robot(Settings(HOST))
    try:
        robot.ask("start")
        with pytest.raises(Fault, match="only joint positions can be aimed at, not ee_delta"):
            robot.ask("aim", np.zeros(7))
    finally:
        robot.close()


def test_a_robot_that_cannot_be_connected_leaves_no_camera_open(operator, plugin, tmp_path):
    eye = plugin.ArmatureStreamConfig(source=f"http://{HOST}:1340/base_camera", height=32, width=48, fps=15)
    config = plugin.ArmatureFrankaConfig(address="127.0.0.99", calibration_dir=tmp_path, cameras={"eye": eye})
    robot = plugin.ArmatureFranka(config)
    assert robot.observation_features["eye"] == (32, 48, 3)
    with pytest.raises(Fault, match=r"connecting, robot at 127\.0\.0\.99"):
        robot.connect()
    assert not robot.is_connected
    assert not robot.cameras["eye"].is_connected


def test_a_stream_gives_the_newest_picture_or_none(plugin, tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for grey in (50, 100, 200):
        film.write(np.full((48, 64, 3), grey, np.uint8))
    film.release()
    eye = plugin.ArmatureStream(
        plugin.ArmatureStreamConfig(source=str(tmp_path / "film.avi"), height=24, width=24, fps=10)
    )
    with pytest.raises(ConnectionError, match="not connected"):
        eye.read_latest()
    eye.connect()
    assert eye.async_read().shape == (24, 24, 3)
    time.sleep(0.3)
    assert eye.read_latest().mean() == pytest.approx(200, abs=3)
    time.sleep(0.5)
    with pytest.raises(TimeoutError, match="its stream has ended"):
        eye.read_latest(max_age_ms=300)
    eye.disconnect()
    assert not eye.is_connected


def test_the_configuration_says_what_the_driver_is_told(plugin, tmp_path):
    asked = {
        "stale": 0.2,
        "hz": 20.0,
        "joint_speed": 0.1,
        "force": 15.0,
        "home_speed": 0.05,
        "backend": "franka_rs",
        **ROOM,
    }
    config = plugin.ArmatureFrankaConfig(address="172.16.0.2", calibration_dir=tmp_path, **asked)
    told = asdict(plugin.ArmatureFranka(config).settings)
    told = {**told, **told["limits"]}
    assert {name: told[name] for name in asked} == asked
    with pytest.raises(ValueError, match="backend must be one of"):
        plugin.ArmatureFranka(plugin.ArmatureFrankaConfig(address="", calibration_dir=tmp_path, backend="ros"))


def moved_to(action):
    """Joints (rad) after the arm has gone there by our own driver."""
    robot = Robot(
        Settings(HOST, "joint_position", limits=Limits(**ROOM), stale=BUSY, home=tuple(list(action.values())[:7]))
    )
    try:
        return robot.ask("home", patience=40.0).state.q
    finally:
        robot.close()


def until_idle(operator):
    deadline = time.monotonic() + 20
    while operator.look()["mode"] != "IDLE" or operator.look()["fastest"] > STILL:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_refused(robot):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        robot.get_observation()
        robot.send_action(swung(0.1))
        time.sleep(0.03)
