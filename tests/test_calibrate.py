"""Cameras are found where they are, with the lens that they have: in drawn pictures, and on a twin by the program."""

import itertools
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import cv2
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform, Rotation
from twins import BUSY, ROOM, running

from real import calibrate, fr3
from real.calibrate import solve, take, tool_of
from real.calibration import Calibration, Fit
from real.cameras import LiveCamera
from real.charuco import Chart, Corners
from real.lens import Lens, hand_eye, lens
from real.robot import Robot
from real.safety import Limits
from real.settings import Settings
from real.twin.model import mjcf
from real.twin.scenes import SCENES, chart_body
from real.twin.table import calibration, camera

HOST, CAMERAS = "127.0.0.20", 1341
SIZE = 480
HELD = RigidTransform.from_components([0.05, -0.075, 0.15], Rotation.from_matrix([[0, 0, -1], [1, 0, 0], [0, -1, 0]]))
LIES = RigidTransform.from_components([0.38, 0.1, 0.001], Rotation.from_quat([1, 0, 0, 0]))


@pytest.fixture(scope="module")
def drawn():
    """What a camera of the twin sees of the board with the arm as it is told, and where the hand is.

    The board lies on the table; before the camera that stands still the hand holds it.
    """
    model = mujoco.MjModel.from_xml_string(mjcf(SCENES["empty"].world + chart_body("", 'mocap="true"')))
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:

        def draw(name, q):
            data = mujoco.MjData(model)
            data.qpos[:7] = q
            mujoco.mj_forward(model, data)
            site = data.site("tcp")
            tool = RigidTransform.from_components(site.xpos, Rotation.from_matrix(site.xmat.reshape(3, 3)))
            board = tool * HELD if name == "base_camera" else LIES
            data.mocap_pos[0], data.mocap_quat[0] = board.translation, board.rotation.as_quat(scalar_first=True)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=name)
            return renderer.render(), np.array([*tool.translation, *tool.rotation.as_quat()])

        yield draw


NEAR = np.array(fr3.HOME) + np.array([0, 0.35, 0, -0.25, 0, 0, 0])  # the hand above the board


def around(q, seed, spread):
    """Arms that differ from this one in every joint."""
    chance = np.random.default_rng(seed)
    while True:
        yield np.clip(q + chance.uniform(-spread, spread, 7), fr3.LOW, fr3.HIGH)


class View(NamedTuple):
    image: np.ndarray
    tool: np.ndarray
    corners: Corners
    arm: np.ndarray


def views(draw, name, q, count, spread=0.35):
    """So many views with enough of the board."""
    kept = []
    for arm in itertools.islice(around(q, 0, spread), 40 * count):
        image, tool = draw(name, arm)
        corners = Chart().find(image)
        if corners is not None:
            kept.append(View(image, tool, corners, arm))
        if len(kept) == count:
            return kept
    raise AssertionError(f"{len(kept)} views of {name} with a board")


@pytest.fixture(scope="module")
def near(drawn):
    return views(drawn, "hand_camera", NEAR, 16)


def hand_camera_in_tool():
    model = mujoco.MjModel.from_xml_string(mjcf())
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    site, seen = data.site("tcp"), data.camera("hand_camera")
    turn, at = site.xmat.reshape(3, 3), seen.xpos - site.xpos
    return turn.T @ at, Rotation.from_matrix(turn.T @ seen.xmat.reshape(3, 3) @ np.diag([1.0, -1, -1]))


def require_near(pose, place, turn, metres, radians):
    assert np.linalg.norm(np.array(pose[:3]) - place) < metres
    assert (Rotation.from_quat(pose[3:]).inv() * turn).magnitude() < radians


def test_a_camera_on_the_hand_is_found_from_drawn_pictures(near):
    """From a board that fills a third of the picture; the robot's motion mends what the board alone leaves open."""
    found = lens([x.corners for x in near], SIZE, SIZE)
    known = np.array(calibration("hand_camera", SIZE).intrinsics)
    np.testing.assert_allclose(found.matrix, known, atol=8.0)  # focal length: 313 pixels
    assert np.abs(found.distortion[:2]).max() < 0.05
    pose, better = hand_eye([x.corners for x in near], [x.tool for x in near], found, on_hand=True)
    np.testing.assert_allclose(better.matrix, known, atol=1.0)
    require_near(pose, *hand_camera_in_tool(), metres=1e-3, radians=4e-3)
    assert better.error < 0.35
    assert len(better.errors) == 16


