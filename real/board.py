"""What the runner shows to whoever operates it, and what they say: the same for a page, a terminal and no person."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import UInt8

Message = Mapping[str, Any]
QUALITY = 80  # of the pictures


class Quit(Exception):
    """The operator ends the session."""


class Board:
    """`state` is plain values for JSON, `pictures` JPEGs. Watchers are called, with the board, after each change.

    `stop` halts whatever moves. With `alone` nobody is waited for: it answers, given the state.
    """

    SAYINGS: ClassVar[Sequence[str]] = ("clear", "ready", "label", "undo", "recover", "quit")  # each is waited for
    ACTING: ClassVar[Sequence[str]] = ("abort", "stop")  # at once

    def __init__(self, stop: Callable[[str], None] = lambda _: None, alone: Callable[[Message], Message] | None = None):
        self.state: dict[str, Any] = {"phase": "starting", "notice": ""}
        self.pictures: dict[str, bytes] = {}
        self.version = 0
        self.watchers: list[Callable[[Board], None]] = []
        self.aborted = threading.Event()
        self.stop, self.alone = stop, alone
        self.heard: queue.Queue[Message] = queue.Queue()

    def show(self, **changes: Any) -> None:
        self.state = {**self.state, **changes}
        self.version += 1
        for watcher in self.watchers:
            watcher(self)

    def picture(self, pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]]) -> None:
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        encoded = {k: cv2.imencode(".jpg", x[..., ::-1], options)[1].tobytes() for k, x in pictures.items()}
        self.pictures = {**self.pictures, **encoded}
        self.version += 1

    def tell(self, message: Message) -> None:
        """From the operator, of any thread. ValueError for what is not understood."""
        say = message.get("say")
        if say not in (*self.SAYINGS, *self.ACTING):
            raise ValueError(f"say one of {', '.join((*self.SAYINGS, *self.ACTING))}, got {say!r}")
        if say in self.ACTING:
            self.aborted.set()
        if say == "stop":
            self.stop("the operator stopped it")
        if say in self.SAYINGS:
            self.heard.put(message)

    def gone(self) -> None:
        """Nobody operates any more: a page was closed, or the network is down."""

    def wait(self, *wanted: str, meanwhile: Callable[[], None] = lambda: None, every: float = 0.1) -> Message:
        """The next message that says one of `wanted`; others are told to be out of place. Quit if that is said."""
        if self.alone is not None:
            return self.alone(self.state)
        while True:
            try:
                message = self.heard.get(timeout=every)
            except queue.Empty:
                meanwhile()
                continue
            if message["say"] == "quit":
                raise Quit
            if message["say"] in wanted:
                self.show(notice="")
                return message
            self.show(notice=f"{message['say']} is not possible now: {' or '.join(wanted)}")


def without_a_person(state: Message) -> Message:
    """What an operator would say who trusts the simulator's verdict."""
    says = {"clear": "clear", "scene": "ready", "fault": "recover", "label": "label"}
    return {"say": says[state["phase"]], "success": bool(state.get("verdict"))}
