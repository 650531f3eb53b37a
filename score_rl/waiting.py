"""What a coroutine gives, for code that is none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns, also where an event loop runs already, as in a notebook.

    Raises:
        BaseException: the first that it raised, without the groups of its tasks.
    """
    try:
        return _run(coroutine)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from anyio.from_thread import start_blocking_portal

    # A thread has at most one loop that runs; this one also ends what it waits for when the wait is interrupted.
    with start_blocking_portal() as portal:
        return portal.call(lambda: coroutine)
