"""A GELLO leads: servos answer over a serial line, in their own protocol, to the library that reads real ones."""

import math
import os
import pty
import threading
import time
import tty
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_teleop import STILL

from real import fr3
from real.gello import Gello
from real.person import SILENCE, Person
from simulators.point import PointEnv
from vla.program import CONFIGS
from vla.types import Command

HEAD = b"\xff\xff\xfd\x00"
SIGNS = [1, -1, 1, 1, 1, -1, 1]
OFFSETS = [0.1, -0.2, 0.0, 0.3, math.pi, 0.0, -math.pi]
GRIPPER = {"id": 8, "open": 0.2, "closed": -0.5}
OBS = PointEnv(num_envs=1).reset(0)


class Servos:
    """The other end of the line: Dynamixel protocol 2.0, as far as a synchronous read of positions goes."""

    def __init__(self):
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.port, self.slave = os.ttyname(slave), slave
        self.joints, self.finger, self.answers = np.array(fr3.HOME, float), 1.0, True
        threading.Thread(target=self._serve, daemon=True).start()

    def counts(self):
        told = np.array(SIGNS) * self.joints + OFFSETS
        finger = GRIPPER["closed"] + self.finger * (GRIPPER["open"] - GRIPPER["closed"])
        return np.round(np.append(told, finger) / (2 * math.pi) * 4096).astype(int).tolist()

    def _serve(self):
        with suppress(OSError):  # the line is closed
            heard = b""
            while True:
                heard += os.read(self.master, 1024)
                while len(heard) >= 7 and len(heard) >= 7 + (length := int.from_bytes(heard[5:7], "little")):
                    packet, heard = heard[: 7 + length], heard[7 + length :]
                    self._answer(packet)

    def _answer(self, packet):
        assert packet[:4] == HEAD
        assert int.from_bytes(packet[-2:], "little") == checksum(packet[:-2])
        assert packet[7:12] == bytes([0x82, 132, 0, 4, 0])  # read four bytes from 132 on, of these:
        for number in packet[12:-2] if self.answers else b"":
            status = HEAD + bytes([number, 8, 0, 0x55, 0])
            status += self.counts()[number - 1].to_bytes(4, "little", signed=True)
            os.write(self.master, status + checksum(status).to_bytes(2, "little"))

    def close(self):
        os.close(self.slave)
        os.close(self.master)


def checksum(data):
    """CRC-16 with the polynomial 0x8005."""
    total = 0
    for byte in data:
        total ^= byte << 8
        for _ in range(8):
            total = ((total << 1) ^ 0x8005 if total & 0x8000 else total << 1) & 0xFFFF
    return total


@pytest.fixture
def servos():
    with closing(Servos()) as servos:
        yield servos


@pytest.fixture
def person():
    arm = replace(PointEnv(num_envs=1).spec, command=Command("ee_delta", 7, max_translation=0.02, max_rotation=0.1))
    return Person(arm)


@pytest.fixture
def gello(servos, person):
    with closing(Gello(person, servos.port, range(1, 8), SIGNS, OFFSETS, GRIPPER)) as gello:
        yield gello


def step(person):
    person.hear(STILL)  # the page is there
    return person.act(OBS).commands[0, 0].numpy()


def taken_up(person):
    """Told where it is now, and followed from there."""
    time.sleep(0.1)
    step(person)


def test_joints_are_read_with_their_signs_and_offsets(servos, gello):
    joints, opening = gello.read()
    np.testing.assert_allclose(joints, fr3.HOME, atol=2e-3)
    assert opening == pytest.approx(1.0, abs=0.01)
    servos.joints, servos.finger = np.array([-2.0, 1.5, 0.3, -0.2, 2.5, 4.0, -2.9]), 0.25
    joints, opening = gello.read()
    np.testing.assert_allclose(joints, servos.joints, atol=2e-3)
    assert opening == pytest.approx(0.25, abs=0.01)


def test_the_robot_goes_the_way_that_it_goes_in_steps_that_are_allowed(servos, gello, person):
    taken_up(person)
    begin = fr3.frames(servos.joints)[7]
    servos.joints += np.array([0.15, 0.1, 0, 0, 0, 0, 0])
    end = fr3.frames(servos.joints)[7]
    time.sleep(0.1)
    steps = np.stack([step(person) for _ in range(12)])
    np.testing.assert_allclose(steps[:, :3].sum(0), end[:3, 3] - begin[:3, 3], atol=3e-3)
    assert np.linalg.norm(steps[:, :3], axis=1).max() <= 0.02 + 1e-6
    assert np.abs(steps[-1, :6]).max() < 2e-3  # it has arrived
    assert steps[:, 5].sum() == pytest.approx(0.15, abs=0.01)  # the base turned
    servos.finger = 0.0
    time.sleep(0.1)
    assert step(person)[6] == pytest.approx(0.0, abs=0.01)


def test_a_clutch_silence_and_a_page_that_is_gone_let_it_go(servos, gello, person):
    taken_up(person)
    servos.joints += np.array([0.15, 0.0, 0, 0, 0, 0, 0])
    time.sleep(0.1)
    person.hear({**STILL, "clutch": True})
    assert person.act(OBS).commands[0, 0, :6].tolist() == [0] * 6
    assert np.abs(step(person)[:6]).max() < 2e-3  # from where it is now, not where it was before
    servos.joints += np.array([0.15, 0.0, 0, 0, 0, 0, 0])
    time.sleep(0.1)
    person.silence()
    assert person.act(OBS).commands[0, 0, :6].tolist() == [0] * 6
    taken_up(person)
    servos.joints += np.array([0.15, 0.0, 0, 0, 0, 0, 0])
    time.sleep(0.1)
    servos.answers = False
    time.sleep(SILENCE + 0.2)
    assert np.abs(step(person)[:6]).max() == 0


def test_what_is_wrong_with_it_is_said(servos, person):
    with pytest.raises(ValueError, match=r"hand\.signs has 6 numbers, and the arm 7 joints"):
        Gello(person, servos.port, range(1, 8), SIGNS[:6], OFFSETS, GRIPPER)
    with pytest.raises(ValueError, match=r"hand\.port=/dev/none cannot be opened"):
        Gello(person, "/dev/none", range(1, 8), SIGNS, OFFSETS, GRIPPER)
    with pytest.raises(ValueError, match=r"hand\.baud=1234 is no rate"):
        Gello(person, servos.port, range(1, 8), SIGNS, OFFSETS, GRIPPER, baud=1234)
    servos.answers = False
    with pytest.raises(ValueError, match=r"not all of the servos \[1, 2, 3, 4, 5, 6, 7, 8\] answer"):
        Gello(person, servos.port, range(1, 8), SIGNS, OFFSETS, GRIPPER)


def test_it_is_made_of_its_configuration(servos, person):
    config = OmegaConf.load(f"{CONFIGS}/hand/gello.yaml")
    config.port = servos.port
    with closing(instantiate(config)(person)) as gello:
        assert gello.read() is not None
