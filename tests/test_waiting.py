"""Coroutines that are waited for, with and without a loop that runs already."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import TypeVar

import pytest

from score_rl.waiting import wait_for

T = TypeVar("T")


def plainly(call: Callable[[], T]) -> T:
    return call()


def in_a_notebook(call: Callable[[], T]) -> T:
    """As a cell is run: by a function that a running loop has called, with Python's own answer to Ctrl-C."""

    async def cell() -> T:
        return call()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


async def fail() -> None:
    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
        outer.create_task(asyncio.Event().wait())

        async def one() -> None:
            raise KeyError("inner") from ValueError("cause")

        inner.create_task(one())


PLACES = pytest.mark.parametrize("place", [plainly, in_a_notebook])


@PLACES
def test_what_a_coroutine_returns(place: Callable[[Callable[[], int]], int]):
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    assert place(lambda: wait_for(add(2, 3))) == 5


@PLACES
def test_the_first_error_comes_out_of_all_groups_with_its_cause(place: Callable[[Callable[[], None]], None]):
    with pytest.raises(KeyError, match="inner") as found:
        place(lambda: wait_for(fail()))
    assert isinstance(found.value.__cause__, ValueError)


@PLACES
def test_ctrl_c_ends_the_wait_and_what_was_waited_for(place: Callable[[Callable[[], None]], None]):
    ended = []

    async def hang() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        place(lambda: wait_for(hang()))
    assert ended == [True]
