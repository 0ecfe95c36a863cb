"""The queue of every world behind one face: a scene is played with each of them alike."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Event
from typing import Any, TypeAlias

import anyio
import outcome
import pytest
import trio
import uvloop
from trio.testing import MockClock

import localdelay
from localdelay import aio, threads

Act: TypeAlias = Callable[..., object]
Scene: TypeAlias = Callable[["Face"], Coroutine[Any, Any, None]]


class Started:
    """A call that runs beside the scene."""

    def __init__(self) -> None:
        self._outcome: outcome.Maybe[Any] | None = None

    async def run(self, call: Callable[[], Any]) -> None:
        self._outcome = await outcome.acapture(call)

    def done(self) -> bool:
        return self._outcome is not None

    def result(self) -> Any:
        assert self._outcome is not None
        return self._outcome.unwrap()


class Face:
    """`localdelay.open_delay_queue`, in virtual time; the others differ in what they override."""

    name = "trio"
    gate: Callable[[], Any] = trio.Event
    """Makes something to wait for and to `set`."""

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        """Run a scene to its end. Virtual time would run away while a journal's thread is busy."""
        trio.run(scene, self, clock=None if waits_for_threads else MockClock(autojump_threshold=0))

    def takes(self, act: Act, gate: Any = None) -> Any:
        """A callable of this world, for a send, a hook or a hand-back; it waits for the gate first."""

        async def call(*args: Any) -> None:
            if gate is not None:
                await gate.wait()
            act(*args)

        return call

    def calls(self, act: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        """The same as `takes`, of a scene's coroutine function."""
        return act

    def opened(self, send: Any, **options: Any) -> Any:
        """The queue, not entered yet."""
        return localdelay.open_delay_queue(send, **options)

    @asynccontextmanager
    async def open(self, send: Act | None, gate: Any = None, **options: Any) -> AsyncIterator[Any]:
        """A queue that sends by this function, of twenty messages and two workers."""
        hooks = {name: self.takes(act) for name, act in options.items() if inspect.isfunction(act)}
        options = {"capacity": 20, "workers": 2, **options, **hooks}
        async with self.opened(None if send is None else self.takes(send, gate), **options) as queue:
            yield queue

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Callable[[Callable[[], Any]], Any]]:
        """`start(call)` makes a call beside the scene."""
        async with trio.open_nursery() as nursery:

            def start(call: Callable[[], Any]) -> Started:
                started = Started()
                nursery.start_soon(started.run, call)
                return started

            yield start

    async def now(self, result: Any) -> Any:
        """What a call comes to, in a world in which some are awaited."""
        return await result if inspect.isawaitable(result) else result

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def until(self, done: Callable[[], Any]) -> None:
        for _ in range(4000):
            if await self.now(done()):
                return
            await self.sleep(0.005)
        pytest.fail("it never was so")


class InThreads(Face):
    """`localdelay.threads`: nothing is awaited, all calls block."""

    name = "threads"
    gate = Event

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        with pytest.raises(StopIteration):
            scene(self).send(None)

    def takes(self, act: Act, gate: Any = None) -> Any:
        def call(*args: Any) -> None:
            if gate is not None:
                gate.wait(20)
            act(*args)

        return call

    def calls(self, act: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        def call(*args: Any) -> Any:
            try:
                act(*args).send(None)
            except StopIteration as ended:
                return ended.value

        return call

    async def started(self, send: Any, **options: Any) -> Any:
        """A queue that ends by `close`."""
        return threads.start_delay_queue(send, **options)

    @asynccontextmanager
    async def opened(self, send: Any, **options: Any) -> AsyncIterator[Any]:
        with threads.open_delay_queue(send, **options) as queue:
            yield queue

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Callable[[Callable[[], Any]], Any]]:
        with ThreadPoolExecutor() as pool:
            yield pool.submit

    async def sleep(self, seconds: float) -> None:
        Event().wait(seconds)


class OnAsyncio(Face):
    """`localdelay.aio`, on asyncio's own loop."""

    name = "asyncio"
    gate: Callable[[], Any] = asyncio.Event

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        asyncio.run(scene(self))

    async def started(self, send: Any, **options: Any) -> Any:
        """A queue that ends by `close`."""
        return await aio.start_delay_queue(send, **options)

    def opened(self, send: Any, **options: Any) -> Any:
        return aio.open_delay_queue(send, **options)

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Callable[[Callable[[], Any]], Any]]:
        async with asyncio.TaskGroup() as group:

            def start(call: Callable[[], Any]) -> Started:
                started = Started()
                group.create_task(started.run(call))
                return started

            yield start

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class OnUvloop(OnAsyncio):
    """The same on uvloop's."""

    name = "uvloop"

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scene(self))


class AnyioOnTrio(Face):
    """`localdelay.open_delay_queue` in an anyio program, whose own events and sleeps it meets."""

    name = "anyio on trio"
    gate = anyio.Event

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        clock = None if waits_for_threads else MockClock(autojump_threshold=0)
        anyio.run(scene, self, backend="trio", backend_options={"clock": clock})

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class AnyioOnAsyncio(OnAsyncio):
    """`localdelay.aio` in one."""

    name = "anyio on asyncio"
    gate = anyio.Event

    def play(self, scene: Scene, *, waits_for_threads: bool = False) -> None:
        anyio.run(scene, self, backend="asyncio")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


FACES = [Face(), InThreads(), OnAsyncio(), OnUvloop(), AnyioOnTrio(), AnyioOnAsyncio()]
