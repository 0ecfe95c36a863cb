"""A connection of pika's on Trio's loop, with two channels: what is delayed has one of its own.

A `Session` is what pika takes as `custom_ioloop`, by the interface of its adapters (`nbio_interface`), which
may change with pika 2. A thread would cost two hops a message.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, TypeAlias

import pika
import pika.exceptions
import trio
from pika import frame
from pika.adapters.select_connection import SelectConnection
from pika.adapters.utils import nbio_interface
from trio.lowlevel import enable_ki_protection

from localdelay.brokers.amqp_channel import AT_ONCE, DELAYED, Channel, Target
from localdelay.brokers.amqp_errors import logger, quiet, reason
from localdelay.brokers.line import Line
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.nurseries import bare_nursery

_Done: TypeAlias = Callable[[Any], object]
"""What hears of a result, or of the exception in its place."""

_CLOSE_GRACE = 1.0
_AT_ONCE = 4096  # bytes, as pika's own loop reads: it copies all that is left of them at each frame


class _Stream(Line, nbio_interface.AbstractStreamTransport):  # type: ignore[misc]  # pika has no types
    """A connected socket. What pika writes to it frame by frame goes out in one piece."""

    def __init__(self, connected: socket.socket, session: Session) -> None:
        super().__init__(connected, session.outbox)
        self.scope = trio.CancelScope()
        self.protocol: Any = None
        self._session = session
        self._frames: list[bytes] = []

    def received(self, data: bytes) -> bytes:
        for begin in range(0, len(data), _AT_ONCE):
            self._session.call(self.protocol.data_received, data[begin : begin + _AT_ONCE])
        return b""

    def flush(self) -> None:
        if self._frames:
            frames, self._frames = self._frames, []
            with suppress(ConnectionError):  # who reads will see it, too
                self.send(b"".join(frames))

    def write(self, data: bytes) -> None:
        self._frames.append(data)

    def abort(self) -> None:
        self.flush()
        self.scope.cancel()

    def get_protocol(self) -> Any:
        return self.protocol

    def get_write_buffer_size(self) -> int:
        return self.unwritten


class Session(nbio_interface.AbstractIOServices):  # type: ignore[misc]  # pika has no types
    """A connection with its channels."""

    connection: SelectConnection

    def __init__(self, target: Target, outbox: Outbox, blocked: Callable[[str | None], None]) -> None:
        """`blocked` is told why the broker takes nothing, and None when it does again."""
        self.target = target
        self.outbox = outbox
        self._blocked = blocked
        self._at_once, self._delayed = Channel(self, AT_ONCE), Channel(self, DELAYED)
        self._ready = trio.Event()
        self._ended = trio.Event()
        self._reason: BaseException = ConnectionError("it is not connected")
        self._scope = trio.CancelScope(shield=True)
        self._nursery: trio.Nursery
        self._stream: _Stream | None = None

    @asynccontextmanager
    async def connected(self, parameters: pika.ConnectionParameters) -> AsyncIterator[None]:
        """Connect, and have pika do its work meanwhile. Raises `ConnectionError`."""
        async with bare_nursery() as nursery:
            # Not `start`: what is cancelled already would leave it waiting for a task that nothing cuts off.
            nursery.start_soon(self.run, parameters)
            try:
                await self._ready.wait()
                if self._ended.is_set():
                    raise ConnectionError(reason(self._reason))
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await self._close()

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Publish; what the broker has to say comes in meanwhile."""
        # The stream's end comes first: pika hears of it some turns of the loop later.
        if self._stream is None or self._stream.ended or self._ended.is_set() or not self.connection.is_open:
            raise ConnectionError("it has ended")
        for channel, is_delayed in ((self._at_once, False), (self._delayed, True)):
            of_it = [parcel for parcel in parcels if parcel.only_now is is_delayed]
            if of_it:
                self.call(channel.publish, of_it)

    async def lost(self) -> Exception:
        """Wait for its end; why it has ended."""
        await self._ended.wait()
        return ConnectionError(reason(self._reason))

    def channel_ready(self) -> None:
        """A channel can publish from now on."""
        self.target.frame_max = self.connection.params.frame_max
        self._ready.set()

    def put(self, frames: bytes) -> None:
        """Write frames of ours behind those that pika has written."""
        if self._stream is not None:
            self._stream.write(frames)

    def call(self, call: Callable[..., object], *arguments: object) -> None:
        """Have pika do something, and write what it has to say."""
        try:
            with quiet():
                call(*arguments)
        except Exception as error:  # noqa: BLE001 (whatever it is, a new connection is the way out of it)
            logger.debug("%s: %s", type(error).__name__, error, exc_info=True)
            self._on_lost(None, error)
        if self._stream is not None:
            self._stream.flush()

    def _connect(self, parameters: pika.ConnectionParameters) -> None:
        self.connection = SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
            custom_ioloop=self,
        )

    async def _close(self) -> None:
        """End the connection, if need be without the broker's consent."""
        if self._ready.is_set() and not self._ended.is_set() and self.connection.is_open:
            self.call(self.connection.close)
            with trio.move_on_after(_CLOSE_GRACE):
                await self._ended.wait()
        self.stop()
        self._blocked(None)
        for channel in (self._at_once, self._delayed):
            channel.give_back()

    # What pika tells.

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
        why = str(blocked.method.reason)
        self._blocked(why)
        self.outbox.refuse(lambda: pika.exceptions.ConnectionBlockedTimeout(why))

    # What pika asks of its loop.

    async def run(self, parameters: pika.ConnectionParameters) -> None:
        """Do what pika waits for, in tasks which nothing cuts off but `stop`."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self.call(self._connect, parameters)
                await trio.sleep_forever()

    def stop(self) -> None:
        """End all that, and the stream."""
        self._scope.cancel()

    close = stop

    def get_native_ioloop(self) -> Session:
        """The loop."""
        return self

    def add_callback_threadsafe(self, callback: Callable[[], object]) -> None:
        """Call something soon; all of pika runs in this thread."""
        self.call_later(0, callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> trio.CancelScope:
        """Call something in so many seconds."""
        return self._begin(partial(trio.sleep, delay), lambda _: callback())

    def getaddrinfo(
        self, host: str, port: int, on_done: _Done, family: int = 0, socktype: int = 0, **named: int
    ) -> trio.CancelScope:
        """Ask for the addresses of a host."""
        ask = partial(trio.socket.getaddrinfo, host, port, family, socktype, **named)
        return self._begin(ask, on_done)

    def connect_socket(self, sock: socket.socket, resolved_addr: Any, on_done: _Done) -> trio.CancelScope:
        """Connect a socket."""
        return self._begin(partial(trio.socket.from_stdlib_socket(sock).connect, resolved_addr), on_done)

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: _Done,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> trio.CancelScope:
        """Encrypt if need be, and read from then on."""
        open_it = partial(self._open, sock, protocol_factory, ssl_context, server_hostname or "")
        return self._begin(open_it, on_done)

    def _begin(self, work: Callable[[], Awaitable[Any]], done: _Done) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._work, scope, work, done)
        return scope

    @enable_ki_protection
    async def _work(self, scope: trio.CancelScope, work: Callable[[], Awaitable[Any]], done: _Done) -> None:
        with scope:
            try:
                result = await work()
            except Exception as error:  # noqa: BLE001 (pika is told, and says it)
                result = error
            if not scope.cancel_called:
                self.call(done, result)

    async def _open(
        self,
        sock: socket.socket,
        protocol_factory: Callable[[], Any],
        context: ssl.SSLContext | None,
        host: str,
    ) -> tuple[_Stream, Any]:
        stream = _Stream(sock, self)
        try:
            if context is not None:
                await stream.start_tls(context, host)
        except BaseException:
            stream.close()
            raise
        self._stream, stream.protocol = stream, protocol_factory()
        self._nursery.start_soon(self._read, stream)
        stream.protocol.connection_made(stream)
        return stream, stream.protocol

    @enable_ki_protection
    async def _read(self, stream: _Stream) -> None:
        why: Exception | None = None
        with closing(stream), stream.scope:
            why = await stream.lost()
        if isinstance(why, ConnectionError) and why.errno is None:
            why = None  # the broker has closed it, which pika says in words of its own
        self.call(stream.protocol.connection_lost, why)
