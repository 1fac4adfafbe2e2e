"""A SpaceMouse (3Dconnexion) in a person's hand: six axes, the left button grips, the right one is a clutch."""

import contextlib
import threading
from typing import Any

from real.person import Person

EVERY = 0.01  # seconds between looks at it
DEAD = 0.05  # of its way, within which a resting hand counts as none
NAMES = ("x", "y", "z", "roll", "pitch", "yaw")


class SpaceMouse:
    """Tells `person` what is pushed until `close`: x forward, y left, z up, and the turns about these.

    pyspacemouse (MIT) knows the devices; it needs the system's hidapi (Debian: libhidapi-hidraw0), and the user the
    right to read the device. ValueError where there is none, naming what to do.
    """

    def __init__(self, person: Person, device: Any = None):
        self.person, self.device = person, _found() if device is None else device
        self.closed, self.gripped, self.told = threading.Event(), False, -1.0
        self.looking = threading.Thread(target=self._look, daemon=True)
        self.looking.start()

    def close(self) -> None:
        self.closed.set()
        self.looking.join(1.0)
        self.device.close()

    def _look(self) -> None:
        """A device that sends nothing any more, or is not there, pushes nothing: what it said last gets too old."""
        with contextlib.suppress(Exception):  # an unplugged one raises whatever its library does
            while not self.closed.wait(EVERY):
                state = self.device.read()
                if state.t != self.told:  # when it last sent anything
                    self.told = state.t
                    self._tell(state)

    def _tell(self, state: Any) -> None:
        axes = [max(-1.0, min(1.0, getattr(state, name))) for name in NAMES]
        left, right = bool(state.buttons[0]), bool(state.buttons[-1])
        self.person.hold([x if abs(x) > DEAD else 0.0 for x in axes], clutch=right and len(state.buttons) > 1)
        if left and not self.gripped:
            self.person.grip(0.0 if self.person.opening > 0.5 else 1.0)
        self.gripped = left


def _found() -> Any:
    try:
        import pyspacemouse

        return pyspacemouse.open(axis_convention=pyspacemouse.AxisConvention.ROS)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise ValueError(
            f"hand=spacemouse: none can be opened ({error}). It needs `pip install pyspacemouse`, the "
            "system's hidapi (apt install libhidapi-hidraw0), a device, and a udev rule that lets you read it"
        ) from error
