"""SIGINT and SIGTERM as a wish to stop that is granted at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
def heeding_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Yields a request that SIGINT or SIGTERM fills; a second one kills as usual.

    Outside the main thread, which alone may handle signals, nothing fills it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, old[signal.Signals(number)])
        say("finishing this step, then saving (once more to stop at once)")

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
