"""Which of this machine's programs goes first."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Back among the others afterwards, for libraries that put the thread that calls them before all others.

    Clients of robots do, also where they fail, and so does the AV1 encoder, where the system administrator runs it: all
    that this thread begins later, training and simulators, would keep everything else on the machine from running.
    """
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
