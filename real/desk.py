"""The board of whoever teleoperates: what is pushed goes to the person's input at once, the rest waits its turn."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from real.board import Board, Message
from real.person import Person


class Desk(Board):
    """A board that hears a person's input; when their page is gone nothing is pushed any more."""

    SAYINGS: ClassVar[Sequence[str]] = ("clear", "record", "skip", "label", "undo", "recover", "retry", "quit")
    ACTING: ClassVar[Sequence[str]] = ("end", "stop")

    def __init__(self, stop: Callable[[str], None], person: Person):
        super().__init__(stop)
        self.person = person

    def tell(self, message: Message) -> None:
        """From the operator, of any thread. ValueError for what is not understood."""
        say = message.get("say")
        if say == "input":
            self.person.hear(message)
        elif say == "grip":
            self.person.grip(float(message.get("opening", math.nan)))
        elif say == "take":
            self.person.take(over=bool(message.get("over")))
        else:
            super().tell(message)

    def gone(self) -> None:
        self.person.silence()
