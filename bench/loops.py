"""The three worlds that contenders live in: a Trio loop, an asyncio loop, and a plain thread.

A scenario is one coroutine for all of them, and waits only by what its loop has here. In a plain thread
nothing that it awaits ever suspends it, so that one `send(None)` runs it to its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias, TypeVar

import trio

from localdelay.benchmark.load import Loop, precise_loop

World: TypeAlias = Literal["trio", "asyncio", "threads"]
_T = TypeVar("_T")


class AsyncioLoop:
    """The asyncio loop that this is made in. It sleeps to the millisecond, as all that is on it does."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self._loop.time()))

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)


class PlainThread:
    """A thread without a loop."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    async def sleep_until(self, when: float) -> None:
        time.sleep(max(0.0, when - time.perf_counter()))  # noqa: ASYNC251 (nobody else is on this thread)

    async def checkpoint(self) -> None:
        time.sleep(0)  # noqa: ASYNC251


async def on_trio(scenario: Callable[[Loop], Coroutine[Any, Any, _T]]) -> _T:
    """Run it in the Trio run that this is called in, which may have a clock of its own."""
    with precise_loop() as loop:
        return await scenario(loop)


async def on_asyncio(scenario: Callable[[Loop], Coroutine[Any, Any, _T]]) -> _T:
    """Run it in the asyncio loop that this is called in."""
    return await scenario(AsyncioLoop())


def run(world: World, scenario: Callable[[Loop], Coroutine[Any, Any, _T]]) -> _T:
    """Run it in this world."""
    if world == "trio":
        return trio.run(on_trio, scenario)
    if world == "asyncio":
        return asyncio.run(on_asyncio(scenario))
    try:
        scenario(PlainThread()).send(None)
    except StopIteration as ended:
        result: _T = ended.value
        return result
    raise RuntimeError("what runs in a plain thread has waited for a loop")
