"""The fallbacks of all worlds behind one face."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, TypeAlias

import pytest
import sniffio
import trio
import trio.testing

import localdelay
from localdelay import Message, QueueClosed, Receipt, Statistics, aio, threads
from localdelay.fallback.publishing import BaseFallback
from tests.kit.faces import Face, InThreads, OnAsyncio

SOON, NEVER = 0.02, 300.0
"""Seconds: what is due within a scene, and what is not."""


class Primary:
    """A delayed publish that raises what it is told to, as a function of either kind."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.error_of: Callable[[Message], Exception | None] = lambda message: self.error
        self.hangs = False
        self.released = threading.Event()
        """Ends what hangs in a thread."""
        self.calls: list[tuple[Message, float]] = []
        self.cancelled: list[tuple[str, object]] = []

    def call(self, message: Message, delay: float) -> str:
        if self.hangs:
            self.calls.append((message, delay))
            self.released.wait(20.0)
        return self.answer(message, delay)

    async def call_async(self, message: Message, delay: float) -> str:
        if self.hangs:
            self.calls.append((message, delay))
            if sniffio.current_async_library() == "trio":
                await trio.sleep_forever()
            await asyncio.Event().wait()
        return self.answer(message, delay)

    def answer(self, message: Message, delay: float) -> str:
        self.calls.append((message, delay))
        error = self.error_of(message)
        if error is not None:
            raise error
        return f"handle of {message.id}"

    def cancel(self, id: str, handle: object) -> None:
        self.cancelled.append((id, handle))

    async def cancel_async(self, id: str, handle: object) -> None:
        self.cancel(id, handle)


class Stage:
    """One fallback, with its primary before it and its queue behind it."""

    def __init__(self, world: World, queue: Any, sent: list[Message], primary: Primary) -> None:
        self.world = world
        self.queue = queue
        self.sent = sent
        self.primary = primary
        self.fallback: Any

    async def publish(self, payload: bytes = b"p", delay: float = NEVER, **options: Any) -> Receipt:
        """What `publish` returns; it counts once."""
        before = self.counted()
        receipt: Receipt = await self.world.now(self.fallback.publish(payload, delay=delay, **options))
        assert self.counted() == before + 1
        return receipt

    async def refused(self, error: type[Exception], **options: Any) -> Any:
        """What `publish` raises, which must be of this kind; it counts as refused, and nothing is held."""
        before, held = self.fallback.statistics(), await self.pending()
        with pytest.raises(error) as raised:
            await self.world.now(self.fallback.publish(b"p", **{"delay": NEVER, **options}))
        assert self.fallback.statistics().refused == before.refused + 1
        assert await self.pending() == held
        return raised.value

    def counted(self) -> int:
        s = self.fallback.statistics()
        assert s.local == sum(s.degraded.values()) or s.mode == "shadow"
        return int(s.primary + s.local + s.refused)

    async def pending(self) -> int:
        return await self.world.pending(self.queue)

    async def until(self, done: Callable[[], bool]) -> None:
        await self.world.face.until(done)


class World:
    """How a fallback is opened, called and waited for beside one of the faces."""

    in_memory: ClassVar[bool] = True

    def __init__(self, face: Face, kind: type[BaseFallback[Any, Any, Any]]) -> None:
        self.face = face
        self._kind = kind

    @property
    def name(self) -> str:
        return self.face.name

    def play(self, scene: Scene) -> None:
        """Run a scene to its end."""
        self.face.play(lambda _: scene(self))

    def opened(self, sent: list[Message], **options: Any) -> Any:
        """An open queue that sends into a list."""
        return self.face.opened(self.face.takes(sent.append), **options)

    def fallback(self, primary: Primary, queue: Any, **options: Any) -> BaseFallback[Any, Any, Any]:
        """A fallback of this world."""
        blocks = isinstance(self.face, InThreads)
        if options.pop("cancels", False):
            options["cancel_delayed"] = primary.cancel if blocks else primary.cancel_async
        return self._kind(primary.call if blocks else primary.call_async, queue, **options)

    async def now(self, result: Any) -> Any:
        """What a call of this world comes to."""
        return await self.face.now(result)

    async def pending(self, queue: Any) -> int:
        """How many messages a queue holds."""
        statistics: Statistics = await self.now(queue.statistics())
        return statistics.pending

    async def sleep(self, seconds: float) -> None:
        await self.face.sleep(seconds)

    @asynccontextmanager
    async def stage(self, queue: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Stage]:
        sent: list[Message] = []
        primary = Primary()
        async with self.opened(sent, **{"capacity": 20, "workers": 2, **(queue or {})}) as it:
            stage = Stage(self, it, sent, primary)
            stage.fallback = self.fallback(primary, it, **{"limit": None, **options})
            yield stage
            primary.released.set()
            with suppress(QueueClosed):  # it may be drained already
                await self.now(it.drain(0.0))


Scene: TypeAlias = Callable[[World], Coroutine[Any, Any, None]]

WORLDS = [
    World(Face(), localdelay.Fallback),
    World(InThreads(), threads.Fallback),
    World(OnAsyncio(), aio.Fallback),
]