def test_a_camera_that_stands_still_is_found_with_the_board_in_the_hand(drawn):
    """From a metre away, where the board is a sixth of the picture."""
    seen = views(drawn, "base_camera", np.array(fr3.HOME), 14)
    found = lens([x.corners for x in seen], SIZE, SIZE)
    pose, better = hand_eye([x.corners for x in seen], [x.tool for x in seen], found, on_hand=False)
    known = calibration("base_camera", SIZE)
    assert known.pose is not None
    require_near(pose, known.pose[:3], Rotation.from_quat(known.pose[3:]), metres=5e-3, radians=0.02)
    np.testing.assert_allclose(better.matrix, known.intrinsics, atol=8.0)
    assert better.error < 0.6


def test_a_lens_that_bends_lines_is_found_from_points():
    chart, chance = Chart(), np.random.default_rng(0)
    there = chart.board().getChessboardCorners().astype(float)
    bent = Lens(np.array([[600.0, 0, 330], [0, 610, 235], [0, 0, 1]]), np.array([-0.3, 0.1, 0.002, -0.001, 0]), ())
    seen = []
    for _ in range(20):
        turn = Rotation.from_euler("xyz", chance.uniform(-0.5, 0.5, 3))
        place = [*chance.uniform(-0.15, 0.02, 2), chance.uniform(0.3, 0.5)]
        points = bent.project(RigidTransform.from_components(place, turn), there)
        seen.append(Corners(there, points + chance.normal(0, 0.1, points.shape)))
    found = lens(seen, 480, 640)
    np.testing.assert_allclose(found.matrix, bent.matrix, atol=3.0)
    np.testing.assert_allclose(found.distortion[:2], bent.distortion[:2], atol=0.05)
    assert 0.05 < found.error < 0.2


def test_a_hand_that_turned_about_one_axis_only_does_not_do(drawn):
    arms = [np.array([*fr3.HOME[:6], fr3.HOME[6] + x]) for x in np.linspace(-0.3, 0.3, 10)]
    seen = [(Chart().find(image), tool) for image, tool in (drawn("hand_camera", q) for q in arms)]
    seen = [(corners, tool) for corners, tool in seen if corners is not None]
    known = Lens(np.array(calibration("hand_camera", SIZE).intrinsics), np.zeros(5), ())
    with pytest.raises(ValueError, match="one axis at most: take views with it tilted"):
        hand_eye([x for x, _ in seen], [x for _, x in seen], known, on_hand=True)


def test_the_twin_is_calibrated_through_the_program(near, tmp_path):
    """Views with the arm as it goes there by commands; then `solve`, and the file is what a camera reads."""
    arms = [x.arm for x in near[:8]]
    said = []
    with (
        running(HOST, "--scene", "chart", "--cameras", str(CAMERAS), "--image-size", str(SIZE), "--fps", "4"),
        closing(Robot(Settings(HOST, kind="joint_position", limits=Limits(**ROOM), silence=60, stale=BUSY))) as robot,
        closing(camera("hand_camera", HOST, CAMERAS, SIZE)) as eye,
    ):

        def lines():
            """Moves between one view and the next; one comes too early, while the arm moves."""
            robot.ask("start")
            for k, arm in enumerate(arms):
                while np.abs(robot.ask("command", np.array([*arm, 1.0])).state.q - arm).max() > 0.05:
                    if k == 0:
                        yield "\n"
                while np.abs(robot.ask("command", np.array([*arm, 1.0])).state.dq).max() > calibrate.STILL / 4:
                    pass
                yield "\n"
            yield "q\n"
            raise AssertionError("asked for more after q")

        take(tmp_path / "views", Chart(), eye, lambda: tool_of(robot), lines(), said.append)
    assert "moves, by" in "".join(said)
    kept = json.loads((tmp_path / "views" / "views.json").read_text())["views"]
    assert len(kept) >= 8  # and some on the way, where it was slow
    result = program("solve", tmp_path / "views", tmp_path / "eye.json", "--mount", "hand")
    assert result.returncode == 0, result.stderr
    assert f"{kept[0]['image']}: " in result.stderr
    made = Calibration.load(tmp_path / "eye.json")
    assert made.hand_pose is not None
    assert made.pose is None
    require_near(made.hand_pose, *hand_camera_in_tool(), metres=4e-3, radians=0.01)
    assert (made.height, made.width, made.date[:2]) == (SIZE, SIZE, "20")
    assert made.error is not None
    assert made.error < 1.0


