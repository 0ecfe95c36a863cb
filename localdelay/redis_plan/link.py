"""The connection to Redis: calls, each with its reply, and the news that come in between.

There is one connection for both, so that whoever can call also hears: news can be lost only with the
connection, and then everything is looked at again. coredis packs what is called in one turn of the loop into
one write.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import trio
from coredis.exceptions import NoScriptError, ReadOnlyError

from localdelay.backoff import Backoff
from localdelay.brokers.redis import classified
from localdelay.brokers.redis_line import LARGEST, Line, Place, connect
from localdelay.nurseries import bare_nursery
from localdelay.redis_plan.errors import RedisUnreachable
from localdelay.redis_plan.scripts import ALL, Script

logger = logging.getLogger("localdelay.redis_plan")

_SETTLED = 1.0
"""Seconds. A connection that lasts for less is made again after a wait."""


class Link:
    """Keeps a connection, and makes a new one whenever it is lost. Its `keep` is to run as a task."""

    def __init__(
        self,
        place: Place,
        channel: bytes,
        *,
        connect_timeout: float,
        reply_timeout: float,
        on_news: Callable[[bytes], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._place = place
        self._channel = channel
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._on_news = on_news
        self._on_connected = on_connected
        self._line: Line | None = None
        self.largest = LARGEST
        """Bytes of an argument: Redis ends a connection on which a larger one comes."""
        self._why: Exception | None = None
        self.commands = 0
        """How many commands were sent."""
        self.connections = 0
        """How many connections were made."""

    @property
    def is_connected(self) -> bool:
        """Whether Redis can be called at this moment."""
        return self._line is not None and self._line.connection.usable

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, for as long as it is not cancelled. The first connection raises where it fails."""
        async with bare_nursery() as nursery:
            line = await connect(nursery, self._place, self._connect_timeout)
            await self._use(nursery, line)
            task_status.started()
            while True:
                begun = trio.current_time()
                await line.ended.wait()
                self._line = None
                at_once = trio.current_time() - begun >= _SETTLED
                backoff = Backoff()
                while self._line is None:
                    if not at_once:
                        await trio.sleep(backoff.next())
                    at_once = False
                    try:
                        line = await connect(nursery, self._place, self._connect_timeout)
                        await self._use(nursery, line)
                    except (ConnectionError, TimeoutError) as error:
                        logger.debug("%s", error)
                        self._why = error

    async def _use(self, nursery: trio.Nursery, line: Line) -> None:
        """Listen for news, and only then have calls go this way: what comes in meanwhile is heard."""
        try:
            nursery.start_soon(self._listen, line)
            line.connection.send_command(b"SUBSCRIBE", self._channel)
            for script in ALL:
                await self._ask(line, b"SCRIPT LOAD", (script.text,))
        except Exception as error:
            line.end()
            raise ConnectionError(f"no connection to Redis at {self._place}: {error}") from error
        self.connections += 1
        self._line, self._why, self.largest = line, None, line.largest
        self._on_connected()

    async def _listen(self, line: Line) -> None:
        try:
            async for push in line.connection.push_messages:
                if push[0] == b"message":
                    self._on_news(bytes(push[2]))  # type: ignore[arg-type]  # bytes, for nothing is decoded
        except Exception as error:  # noqa: BLE001 (it has ended, in whatever way)
            logger.debug("%s", error)
            line.connection.invalidate("no news can be heard")

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | int) -> list[Any]:
        """The reply of a script. Raises like `call`."""
        count = len(keys)
        try:
            found = await self.call(b"EVALSHA", script.digest, count, *keys, *arguments)
        except NoScriptError:  # somebody has flushed them
            found = await self.call(b"EVAL", script.text, count, *keys, *arguments)
        return found if isinstance(found, list) else [found]

    async def call(self, command: bytes, *arguments: bytes | int) -> Any:
        """The reply to one command.

        Raises `RedisUnreachable` where there is no connection, and nothing was sent; `ConnectionError` where
        it was lost before the reply; `Throttled` where there was none in time, or Redis is out of memory;
        `PermanentSendError` for what can never work; and what coredis raises for the rest.
        """
        line = self._line
        if line is None or not line.connection.usable:
            raise RedisUnreachable(f"there is no connection to Redis at {self._place}") from self._why
        return await self._ask(line, command, arguments)

    async def _ask(self, line: Line, command: bytes, arguments: tuple[bytes | int, ...]) -> Any:
        connection = line.connection
        asked = time.perf_counter()
        try:
            request = connection.create_request(
                command, *arguments, decode=False, timeout=self._reply_timeout
            )
        except Exception as error:
            unreachable = RedisUnreachable(f"the connection to Redis at {self._place} has just ended")
            raise unreachable from error
        self.commands += 1
        try:
            return await request
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
