"""A GELLO (Wu et al. 2023) in a person's hand: a small arm of Dynamixel servos with a Franka's joints, which leads."""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from real import fr3
from real.person import Person
from vla import geometry

POSITION, BYTES = 132, 4  # where a servo of the X series keeps where it is
TURN = 4096  # its counts
EVERY = 0.01  # seconds between looks at it


class Gello:
    """Tells `person` where it is until `close`; the robot follows it from where it is taken up, as far as steps allow.

    Joint i stands at `signs[i]` times what its servo tells less `offsets[i]` (radians); `gripper` has its servo's `id`
    and what that tells `open` and `closed`. dynamixel-sdk (Apache 2.0) speaks to the servos, whose torque stays off.
    ValueError for lists of other lengths than the joints, a port that cannot be opened, and servos that do not answer.
    """

    def __init__(
        self,
        person: Person,
        port: str,
        ids: Sequence[int],
        signs: Sequence[int],
        offsets: Sequence[float | int],
        gripper: Mapping[str, float | int],
        baud: int = 57_600,
    ):
        joints = len(fr3.JOINTS)
        for name, told in (("ids", ids), ("signs", signs), ("offsets", offsets)):
            if len(told) != joints:
                raise ValueError(f"hand.{name} has {len(told)} numbers, and the arm {joints} joints")
        self.person, self.ids = person, (*ids, int(gripper["id"]))
        self.signs, self.offsets = np.array(signs, float), np.array(offsets, float)
        self.closed_at, self.open_at = float(gripper["closed"]), float(gripper["open"])
        self.port, self.group = _opened(port, baud, self.ids)
        self.done = threading.Event()
        if self.read() is None:
            self.port.closePort()
            raise ValueError(f"hand.port={port} hand.baud={baud}: not all of the servos {list(self.ids)} answer")
        self.looking = threading.Thread(target=self._look, daemon=True)
        self.looking.start()

    def close(self) -> None:
        self.done.set()
        self.looking.join(1.0)
        self.port.closePort()

    def read(self) -> tuple[Float[np.ndarray, " joint"], float] | None:
        """The joints in radians and how far the gripper is open; None where not all servos answer."""
        if self.group.txRxPacket() != 0:
            return None
        counts = np.array([self.group.getData(i, POSITION, BYTES) for i in self.ids], np.uint32).view(np.int32)
        told = counts / TURN * 2 * math.pi
        opening = (told[-1] - self.closed_at) / (self.open_at - self.closed_at)
        return self.signs * (told[:-1] - self.offsets), float(np.clip(opening, 0, 1))

    def _look(self) -> None:
        """Servos that do not answer lead nowhere: what they told last gets too old."""
        while not self.done.wait(EVERY):
            if (seen := self.read()) is not None:
                self.person.lead(_tool(seen[0]), seen[1])


def _tool(joints: Float[np.ndarray, " joint"]) -> Float[torch.Tensor, "1 7"]:
    """Where the tool of a robot with these joints is: position and quaternion, base frame."""
    pose = torch.from_numpy(fr3.frames(joints)[7]).float()
    return torch.cat([pose[:3, 3], geometry.from_matrix(pose[:3, :3])])[None]


def _opened(port: str, baud: int, ids: Sequence[int]) -> tuple[Any, Any]:
    import dynamixel_sdk

    line = dynamixel_sdk.PortHandler(port)
    try:
        if not line.setBaudRate(baud):
            raise ValueError(f"hand.baud={baud} is no rate that servos have")
    except OSError as error:
        raise ValueError(
            f"hand.port={port} cannot be opened ({error}): is it plugged in, and are you allowed?"
        ) from error
    group = dynamixel_sdk.GroupSyncRead(line, dynamixel_sdk.PacketHandler(2.0), POSITION, BYTES)
    for number in ids:
        group.addParam(number)
    return line, group
