"""A socket that many messages are written to and answered on, in their order.

What is written goes out at once as far as the system takes it; answers are read meanwhile.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio
from trio.lowlevel import wait_readable, wait_writable

from localdelay.brokers.outbox import Outbox

_T = TypeVar("_T")
_READ_BYTES = 65_536
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class OutOfStep(ConnectionError):
    """What came is no answer to what was written: the connection is of no use any more."""


class Line:
    """A connected socket; a child knows what is written for a message, and what an answer says."""

    def __init__(self, connected: socket.socket, outbox: Outbox) -> None:
        self.outbox = outbox
        self.heard = -math.inf
        """When something has been answered last, on Trio's clock."""
        self._socket = connected
        self._rest = b""
        """What has come of an answer that is not whole."""
        self._unwritten = bytearray()
        self._filled = trio.lowlevel.ParkingLot()
        self._ended = False

    def received(self, data: bytes) -> bytes:
        """Settle what is answered, set `heard`; returns the rest of the data, which is no whole answer.

        Raises `OutOfStep`.
        """
        raise NotImplementedError

    @property
    def unwritten(self) -> int:
        """Bytes that wait until there is room."""
        return len(self._unwritten)

    @property
    def ended(self) -> bool:
        """Whether nothing is written to it any more."""
        return self._ended

    def send(self, data: bytes) -> None:
        """Write bytes, now or when there is room. Raises `ConnectionError` where the connection was lost."""
        if self._ended:
            raise ConnectionError("it has closed the connection")
        written = 0 if self._unwritten else self._write(data)
        if written < len(data):
            self._unwritten += data[written:]
            self._filled.unpark()

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on encrypted. Raises `OSError` where the two do not agree, or the host can't show who it is."""
        self._socket = encrypted = context.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        await self._when_ready(encrypted.do_handshake)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    async def lost(self) -> Exception:
        """Write and read until the connection is lost; returns why it was."""
        reason: Exception = OutOfStep("it has ended")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush)
            try:
                await self.read_until(lambda: False)
            except OSError as error:
                reason = error
            self._ended = True  # at once: who was settled just now may write in this turn of the loop
            nursery.cancel_scope.cancel()
        return reason

    async def read_until(self, done: Callable[[], object]) -> None:
        """Have what comes `received` until this has come about. Raises `OSError` at the end."""
        while not done():
            # Before it reads and not only where there is nothing to read: others want to run, too.
            await wait_readable(self._socket)
            self._rest = self.received(self._rest + await self.receive())

    async def receive(self) -> bytes:
        """What has come: at least a byte. Raises `ConnectionError` at the end."""
        data = await self._when_ready(partial(self._socket.recv, _READ_BYTES))
        if not data:
            raise ConnectionError("it has closed the connection")
        return data

    async def _when_ready(self, step: Callable[[], _T]) -> _T:
        """What a step of the socket's comes to, as soon as it need not wait for the other side."""
        while True:
            try:
                return step()
            except ssl.SSLWantWriteError:
                await wait_writable(self._socket)
            except _NOT_NOW:
                await wait_readable(self._socket)

    async def _flush(self) -> None:
        while True:
            if self._unwritten:
                await wait_writable(self._socket)
                del self._unwritten[: self._write(self._unwritten)]
            else:
                await self._filled.park()

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except _NOT_NOW:
            return 0
        except OSError:
            return len(data)  # the connection is lost; who reads it will see that too


async def connect_socket(host: str, port: int) -> socket.socket:
    """A connected socket that does not block. Raises `OSError`."""
    stream = await trio.open_tcp_stream(host, port)
    connected = socket.socket(fileno=stream.socket.detach())
    connected.setblocking(False)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connected