class Pictures:
    """A source that shows the same picture again and again."""

    def __init__(self, image):
        self.image = image

    def read(self):
        return self.image.copy()

    def close(self):
        pass


def test_views_are_added_to_those_there_are_and_a_picture_without_a_board_is_not_kept(drawn, tmp_path):
    said = []
    board, _ = drawn("hand_camera", fr3.HOME)
    for picture in (board, np.zeros_like(board), board):
        with closing(LiveCamera("here", lambda x=picture: Pictures(x), Fit(SIZE, SIZE))) as eye:
            take(tmp_path, Chart(), eye, lambda: None, ["\n"], said.append)
    kept = json.loads((tmp_path / "views.json").read_text())
    assert kept == {
        "chart": {"columns": 5, "rows": 7, "square": 0.03, "marker": 0.0225},
        "views": [{"image": "000.png", "tool": None}, {"image": "001.png", "tool": None}],
    }
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "001.png"))[..., ::-1], board)
    assert [x for x in said if "not kept" in x] == [
        "not kept: too little of the board is seen; more light, nearer, no glare?\n"
    ]
    with pytest.raises(ValueError, match="seen in 2 views, and 8 are needed: take more"):
        solve(tmp_path)


def test_views_without_a_robot_say_nothing_of_the_place(near, tmp_path):
    seen = [x.image for x in near[:9]]
    shown = iter(seen)
    source = Pictures(seen[0])
    with closing(LiveCamera("here", lambda: source, Fit(SIZE, SIZE))) as eye:

        def lines():
            for source.image in shown:
                eye.after(eye.latest(60).number + 2, 5)
                yield "\n"

        take(tmp_path, Chart(), eye, lambda: None, lines(), lambda _: None)
    made = solve(tmp_path, say=lambda _: None)
    np.testing.assert_allclose(made.intrinsics, calibration("hand_camera", SIZE).intrinsics, atol=12.0)
    assert (made.pose, made.hand_pose) == (None, None)
    with pytest.raises(ValueError, match=r"views 000\.png, .* were taken without a robot"):
        solve(tmp_path, "still", say=lambda _: None)
    cv2.imwrite(str(tmp_path / "003.png"), cv2.resize(seen[3], (640, 640)))
    with pytest.raises(ValueError, match="several sizes"):
        solve(tmp_path, say=lambda _: None)


def test_the_board_that_is_printed_is_the_board_that_is_found(tmp_path):
    path = tmp_path / "board.png"
    assert program("chart", path, "--columns", "7", "--rows", "5").returncode == 0
    image = cv2.imread(str(path))[..., ::-1]
    assert image.shape == (1000, 1400, 3)
    found = Chart(7, 5).find(np.pad(image, ((99, 99), (99, 99), (0, 0)), constant_values=255))
    assert found is not None
    assert len(found.seen) == 24
    assert found.there.max() == pytest.approx(6 * 0.03)
    np.testing.assert_allclose(found.seen, found.there[:, :2] / 0.03 * 200 + 99 - 0.5, atol=0.05)  # between pixels


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["solve", "nowhere", "x.json"], "nowhere has no views: take some with"),
        (["chart", "board.xyz"], "board.xyz: no kind of picture"),
        (["chart", "b.png", "--marker", "0.05"], "markers smaller than they are"),
        (["chart", "b.png", "--columns", "20"], "need more markers than there are: 50"),
        (["take", "views", "--camera", "/nowhere.mp4"], "cannot open the camera '/nowhere.mp4'"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, words, why):
    result = program(*words, cwd=tmp_path)
    assert result.returncode == 1
    assert why in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def program(*words, cwd=None):
    command = [sys.executable, "-m", "real.calibrate", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=cwd, env=environment)
