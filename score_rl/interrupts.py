"""SIGINT and SIGTERM as a wish to stop that is granted at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from score_rl.errors import ProcessLost
from score_rl.processes import Group


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, and the run was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Holds the number of the signal that has arrived; None so far."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def heeding_signals(say: Callable[[str], None], group: Group) -> Iterator[StopRequest]:
    """Yields a request that SIGINT or SIGTERM fills; a second one kills as usual.

    A launcher sends SIGTERM to those that are left when one of its processes has died. So a process that has lost
    another stops at once, and ignores the signal from then on: it is leaving, and has yet to say why.

    Outside the main thread, which alone may handle signals, nothing fills it.

    Raises:
        ProcessLost: a signal came and a process of the group is gone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, after[signal.Signals(number)])
        if group.has_lost_one():
            raise ProcessLost("another process of the run is gone")
        say("finishing this step, then saving (once more to stop at once)")

    after = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in after:
        signal.signal(number, ask)
    try:
        yield request
    except ProcessLost:
        after[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in after.items():
            signal.signal(number, handler)
