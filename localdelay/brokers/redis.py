"""Redis streams, by coredis, which runs on Trio. Needs the extra `redis`; Redis 6.0 or later.

In a Redis Cluster a stream has one master at a time, and the connection is to that one. Who says that it is
not the one (any more) has not taken the message: it goes to the next connection, with all that came after it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
from coredis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    MovedError,
    RedisError,
    ResponseError,
    UnknownCommandError,
    WrongTypeError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.redis_line import LARGEST, QUOTES, Line, Place, reached
from localdelay.brokers.redis_masters import Masters, masters_of
from localdelay.brokers.wire import headers_of
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message

PAYLOAD = "payload"
ESCAPE = "header:"

_PERMANENT = {
    WrongTypeError: "WRONGTYPE",
    AuthorizationError: "NOPERM",
    AuthenticationError: "access refused",
    UnknownCommandError: "ERR",
}
_TOO_LARGE = ("invalid bulk length", "elements are too large", "string exceeds maximum allowed size")
_TOO_MANY_CLIENTS = "max number of clients reached"
_HANGS_UP = "Protocol error"
_ASKS = 1.0
"""Seconds for which a node is taken to be getting a slot; it says itself where it has not got it by then."""


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's.

    `Throttled`, `PermanentSendError`, a `ConnectionError` for what says that the connection has ended, or the
    error itself. A `TimeoutError` is `Throttled`, though Redis may have done what it was asked.
    """
    text = str(error)
    if isinstance(error, TimeoutError) or text.startswith("OOM ") or text.endswith(_TOO_MANY_CLIENTS):
        return Throttled(text)
    if isinstance(error, ResponseError):
        for kind, word in _PERMANENT.items():
            if isinstance(error, kind):
                # What follows is the beginning of the payload.
                error.args = (text.partition(QUOTES)[0],)
                return PermanentSendError(f"{word}: {error}")
        if any(sign in text.lower() for sign in _TOO_LARGE):
            return PermanentSendError(text)
        return error
    if isinstance(error, ConnectionError | BusyLoadingError):
        return error
    if isinstance(error, RedisConnectionError | InvalidResponse) or not isinstance(error, RedisError):
        return ConnectionError(f"the connection to Redis was lost: {text or type(error).__name__}")
    return error


def escaped(name: str) -> str:
    """The field that a header of this name becomes."""
    return ESCAPE + name if name == PAYLOAD or name.startswith(ESCAPE) else name


class Command(NamedTuple):
    """One command of a pipeline, with the attributes that coredis reads."""

    serialized_arguments: tuple[bytes, ...]
    name: bytes = b"XADD"
    decode: bool = False


_ASKING = Command((), b"ASKING")
"""What a node that is getting a slot is to hear before each command for it."""


class _Connection:
    """Hands over pipelines, many at a time, and settles what Redis answers, in its order."""

    def __init__(self, line: Line, outbox: Outbox, masters: Masters, *, asks: bool) -> None:
        """`asks` is for a slot that is on its way to it."""
        self._line = line
        self._outbox = outbox
        self._masters = masters
        self._asks_until = trio.current_time() + _ASKS if asks else -math.inf
        self._under_way: deque[tuple[Any, Sequence[Parcel]]] = deque()
        self._refused: list[Parcel] = []
        self._kept: list[Parcel] = []
        self._ends: Exception | None = None
        self._handed = trio.lowlevel.ParkingLot()
        self.named: tuple[Place, bool] | None = None
        """Which node it has named instead, and whether the slot is still on its way there."""

    @property
    def heard(self) -> float:
        """When a byte has come last, on Trio's clock; coredis notes it on another."""
        return trio.current_time() - time.perf_counter() + self._line.statistics.last_byte_received_at

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Hand over one pipeline, or keep it for the next connection where this one is of no use."""
        if not self._line.usable:
            raise ConnectionError("it has ended")
        if self._ends is not None:
            self._kept += parcels
            return
        commands = [parcel.content for parcel in parcels]
        if trio.current_time() < self._asks_until:
            commands = [one for command in commands for one in (_ASKING, command)]
        reply = self._line.create_request_batch(commands)
        reply.disconnect_on_cancellation = False
        self._under_way.append((reply, parcels))
        self._handed.unpark()

    async def lost(self) -> Exception:
        """Settle what is answered; why nothing is any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle)
            await self._line.ended.wait()
            await trio.lowlevel.checkpoint()  # what was answered before is settled still
            nursery.cancel_scope.cancel()
        return self._ends or ConnectionError("it has closed the connection")

    async def _settle(self) -> None:
        """Settle what Redis answers; end the connection once it is of no use and nothing is under way."""
        try:
            while self._under_way or self._ends is None:
                while not self._under_way:
                    await self._handed.park()
                reply, parcels = self._under_way.popleft()
                answers = await reply
                each = len(answers) // len(parcels)
                for parcel, said in zip(parcels, answers[each - 1 :: each], strict=True):
                    self._judge(parcel, said)
        finally:
            self._line.invalidate("it is of no use any more")  # before anything is written again
            self._outbox.again((*self._refused, *self._kept))
            self._line.end()

    def _judge(self, parcel: Parcel, said: Any) -> None:
        if not isinstance(said, Exception):
            parcel.settle()
        elif isinstance(said, self._masters.refusals):
            self._refused.append(parcel)
            self._ends = ConnectionError(f"it takes no more of these ({type(said).__name__}: {said})")
            if isinstance(said, AskError):
                self.named = self._masters.at(said.host, said.port), not isinstance(said, MovedError)
        elif isinstance(said, RedisConnectionError) and not isinstance(said, BusyLoadingError):
            self._ends = self._ends or said  # and the publisher says of the rest that it is lost
        else:
            parcel.settle(said)
            if _HANGS_UP in str(said):
                self._ends = said  # it ends the connection a little later: nothing more is for it


class _Driver(Driver):
    no_delay = "Redis has no delayed publish"
    in_order = True
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self._masters, stream = masters_of(where)
        self.where = self._masters.where
        self._named: tuple[Place, bool] | None = None
        most = where.count("max_length", 0)
        trim = (b"MAXLEN", b"~", b"%d" % most) if most else ()
        self._head = (stream.encode(), *trim, b"*")
        self._largest = LARGEST

    def encode(self, message: Message, delay: float | None, now: float) -> Command:
        fields = [PAYLOAD.encode(), message.payload]
        for name, value in headers_of(message, now).items():
            fields += (escaped(name).encode(), value.encode())
        longest = max(map(len, fields))
        if longest > self._largest:
            # Redis would not just refuse it: it would end the connection.
            raise PermanentSendError(f"{longest} bytes in a field; this server takes {self._largest} at most")
        return Command((*self._head, *fields))

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Connection]:
        masters, named, self._named = self._masters, self._named, None
        self.where = masters.where
        place, asks = named or (await masters.owner(self._head[0]), False)
        if [place] != masters.places:
            self.where = f"{masters.where} (node {place})"
        async with reached(place) as line:
            self._largest = line.largest
            connection = _Connection(line, outbox, masters, asks=asks)
            try:
                yield connection
            finally:
                self._named = connection.named


driver_at = _Driver
