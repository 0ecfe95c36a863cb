"""A queue in Redis for a test, with a sender that writes down; its books are looked at when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from localdelay import Message
from localdelay.redis_plan import RedisDelayQueue, RedisStatistics, RedisTuning, open_redis_delay_queue
from tests.kit.conserving import conserved
from tests.kit.servers.redis import RedisServer


class Sent:
    """A sender that writes down, and fails as it is told: errors in the order of the sends."""

    def __init__(self, *errors: Exception | None) -> None:
        self.messages: list[Message] = []
        self.at: list[float] = []
        self.errors = list(errors)
        self.open = trio.Event()
        self.open.set()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.at.append(trio.current_time())
        await self.open.wait()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.messages) >= count)


async def until(done: Callable[[], bool]) -> None:
    """Wait until this is so: as long as a busy machine takes, but not for ever."""
    with trio.fail_after(60):
        while not done():  # noqa: ASYNC110 (others tell nobody)
            await trio.sleep(0.005)


def tuned(**options: object) -> Any:
    """These options of `open_redis_delay_queue`, of which the knobs go into its tuning."""
    knobs = [field.name for field in attrs.fields(RedisTuning) if field.name in options]
    tuning = RedisTuning(**{name: options.pop(name) for name in knobs})  # type: ignore[arg-type]
    return {**options, "tuning": tuning}


@asynccontextmanager
async def opened(
    redis: RedisServer, given: Callable[[Message], object] | None = None, url: str = "", **options: object
) -> AsyncIterator[RedisDelayQueue]:
    usual = {"send": given or Sent(), "workers": 4, "shards": 4, "confirm_within": 0.02, "linger": 0.0}
    async with open_redis_delay_queue(url=url or redis.fresh(), **tuned(**usual | options)) as queue:
        try:
            yield queue
        finally:
            conserve(queue)
    s = conserve(queue)
    assert s.pending == 0
    assert s.closed


def conserve(queue: RedisDelayQueue) -> RedisStatistics:
    s = conserved(queue.statistics())
    assert s.lateness.clipped == 0
    return s


async def confirmed(queue: RedisDelayQueue) -> None:
    """Wait until Redis holds nothing any more."""
    with trio.fail_after(60):
        while await queue.count():  # noqa: ASYNC110
            await trio.sleep(0.01)
