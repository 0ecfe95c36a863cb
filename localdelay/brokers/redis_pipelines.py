"""Sends to Redis, gathered into pipelines on one connection.

What is given between two turns of the loop goes out as one pipeline, and many pipelines may be under way:
Redis answers them in their order. To wait for each reply in a task of its own costs several times as much.
Messages of one pipeline have nothing else to do with one another: each has a reply of its own, and one that
is cancelled leaves the others alone.

    add --> [ outbox ] --hand_over--> [ under way ] --settle--> confirmed or failed
              while there is no         until Redis has
              connection or room        answered
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import trio

from localdelay.errors import Throttled
from localdelay.settling import Confirmation, caused_by

if TYPE_CHECKING:
    from coredis.connection import TCPConnection

# So much is under way at most: what Redis does not answer must not fill the memory.
_MOST_BYTES = 8 * 1024 * 1024
# So much is one pipeline at most: packing it stops the loop, and its messages are confirmed together.
_MOST_BYTES_AT_ONCE = 512 * 1024
_MOST_AT_ONCE = 250
_BYTES_BESIDES = 300
"""What a message takes besides its payload and headers, about."""
_HANGS_UP = "Protocol error"
"""Redis says so, and ends the connection a little later: nothing more is to be handed over to it."""


class Command:
    """One XADD, with the attributes that coredis reads."""

    __slots__ = ("serialized_arguments", "size")

    name = b"XADD"
    decode = False

    def __init__(self, arguments: tuple[bytes, ...], size: int) -> None:
        self.serialized_arguments = arguments
        self.size = size + _BYTES_BESIDES


class Job:
    """The messages of one `send` or `send_batch`: those from `handed` on have not been handed over yet."""

    __slots__ = ("begun", "commands", "confirmation", "handed", "positions")

    def __init__(
        self, commands: Sequence[Command], positions: Sequence[int], confirmation: Confirmation
    ) -> None:
        self.commands = commands
        self.positions = positions
        self.confirmation = confirmation
        self.handed = 0
        self.begun = trio.current_time()

    def give_up(self) -> None:
        """Nobody waits for it any more: what is not handed over yet is not sent."""
        self.commands = ()


class Reply(Protocol):
    """What coredis returns for a pipeline: awaited, a reply or an exception for each command."""

    disconnect_on_cancellation: bool

    def __await__(self) -> Any: ...


@attrs.define(eq=False)
class _Pipeline:
    """Commands that Redis has not answered yet."""

    connection: TCPConnection
    reply: Reply
    waiting: list[tuple[Confirmation, int]]
    """For each command who is to be told, and its position there."""
    size: int
    handed: float
    """When, by `time.perf_counter`, which is coredis's clock."""


