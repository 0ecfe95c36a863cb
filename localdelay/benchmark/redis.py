"""Redis, for a comparison: a server of its own, what it says of itself, and sorted sets that are polled.

All but the server needs the extra `redis`.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

from localdelay.benchmark.comparison import queue_url
from localdelay.benchmark.result import BenchError
from localdelay.nurseries import bare_nursery
from localdelay.programs import Guarded, last_words

if TYPE_CHECKING:  # it comes with an extra, and the plans in memory have to work without it
    from localdelay.redis_plan.link import Link

_PROGRAM = "redis-server"
_START_TIMEOUT = 15.0
_POLL = 0.01
_TRIES = 3
_TIMEOUT = 5.0
_AT_ONCE = 1000


def find_server() -> str:
    """The path of the program. Raises `BenchError` where there is none."""
    found = shutil.which(_PROGRAM)
    if found is None:
        raise BenchError(
            "there is no redis-server: install it (apt-get install redis-server), give --redis URL, "
            "or compare what needs none (--only memory --only memory-literal)"
        )
    return found


async def start_server(guarded: Guarded) -> str:
    """Start a server that keeps nothing on disk, and return its URL. It ends with the guarded block.

    Raises `BenchError` where it does not start.
    """
    program, log = find_server(), guarded.directory / "redis.log"
    # The port that was free may be somebody else's by then.
    for _ in range(_TRIES):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(guarded.directory), "--logfile", str(log)]
        process = await guarded.start(command)
        with trio.move_on_after(_START_TIMEOUT):
            while process.poll() is None:
                if await _answers(port) and process.poll() is None:
                    return f"redis://127.0.0.1:{port}"
                await trio.sleep(_POLL)
        if process.poll() is None:
            break
    raise BenchError(f"redis-server does not start; {last_words(log)}")


async def _answers(port: int) -> bool:
    """Whether it takes commands, and not only connections."""
    with suppress(OSError):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"PING\r\n")
            return (await stream.receive_some(64)).startswith(b"+PONG")
    return False


@asynccontextmanager
async def open_link(server: str) -> AsyncIterator[Link]:
    """A connection to this server; `ConnectionError` where there is none."""
    from localdelay.redis_plan.link import Link
    from localdelay.redis_plan.opening import masters_of

    masters, _ = masters_of(queue_url(server, "compare"))
    link = Link(masters, b"localdelay:compare", _TIMEOUT, _TIMEOUT)
    async with bare_nursery() as nursery:
        await nursery.start(link.keep)
        try:
            yield link
        finally:
            link.end()


@attrs.frozen
class Seen:
    """Redis at one instant, since it was started."""

    cpu: float = 0.0
    """Seconds of processor time."""
    memory: int = 0
    """Bytes in use."""
    version: str = "?"

    @classmethod
    def of(cls, info: str) -> Seen:
        """What INFO's answer says."""
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        cpu = float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])
        return cls(cpu, int(fields["used_memory"]), fields.get("redis_version", "?"))


async def look(link: Link | None) -> Seen:
    """What Redis says of itself; nothing where there is none."""
    if link is None:
        return Seen()
    return Seen.of((await link.call(b"INFO")).decode(errors="replace"))


async def remove(link: Link, token: str) -> None:
    """Remove all keys with this in their names."""
    cursor = b"0"
    while True:
        cursor, keys = await link.call(b"SCAN", cursor, b"MATCH", f"*{token}*".encode(), b"COUNT", _AT_ONCE)
        if keys:
            await link.call(b"UNLINK", *keys)
        if int(cursor) == 0:
            return


POLL_EVERY = 0.2
"""Seconds."""
_LOCK_MS = 190
"""The lock of one poll is gone by the next."""
_NUMBER = 16
"""Hexadecimal digits before the payload: members of a set are all different."""


class SortedSets:
    """One instance of those who poll sorted sets in Redis behind locks.

    A message is a member of one of the sets, its score the wall clock when it is due, in milliseconds. Every
    200 ms each instance tries for the lock of each set (SETNX, with an expiry, or a crash would lock it for
    ever), and who gets it reads what is due (ZRANGE), sends each, and removes it (ZREM). All calls share
    one connection, on which those of one turn of the loop are written together.
    """

    def __init__(self, link: Link, name: str, shards: int, send: Callable[[bytes], object]) -> None:
        """`send` is called with the payload of each message that is due."""
        self._link = link
        self._keys = [f"{name}:{shard}".encode() for shard in range(shards)]
        self._send = send
        self._numbers = itertools.count(time.time_ns())

    async def put(self, payload: bytes, *, delay: float) -> None:
        """Store a message that is due in `delay` seconds. Raises as `Link.call` does."""
        number = next(self._numbers)
        due = int((time.time() + delay) * 1000) + 1
        key = self._keys[number % len(self._keys)]
        await self._link.call(b"ZADD", key, due, b"%0*x%s" % (_NUMBER, number, payload))

    async def run(self) -> None:
        """Poll all sets, each in its own time."""
        async with trio.open_nursery() as nursery:
            for number, key in enumerate(self._keys):
                nursery.start_soon(self._poll, key, POLL_EVERY * number / len(self._keys))

    async def count(self) -> int:
        """How many messages there are."""
        return sum([int(await self._link.call(b"ZCARD", key)) for key in self._keys])

    async def _poll(self, key: bytes, first: float) -> None:
        when = trio.current_time() + first
        while True:
            await trio.sleep_until(when)
            when = max(when + POLL_EVERY, trio.current_time())
            if await self._link.call(b"SET", key + b":lock", 1, b"NX", b"PX", _LOCK_MS):
                now = int(time.time() * 1000)
                for member in await self._link.call(b"ZRANGE", key, b"-inf", now, b"BYSCORE"):
                    self._send(member[_NUMBER:])
                    await self._link.call(b"ZREM", key, member)
