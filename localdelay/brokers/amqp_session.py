"""A connection of pika's on the Trio loop, with two channels: what is delayed has one of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pika
import pika.exceptions
import trio
from pika import frame
from pika.adapters.select_connection import SelectConnection

from localdelay.brokers import amqp_errors
from localdelay.brokers.amqp_channel import Channel, Target
from localdelay.brokers.amqp_loop import Loop, logger, quiet
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.nurseries import bare_nursery

_CLOSE_GRACE = 1.0
_TURNS = 20


class Session:
    """A connection with its channels."""

    connection: SelectConnection

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        target: Target,
        outbox: Outbox,
        blocked: Callable[[str | None], None],
    ) -> None:
        """`blocked` is told why the broker takes nothing, and None when it does again."""
        self.target = target
        self.outbox = outbox
        self._parameters = parameters
        self._blocked = blocked
        self._loop = Loop()
        self._at_once, self._delayed = Channel(self, 1), Channel(self, 2)
        self._ready = trio.Event()
        self._ended = trio.Event()
        self._reason: BaseException = ConnectionError("it is not connected")
        self._scope = trio.CancelScope()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect, and have pika do its work meanwhile. Raises `ConnectionError`."""
        with quiet():
            try:
                async with bare_nursery() as nursery:
                    nursery.start_soon(self._run)
                    try:
                        await self._ready.wait()
                        if self._ended.is_set():
                            raise ConnectionError(amqp_errors.reason(self._reason))
                        yield
                    finally:
                        with trio.CancelScope(shield=True):
                            await self._close()
            finally:
                self._loop.close()  # once nobody waits for its descriptor any more

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Publish; what the broker has to say comes in meanwhile."""
        if self._ended.is_set() or not self.connection.is_open:
            raise ConnectionError("it has ended")
        with quiet():
            for parcel in parcels:
                (self._delayed if parcel.only_now else self._at_once).publish(parcel)
            self._turn()

    async def lost(self) -> Exception:
        """Wait for its end; why it has ended."""
        await self._ended.wait()
        return ConnectionError(amqp_errors.reason(self._reason))

    def channel_ready(self) -> None:
        """A channel can publish from now on."""
        self.target.frame_max = self.connection.params.frame_max
        self._ready.set()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have something done in the next turn of pika's loop."""
        self._loop.call_later(0, call)

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        """Have pika read, write and run its timers. Nothing cuts it off but the end of the connection."""
        with trio.CancelScope(shield=True) as self._scope:
            try:
                self.connection = SelectConnection(
                    self._parameters,
                    on_open_callback=self._on_open,
                    on_open_error_callback=self._on_lost,
                    on_close_callback=self._on_lost,
                    custom_ioloop=self._loop,
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._run_timers)
                    while True:
                        self._turn()
                        await trio.lowlevel.wait_readable(self._loop.fileno())
            except OSError as error:
                self._on_lost(None, error)

    async def _run_timers(self) -> None:
        while True:
            await self._loop.wait_for_timer()
            self._turn()

    def _turn(self) -> None:
        """Whatever pika raises here, a new connection is the way out of it."""
        try:
            self._loop.turn()
        except Exception as error:  # noqa: BLE001 (as it says)
            logger.debug("%s: %s", type(error).__name__, error, exc_info=True)
            self._on_lost(None, error)

    async def _close(self) -> None:
        """End the connection, if need be without the broker's consent."""
        if not self._ended.is_set() and self._ready.is_set() and self.connection.is_open:
            with suppress(pika.exceptions.AMQPError):
                self.connection.close()
            self._turn()
            with trio.move_on_after(_CLOSE_GRACE):
                await self._ended.wait()
        connection = getattr(self, "connection", None)
        if connection is not None:
            with suppress(Exception):  # pika has no public way to give a connection up
                connection._terminate_stream(ConnectionError("it is given up"))  # noqa: SLF001
            for _ in range(_TURNS):
                with suppress(Exception):
                    self._loop.turn()
        self._blocked(None)
        for channel in (self._at_once, self._delayed):
            channel.give_back()
        self._scope.cancel()

    def _on_open(self, connection: SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(lambda *_: self._blocked(None))
        self._at_once.open()

    def _on_lost(self, _: object, error: BaseException) -> None:
        """It has come to its end, or has not come about."""
        if not self._ended.is_set():
            self._reason = error
        self._ended.set()
        self._ready.set()

    def _on_blocked(self, _: SelectConnection, blocked: frame.Method) -> None:
        reason = str(blocked.method.reason)
        self._blocked(reason)
        self.outbox.refuse(lambda: pika.exceptions.ConnectionBlockedTimeout(reason))
