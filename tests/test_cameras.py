"""Cameras give the newest picture and its time, or say why they have none; numbers of lenses follow their pictures."""

import json
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from real.calibration import Calibration, Fit
from real.cameras import StaleCamera, opencv, realsense

LENS = {"intrinsics": [[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]], "height": 480, "width": 640}


@contextmanager
def stream(pictures):
    """An MJPEG stream on the loopback of what the iterator gives; it goes on without a picture after its end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
            self.end_headers()
            for picture in pictures():
                jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
                head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                try:
                    self.wfile.write(head + jpeg + b"\r\n")
                except OSError:
                    return
            stopped.wait(20)

        def log_message(self, *_):
            pass

    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def plain(red, green=0, blue=0, shape=(48, 64)):
    return np.full((*shape, 3), (red, green, blue), np.uint8)


def growing(count, seconds):
    def pictures():
        for k in range(count):
            yield plain(10 * k + 10)
            time.sleep(seconds)

    return pictures


def test_the_newest_picture_is_given_in_red_green_blue_and_fitted():
    with stream(growing(20, 0.05)) as address, closing(opencv(address, image_size=32)) as camera:
        early = camera.latest(1.0)
        late = camera.after(early.number + 5, patience=10)
        assert early.image.shape == (32, 32, 3)
        assert late.image[..., 0].mean() > early.image[..., 0].mean() + 30
        assert late.image[..., 1:].max() < 10
        assert late.captured > early.captured
        assert time.monotonic() - late.captured < 5


def test_a_stream_that_falls_silent_gives_no_old_picture():
    with stream(growing(3, 0.02)) as address, closing(opencv(address)) as camera:
        camera.after(2, patience=10)
        time.sleep(0.3)
        with pytest.raises(
            StaleCamera, match=rf"camera {address}: the newest picture is 0\.\d+ s old, more than 0\.2 s"
        ):
            camera.latest(0.2)
        assert camera.latest(60).image is not None
        with pytest.raises(StaleCamera, match="no new picture"):
            camera.after(camera.latest(60).number, patience=0.1)


def test_a_file_ends_and_says_so(tmp_path):
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for k in range(5):
        writer.write(plain(0, 0, 40 * k + 40)[..., ::-1])
    writer.release()
    with closing(opencv(path, image_size=[48, 64])) as camera:
        deadline = time.monotonic() + 10
        while not camera.ended and time.monotonic() < deadline:
            time.sleep(0.01)
        frame = camera.latest(60)
        assert (frame.number, frame.image.shape) == (5, (48, 64, 3))
        assert frame.image[..., 2].mean() == pytest.approx(200, abs=6)
        time.sleep(0.02)
        with pytest.raises(StaleCamera, match="its stream has ended"):
            camera.latest(0.01)


def test_who_is_not_there_is_named():
    with pytest.raises(
        ValueError, match=r"camera /none\.avi gave no picture: OpenCV cannot open the camera '/none\.avi'"
    ):
        opencv("/none.avi")


def test_pictures_are_cut_about_the_middle_and_turned():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6, 0] = 255
    picture[0, 2, 1] = 255
    assert Fit(4, 4)(picture)[..., 0].min() == 255
    assert Fit(4, 4, upside_down=True)(picture)[3, 3, 1] == 255
    assert Fit(2, 2)(picture)[0, 0, 1] == 64  # a quarter of four pixels


@pytest.mark.parametrize("upside_down", [False, True])
def test_a_fitted_lens_sees_a_point_where_the_fitted_picture_has_it(upside_down):
    """A bright square is drawn where the lens sees a point, and found again in the fitted picture by its new lens."""
    matrix, fit = np.array(LENS["intrinsics"]), Fit(120, 100, upside_down)
    for point in ([0.05, -0.08, 1.0], [-0.1, 0.12, 1.2]):
        u, v, w = matrix @ point
        picture = np.zeros((480, 640, 3), np.uint8)
        row, column = round(v / w), round(u / w)
        picture[row - 6 : row + 7, column - 6 : column + 7] = 255
        rows, columns = np.nonzero(fit(picture)[..., 0] > 100)
        seen = np.array(point) * ([-1, -1, 1] if upside_down else [1, 1, 1])  # in the frame that is turned too
        u, v, w = fit.intrinsics(matrix, 480, 640) @ seen
        assert [columns.mean(), rows.mean()] == pytest.approx([u / w, v / w], abs=0.4)


def test_a_calibration_is_read_and_told_to_the_environment(tmp_path):
    path = tmp_path / "lens.json"
    path.write_text(json.dumps({**LENS, "pose": [1, 0, 0.5, 0, 0, 0, 1], "error": 0.2}))
    with stream(growing(50, 0.02)) as address, closing(opencv(address, image_size=48, calibration=str(path))) as camera:
        told = camera.spec("front")
    assert (told.name, told.height, told.width) == ("front", 48, 48)
    assert np.array(told.intrinsics)[0, 0] == pytest.approx(50.0)
    assert np.array(told.intrinsics)[:2, 2] == pytest.approx([23.5, 23.5])
    assert told.pose == (1, 0, 0.5, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"intrinsics": [[0, 0, 1], [0, 1, 1], [0, 0, 1]]}, "focal"),
        ({"pose": [0, 0, 0, 0, 0, 0, 2]}, "unit quaternion"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_calibration_is_refused_with_its_file(tmp_path, wrong, word):
    path = tmp_path / "lens.json"
    path.write_text(json.dumps({**LENS, **wrong}))
    with pytest.raises(ValueError, match=rf"lens\.json is not a camera's calibration: .*{word}"):
        Calibration.load(path)


def test_a_realsense_is_read_from_what_another_recorded(tmp_path):
    """The library's own software device records pictures, and plays them as a camera would."""
    rs = pytest.importorskip("pyrealsense2", exc_type=ImportError)  # without libusb it cannot be imported
    path = str(tmp_path / "camera.db3")
    device = rs.software_device()
    sensor = device.add_sensor("Color")
    lens = rs.intrinsics()
    lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = 64, 48, 50.0, 50.0, 31.5, 23.5
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid = rs.stream.color, 0, 0
    stream.width, stream.height, stream.fps, stream.bpp = 64, 48, 30, 3
    stream.fmt, stream.intrinsics = rs.format.rgb8, lens
    profile = sensor.add_video_stream(stream)
    recorder = rs.recorder(path, device)
    sensor.open(profile)
    sensor.start(lambda _: None)
    for k in range(30):
        frame = rs.software_video_frame()
        frame.pixels, frame.stride, frame.bpp = plain(200, 100, 8 * k).tobytes(), 64 * 3, 3
        frame.timestamp, frame.frame_number, frame.profile = 33.0 * k, k, profile.as_video_stream_profile()
        sensor.on_video_frame(frame)
        time.sleep(0.01)
    sensor.stop()
    sensor.close()
    del recorder
    with closing(realsense(file=path, image_size=[48, 64])) as camera:
        frame = camera.latest(60)
        assert frame.image.shape == (48, 64, 3)
        assert frame.image[0, 0, :2].tolist() == [200, 100]
    with pytest.raises(ValueError, match="no RealSense 012345"):
        realsense(serial="012345")
