"""The clients without localdelay: what `bench.brokers` compares with. One module a broker.

Each has `bare`, the fastest there is, and where nobody waits for anything in that one, `awaited`: the same
client for a program that does, task by task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Protocol

import attrs
import trio


@attrs.frozen
class Sent:
    """What one run came to."""

    seconds: float
    """From the first publish to the last confirmation; connecting and closing are left out."""
    times: list[float]
    """How long each publish, or each batch, took until it was confirmed, in seconds."""


class Bare(Protocol):
    """`bare` of each module here."""

    def __call__(self, url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
        """Publish `count` messages by the plainest program that a good user of this client would write.

        Each is confirmed. At most `at_once` publishes are under way at any time; with `batch`, each publish
        is one of so many messages, in the way in which this client and its protocol do it best.
        """


def on_asyncio(publish: Callable[..., Coroutine[Any, Any, Sent]]) -> Bare:
    """A coroutine function as a `Bare`."""
    return lambda *to, **load: asyncio.run(publish(*to, **load))


def on_trio(publish: Callable[..., Coroutine[Any, Any, Sent]]) -> Bare:
    """The same on Trio."""
    return lambda *to, **load: trio.run(partial(publish, *to, **load))


def batch_of(size: int, times: list[float], ended: Callable[[], object]) -> Callable[[], None]:
    """What is called for each of so many messages once it is confirmed; `ended` follows the last of them."""
    left, begun = size, time.perf_counter()

    def confirmed() -> None:
        nonlocal left
        left -= 1
        if not left:
            times.append(time.perf_counter() - begun)
            ended()

    return confirmed


async def in_tasks(
    publish: Callable[[], Awaitable[object]], *, count: int, at_once: int, batch: int = 1
) -> Sent:
    """So many asyncio tasks publish, and each waits until what it has published is confirmed."""
    times: list[float] = []
    turns = iter(range(count // batch))

    async def together() -> None:
        await asyncio.gather(*[publish() for _ in range(batch)])

    turn = publish if batch == 1 else together
    begun = time.perf_counter()
    await asyncio.gather(*[_in_turn(turn, turns, times) for _ in range(at_once)])
    return Sent(time.perf_counter() - begun, times)


async def in_nursery(publish: Callable[[], Awaitable[object]], *, turns: int, at_once: int) -> Sent:
    """The same on Trio."""
    times: list[float] = []
    left = iter(range(turns))
    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(_in_turn, publish, left, times)
    return Sent(time.perf_counter() - begun, times)


async def _in_turn(
    publish: Callable[[], Awaitable[object]], turns: Iterator[int], times: list[float]
) -> None:
    for _ in turns:
        begun = time.perf_counter()
        await publish()
        times.append(time.perf_counter() - begun)
