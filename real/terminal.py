"""The operator at a terminal: what the page shows as lines, and what it takes as words."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from real.board import Board, Message

HELP = {
    "clear": "the robot goes home. Everyone clear? [enter], undo, quit",
    "scene": "set the scene. Ready? [enter], undo, quit",
    "running": "running: [enter] ends this trial, stop halts the robot",
    "fault": "the robot has stopped. Look at it, then: recover",
    "label": "what came of it? s (success), f PERCENT TAG (failure), v (does not count)",
}
PLAIN = {"clear": "clear", "scene": "ready", "running": "abort"}  # what [enter] says


class Terminal:
    """Reads lines until `close`; a line may come at any time."""

    def __init__(
        self, board: Board, lines: Iterable[str] = sys.stdin, write: Callable[[str], object] = sys.stderr.write
    ):
        self.board, self.lines, self.write = board, lines, write
        self.shown: Any = None
        self.open = True
        board.watchers.append(self._show)
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self.open = False
        self.board.watchers.remove(self._show)

    def _show(self, board: Board) -> None:
        state = board.state
        news = (state["phase"], state.get("trial"), state.get("notice"), state.get("fault"), state.get("seconds"))
        if news == self.shown:
            return
        self.shown = news
        where = f"trial {state['trial']} of {state['trials']}: " if state.get("trials") else ""
        said = [x for x in (state.get("fault"), state.get("notice")) if x]
        if state["phase"] == "countdown":
            said.append(f"starting in {state['seconds']}")
        self.write(f"{where}{'; '.join([*said, HELP.get(state['phase'], state['phase'])])}\n")

    def _read(self) -> None:
        for line in self.lines:
            if not self.open:
                return
            try:
                self.board.tell(understood(line, self.board.state))
            except ValueError as error:
                self.write(f"{error}\n")
        with contextlib.suppress(ValueError):
            self.board.tell({"say": "quit"})  # nobody can say anything any more


def understood(line: str, state: Mapping[str, Any]) -> Message:
    """What a line says in this state. ValueError if nothing."""
    word, *more = line.split() or [""]
    phase = state["phase"]
    if not word and phase in PLAIN:
        return {"say": PLAIN[phase]}
    if phase != "label" or word in ("stop", "quit"):
        return {"say": word}
    if word in ("s", "success"):
        return {"say": "label", "success": True}
    if word in ("v", "void"):
        return {"say": "label", "success": False, "void": True}
    if word not in ("f", "failure"):
        raise ValueError(HELP["label"])
    percent = more[0].rstrip("%") if more else "0"
    if not percent.isdigit():
        raise ValueError(f"how far it came is a whole number of percent, got {percent!r}")
    return {"say": "label", "success": False, "progress": int(percent), "tag": " ".join(more[1:])}
