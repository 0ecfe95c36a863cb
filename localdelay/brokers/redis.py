"""Redis streams, by coredis, which runs on Trio. Needs the extra `redis`; Redis 6.0 or later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    ReadOnlyError,
    RedisError,
    ResponseError,
    UnknownCommandError,
    WrongTypeError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.redis_line import LARGEST, QUOTES, Line, place_of, reach
from localdelay.brokers.wire import headers_of
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message
from localdelay.nurseries import bare_nursery

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


def fields_of(message: Message) -> tuple[list[bytes], int]:
    """What an entry has besides the payload: names and values; and the longest of them, in bytes."""
    fields: list[bytes] = []
    for name, value in headers_of(message).items():
        fields += (escaped(name).encode(), value.encode())
    return fields, max(map(len, fields))


def escaped(name: str) -> str:
    """The field that a header of this name becomes."""
    return ESCAPE + name if name == PAYLOAD or name.startswith(ESCAPE) else name


class Command:
    """One XADD, with the attributes that coredis reads."""

    __slots__ = ("serialized_arguments",)

    name = b"XADD"
    decode = False

    def __init__(self, arguments: tuple[bytes, ...]) -> None:
        self.serialized_arguments = arguments


class _Connection:
    """Hands over pipelines, many at a time, and settles what Redis answers, in its order."""

    def __init__(self, line: Line, outbox: Outbox) -> None:
        self._line = line
        self._client = line.connection
        self._outbox = outbox
        self._under_way: deque[tuple[Any, Sequence[Parcel]]] = deque()
        self._handed = trio.lowlevel.ParkingLot()

    @property
    def heard(self) -> float:
        """When a byte has come last, on Trio's clock; coredis notes it on another."""
        return trio.current_time() - time.perf_counter() + self._client.statistics.last_byte_received_at

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Hand over one pipeline."""
        if not self._client.usable:
            raise ConnectionError("it has ended")
        reply = self._client.create_request_batch([parcel.content for parcel in parcels])
        reply.disconnect_on_cancellation = False
        self._under_way.append((reply, parcels))
        self._handed.unpark()

    async def lost(self) -> Exception:
        """Settle what is answered; why nothing is any more."""
        reason: list[Exception] = [ConnectionError("it has closed the connection")]

        async def settle() -> None:
            reason[0] = await self._settle()
            self._line.end()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            await self._line.ended.wait()
            await trio.lowlevel.checkpoint()  # what was answered before is settled still
            nursery.cancel_scope.cancel()
        return reason[0]

    async def _settle(self) -> Exception:
        while True:
            while not self._under_way:
                await self._handed.park()
            reply, parcels = self._under_way.popleft()
            ends: Exception | None = None
            untaken: list[Parcel] = []
            for parcel, said in zip(parcels, await reply, strict=True):
                if isinstance(said, ReadOnlyError):
                    ends = ConnectionError("it has become a replica, and takes no writes (READONLY)")
                    untaken.append(parcel)
                elif isinstance(said, RedisConnectionError) and not isinstance(said, BusyLoadingError):
                    ends = said  # and the publisher says of the rest that it is lost
                elif isinstance(said, Exception):
                    parcel.settle(said)
                    if _HANGS_UP in str(said):
                        ends = said  # it ends the connection a little later: nothing more is for it
                else:
                    parcel.settle()
            if ends is not None:
                self._client.invalidate("it is of no use any more")  # before anything is written again
                self._outbox.again(untaken)
                return ends


class _Driver(Driver):
    no_delay = "Redis has no delayed publish"
    in_order = True
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self._place = place_of(where)
        self.where = f"Redis at {self._place}"
        most = where.count("max_length", 0)
        trim = (b"MAXLEN", b"~", b"%d" % most) if most else ()
        self._head = (where.target.encode(), *trim, b"*", PAYLOAD.encode())
        self._largest = LARGEST

    def encode(self, message: Message, delay: float | None) -> Command:
        fields, longest = fields_of(message)
        longest = max(longest, len(message.payload))
        if longest > self._largest:
            # Redis would not just refuse it: it would end the connection.
            raise PermanentSendError(f"{longest} bytes in a field; this server takes {self._largest} at most")
        return Command((*self._head, message.payload, *fields))

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Connection]:
        async with bare_nursery() as nursery:
            line = await reach(nursery, self._place)
            self._largest = line.largest
            try:
                yield _Connection(line, outbox)
            finally:
                line.end()


driver_at = _Driver