class Pipelines:
    """Gathers, hands over and settles. Its `hand_over` and `settle` are to run as tasks."""

    def __init__(self, confirm_timeout: float, classified: Callable[[Exception], Exception]) -> None:
        """`classified` says what to raise for an error of coredis's."""
        self.largest = 0
        """What Redis takes in a field, in bytes."""
        self._timeout = confirm_timeout
        self._classified = classified
        self._outbox: deque[Job] = deque()
        self._under_way: deque[_Pipeline] = deque()
        self._size = 0
        self._added = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._handed = trio.lowlevel.ParkingLot()
        self._connection: TCPConnection | None = None
        self._silent: TCPConnection | None = None
        self._refusal: Callable[[], Exception] = _lost
        self._closed = False

    def add(self, commands: Sequence[Command], positions: Sequence[int], confirmation: Confirmation) -> Job:
        """Have commands sent, for the messages at these positions. Raises `ConnectionError` when closed."""
        if self._closed:
            raise _closed()
        job = Job(commands, positions, confirmation)
        self._outbox.append(job)
        self._added.unpark()
        return job

    def check_open(self) -> None:
        """Raise `ConnectionError` when closed."""
        if self._closed:
            raise _closed()

    def connected(self, connection: TCPConnection, largest: int) -> None:
        """Hand over to this connection from now on, which takes so many bytes in a field."""
        self._connection = connection
        self.largest = largest
        self._room.unpark()

    def disconnected(self) -> None:
        """The connection was lost; what is added waits for another."""
        if self._connection is not None:
            self._refusal = self._unanswered if self._connection is self._silent else _lost
            self._connection = None

    def unreachable(self, error: ConnectionError) -> None:
        """There is no other connection for now. What waits goes on to wait, unless Redis has refused it."""
        original = error.__cause__ if isinstance(error.__cause__, Exception) else error
        verdict = self._classified(original)
        # Who is let in says nothing of a message: it is not given up for it.
        throttled = isinstance(verdict, Throttled)
        kind = Throttled if throttled else ConnectionError
        self._refusal = lambda: caused_by(kind(str(error)), original)
        if throttled and not isinstance(original, TimeoutError):
            self._fail_all(self._refusal)

    def close(self) -> None:
        """Fail all that is not confirmed yet."""
        self._closed = True
        self._connection = None
        self._fail_all(_closed)
        while self._under_way:
            for confirmation, position in self._under_way.popleft().waiting:
                confirmation.settle(position, _closed())

    @trio.lowlevel.enable_ki_protection
    async def hand_over(self) -> None:
        """Hand over what is added, as soon as there is a connection and room."""
        while True:
            if self._connection is not None and not self._connection.usable:
                self.disconnected()  # who keeps the connection is about to say so
            if not self._outbox:
                await self._added.park()
            elif self._connection is None or self._size >= _MOST_BYTES:
                with trio.move_on_at(self._outbox[0].begun + self._timeout):
                    await self._room.park()
                self._fail_what_waits_too_long()
            else:
                self._hand_over_one(self._connection)
                if self._outbox:
                    await trio.lowlevel.checkpoint()  # coredis packs what it was given meanwhile

    @trio.lowlevel.enable_ki_protection
    async def settle(self) -> None:
        """Tell those who wait what Redis has answered."""
        while True:
            if not self._under_way:
                await self._handed.park()
                continue
            pipeline = self._under_way[0]
            replies = await self._replies(pipeline)
            if self._closed:
                return  # its sends know already
            self._under_way.popleft()
            self._size -= pipeline.size
            for (confirmation, position), reply in zip(pipeline.waiting, replies, strict=True):
                error = self._error(pipeline, reply) if isinstance(reply, BaseException) else None
                confirmation.settle(position, error)
            self._room.unpark()

    def _hand_over_one(self, connection: TCPConnection) -> None:
        outbox = self._outbox
        commands: list[Command] = []
        waiting: list[tuple[Confirmation, int]] = []
        size = 0
        room = min(_MOST_BYTES - self._size, _MOST_BYTES_AT_ONCE)
        while outbox and size < room and len(commands) < _MOST_AT_ONCE:
            job = outbox[0]
            if job.handed < len(job.commands):
                command = job.commands[job.handed]
                commands.append(command)
                waiting.append((job.confirmation, job.positions[job.handed]))
                size += command.size
                job.handed += 1
            if job.handed >= len(job.commands):
                outbox.popleft()
        if not commands:
            return
        reply: Reply
        try:
            reply = connection.create_request_batch(cast("Any", commands))
        except Exception as error:  # noqa: BLE001 (raised by the sends)
            # It has ended at this moment.
            for confirmation, position in waiting:
                confirmation.settle(position, caused_by(_lost(), error))
            self.disconnected()
            return
        reply.disconnect_on_cancellation = False  # a time-out looks first whether others are answered
        self._size += size
        self._under_way.append(_Pipeline(connection, reply, waiting, size, time.perf_counter()))
        self._handed.unpark()

    async def _replies(self, pipeline: _Pipeline) -> list[Any]:
        """What Redis answers; it is given up, with its connection, when Redis says nothing for too long."""
        while True:
            silent = self._silent_for(pipeline)
            if silent >= self._timeout:
                self._end_silent(pipeline.connection)
                return list(await pipeline.reply)
            with trio.move_on_after(self._timeout - silent):
                return list(await pipeline.reply)

    def _silent_for(self, pipeline: _Pipeline) -> float:
        """For how many seconds Redis has said nothing, though it was asked."""
        spoke = pipeline.connection.statistics.last_byte_received_at
        return time.perf_counter() - max(spoke, pipeline.handed)

    def _end_silent(self, connection: TCPConnection) -> None:
        """A connection that nothing comes from may be dead for ever, and holds what is under way."""
        self._silent = connection
        connection.invalidate("no answer")

    def _error(self, pipeline: _Pipeline, error: BaseException) -> Exception:
        if not isinstance(error, Exception):
            return caused_by(_lost(), error)
        if _HANGS_UP in str(error):
            pipeline.connection.invalidate(_HANGS_UP)
        verdict = self._classified(error)
        if pipeline.connection is self._silent and type(verdict) is ConnectionError:
            return self._unanswered()
        return caused_by(verdict, error)

    def _unanswered(self) -> Exception:
        text = f"Redis has not answered within {self._timeout:g} s"
        return caused_by(Throttled(text), TimeoutError(text))

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        while self._outbox:
            _fail(self._outbox.popleft(), error)

    def _fail_what_waits_too_long(self) -> None:
        error = self._refusal if self._connection is None else self._no_room
        now = trio.current_time()
        while self._outbox and now >= self._outbox[0].begun + self._timeout:
            _fail(self._outbox.popleft(), error)

    def _no_room(self) -> Exception:
        text = f"{self._size} bytes are under way to Redis, and it took no more within {self._timeout:g} s"
        return caused_by(Throttled(text), TimeoutError(text))


def _fail(job: Job, error: Callable[[], Exception]) -> None:
    for position in job.positions[job.handed : len(job.commands)]:
        job.confirmation.settle(position, error())


def _lost() -> ConnectionError:
    return ConnectionError("the connection to Redis was lost")


def _closed() -> ConnectionError:
    return ConnectionError("the connection to Redis was closed")
