"""The broker killed, frozen, throttling, and refusing for good, while messages fall due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from urllib.parse import urlsplit

import trio

from localdelay.brokers import open_broker
from tests.kit.faults.counting import Count, count, in_redis
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, directory, redis
from tests.kit.faults.underway import Books, under_way
from tests.kit.servers.redis import RedisServer

CONFIRM_TIMEOUT = 1.0
"""Seconds; some freezes take longer, and then nobody knows what was taken."""

Happening = Callable[[RedisServer, str, Random, int], Awaitable[object]]


def broken(fault: str, scale: Scale, *, happening: Happening, cycles: int, journal: bool) -> Row:
    """Do it so many times while a queue sends, and read what the broker then has."""
    draws, watch = scale.random(fault), Watch()
    with redis() as server, directory() as place:
        url = server.fresh()

        async def main() -> Books:
            async with open_broker(url, confirm_timeout=CONFIRM_TIMEOUT) as broker:
                return await under_way(
                    broker,
                    lambda: happening(server, url, draws, cycles),
                    journal=place / "journal" if journal else None,
                    draws=draws,
                )

        books = trio.run(main)
        counted = count(books.accepted, in_redis(server, url), told=books.dead)
    return row_of(fault, cycles, books, counted, watch)


def row_of(fault: str, cycles: int, books: Books, counted: Count, watch: Watch) -> Row:
    """The row; of each send that failed in doubt there may be a copy."""
    wrong = list(books.wrong)
    if counted.both:
        wrong.append(f"{counted.both} are dead, and have arrived")
    if not books.failed:
        wrong.append("nothing failed: it was not done while messages fell due")
    return Row.of(
        fault,
        counted,
        watch,
        cycles=cycles,
        accepted=len(books.accepted),
        allowed_duplicates=books.ambiguous,
        notes=f"{books.failed} sends failed" + f", {len(books.dead)} dead letters" * bool(books.dead),
        wrong=wrong,
    )


async def _in_thread(work: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(work)


async def killed(server: RedisServer, url: str, draws: Random, cycles: int) -> None:
    """SIGKILL in the midst of sends, and started again with what it had on disk."""
    for _ in range(cycles):
        await trio.sleep(draws.uniform(0.3, 0.9))
        await _in_thread(server.freeze)
        await trio.sleep(0.1)  # by then something has fallen due, and is being sent
        await _in_thread(server.kill)
        await trio.sleep(draws.uniform(0.1, 0.5))
        await _in_thread(server.restart)
    await trio.sleep(0.3)


async def frozen(server: RedisServer, url: str, draws: Random, cycles: int) -> None:
    """SIGSTOP, every second time for longer than a send waits for its confirmation."""
    for cycle in range(cycles):
        await trio.sleep(draws.uniform(0.3, 0.6))
        await _in_thread(server.freeze)
        await trio.sleep(CONFIRM_TIMEOUT * (draws.uniform(1.2, 2.2) if cycle % 2 == 0 else 0.5))
        server.thaw()
    await trio.sleep(0.3)


async def throttling(server: RedisServer, url: str, draws: Random, cycles: int) -> None:
    """Out of memory, and with memory again."""
    await _limited(lambda: server.throttled(url), draws, cycles)


async def refusing(server: RedisServer, url: str, draws: Random, cycles: int) -> None:
    """A key that holds no stream: what falls due meanwhile is given up on."""
    await trio.sleep(0.2)  # there must be a stream to put away
    await _limited(lambda: _no_stream(server, url), draws, cycles)


async def _limited(limit: Callable[[], AbstractContextManager[None]], draws: Random, cycles: int) -> None:
    for _ in range(cycles):
        await trio.sleep(draws.uniform(0.2, 0.6))
        limited = limit()
        await _in_thread(limited.__enter__)
        await trio.sleep(draws.uniform(0.3, 0.8))
        await trio.to_thread.run_sync(limited.__exit__, None, None, None)
    await trio.sleep(0.3)


@contextmanager
def _no_stream(server: RedisServer, url: str) -> Iterator[None]:
    stream = urlsplit(url).path[1:]
    # Each change in one transaction: between two commands an entry could come, and be put away with the key.
    with server.client() as client:
        client.pipeline(transaction=True).rename(stream, "away").set(stream, "no stream").execute()
        try:
            yield
        finally:
            client.pipeline(transaction=True).delete(stream).rename("away", stream).execute()
