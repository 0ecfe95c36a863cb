"""The connection to Redis: calls, each with its reply, and the news that come in between.

There is one connection for both, so that whoever can call also hears: news can be lost only with the
connection, and then everything is looked at again. coredis packs what is called in one turn of the loop into
one write.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import trio
from coredis.exceptions import NoScriptError, ReadOnlyError

from localdelay.backoff import Backoff
from localdelay.brokers.redis import classified
from localdelay.brokers.redis_line import LARGEST, Line, no_connection, reached
from localdelay.brokers.redis_masters import Masters
from localdelay.errors import Throttled
from localdelay.nurseries import bare_nursery
from localdelay.redis_plan.clock import RedisClock

Script: TypeAlias = tuple[bytes, bytes]
"""A script, and the name that Redis knows it by."""

logger = logging.getLogger("localdelay.redis_plan")

_SETTLED = 1.0
"""Seconds. A connection that lasts for less is made again after a wait."""

_COPIED = 0.5
"""Seconds that replicas have to copy a write. All calls on the connection wait meanwhile."""
_SHORT = 1.0
"""Seconds for which nothing is written that replicas are to have, after they have not had it in time."""


@attrs.define
class Copies:
    """How many replicas are to have what a command writes, and how many had it in time."""

    wanted: int
    made: int = 0


class RedisUnreachable(Throttled, ConnectionError):
    """There is no connection to Redis at this moment, and nothing was sent.

    It is a `Throttled`, for a `Fallback` may hold the message without a doubt: Redis does not have it.
    A connection that is lost with a put under way is a mere `ConnectionError`: nobody can tell.
    """


class Link:
    """Keeps a connection, and makes a new one whenever it is lost. Its `keep` is to run as a task."""

    def __init__(self, masters: Masters, channel: bytes, connects: float, replies: float) -> None:
        """`connects` and `replies` are the most seconds that these may take."""
        self._masters = masters
        self._where = masters.where
        self._channel = channel
        self._connects = connects
        self._replies = replies
        self.whole: Link | None = None
        """The cluster that it is a part of: it is tried again then where the first time fails."""
        self.on_news: Callable[[bytes, Link], None] = lambda *_: None
        self.on_connected: Callable[[], None] = lambda: None
        self._scope = trio.CancelScope()
        self._line: Line | None = None
        self._short_until = -math.inf
        self._why: Exception | None = None
        self.clock = RedisClock()
        self.largest = LARGEST
        """Bytes of an argument: Redis ends a connection on which a larger one comes."""
        self.commands = 0
        """How many commands were sent."""
        self.connections = 0
        """How many connections were made."""

    @property
    def is_connected(self) -> bool:
        """Whether Redis can be called at this moment."""
        return self._line is not None and self._line.usable

    def serves(self, key: bytes, link: Link) -> bool:
        """Whether what is said of this key on this link is what its calls would hear."""
        return True

    def clock_of(self, key: bytes) -> RedisClock:
        """The clock that the instants in this key are on."""
        return self.clock

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, until `end` is called. The first connection raises where it fails.

        It is kept also while all around is cancelled: what is claimed is then given back.
        """
        backoff = Backoff()
        with self._scope:
            while True:
                self._stood_since = math.inf
                try:
                    await self._live(task_status)
                except Exception as error:
                    slow = trio.TooSlowError(f"no answer within {self._connects:g} s")
                    shown = slow if isinstance(error, trio.TooSlowError) else error
                    self._why = no_connection(self._where, shown)
                    if not (self.connections or self.whole):
                        raise self._why from error
                    logger.debug("%s", self._why)
                finally:
                    self._line = None
                if trio.current_time() - self._stood_since >= _SETTLED:
                    backoff.reset()
                await trio.sleep(backoff.next())

    def end(self) -> None:
        """It is needed no longer."""
        self._scope.cancel()

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and have calls go this way until the connection is lost. Raises where there is none."""
        with trio.fail_after(self._connects) as scope:
            place = await self._masters.owner(b"")
            async with reached(place) as line, bare_nursery() as nursery:
                # First it listens for news, so that what comes in between is heard.
                nursery.start_soon(self._listen, line)
                line.send_command(b"SUBSCRIBE", self._channel)
                seconds, micro = await line.create_request(b"TIME", decode=False)
                scope.deadline = math.inf
                self._stood_since = trio.current_time()
                self.clock.forget()  # it may be another Redis
                self.clock.observe(int(seconds) * 1_000_000 + int(micro), self._stood_since)
                self.connections += 1
                self._line, self._why, self.largest = line, None, line.largest
                self.on_connected()
                if self.connections == 1:
                    task_status.started()
                    # Who opens it may be cancelled by now, and still waits: this must not go on, shielded.
                    await trio.lowlevel.checkpoint_if_cancelled()
                self._scope.shield = self.whole is None
                await line.ended.wait()
                nursery.cancel_scope.cancel()

    async def _listen(self, line: Line) -> None:
        try:
            async for push in line.push_messages:
                if push[0] == b"message":
                    self.on_news(bytes(push[2]), self)  # type: ignore[arg-type]  # bytes, for nothing is decoded
        except Exception as error:  # noqa: BLE001 (it has ended, in whatever way)
            logger.debug("%s", error)
            line.invalidate("no news can be heard")

    async def run(self, script: Script, keys: Sequence[bytes], *arguments: bytes | int, **how: Any) -> Any:
        """The reply of a script. Raises like `call`, whose options are `how`."""
        text, name = script
        rest = (len(keys), *keys, *arguments)
        try:
            return await self.call(b"EVALSHA", name, *rest, **how)
        except NoScriptError:  # it does not know them yet, or somebody has flushed them
            return await self.call(b"EVAL", text, *rest, **how)

    async def call(
        self, command: bytes, *arguments: bytes | int, asking: bool = False, copies: Copies | None = None
    ) -> Any:
        """The reply to one command; `asking` is for a Cluster.

        With `copies` it comes once so many replicas have what the command wrote, or after `_COPIED`: how many
        have it then stands there. That is no error here, for Redis has done it, and its reply counts.

        Raises `RedisUnreachable` where there is no connection, and nothing was sent; `ConnectionError` where
        it was lost before the reply; `Throttled` where there was none in time, Redis is out of memory, or
        replicas were missing a moment ago; `PermanentSendError` for what can never work; and what coredis
        raises for the rest.
        """
        unreachable = RedisUnreachable(f"there is no connection to {self._where}")
        if self._line is None:
            raise unreachable from self._why
        if copies and trio.current_time() < self._short_until:
            raise RedisUnreachable(f"{self._where} had no {copies.wanted} replicas just now")
        connection = self._line
        options: Any = {"decode": False, "timeout": self._replies}
        asked = time.perf_counter()
        try:
            # In one go: `ASKING` is for the next command, and `WAIT` for all before it on this connection.
            if asking:
                connection.create_request(b"ASKING", **options)
            request = connection.create_request(command, *arguments, **options)
            if copies:
                within = math.ceil(1000 * min(_COPIED, self._replies / 4))
                copied = connection.create_request(b"WAIT", copies.wanted, within, **options)
        except Exception as error:
            raise unreachable from error  # it has just ended
        (self.whole or self).commands += 1 + asking + bool(copies)
        try:
            reply = await request
            if command.startswith(b"EVAL") and isinstance(reply, list):  # scripts say first when that was
                self.clock.observe(reply[0], trio.current_time())
            if copies:
                copies.made = int(await copied)
                if copies.made < copies.wanted:
                    self._short_until = trio.current_time() + _SHORT
            return reply
        except NoScriptError:
            raise
        except ReadOnlyError as error:
            connection.invalidate("it is of no use any more")  # and the next one is to a master
            raise ConnectionError("Redis has become a replica, and takes no writes (READONLY)") from error
        except Exception as error:
            if isinstance(error, TimeoutError) and connection.statistics.last_byte_received_at < asked:
                connection.invalidate("no answer")  # it may be dead for ever
            verdict = classified(error)
            if verdict is error:
                raise
            raise verdict from error
