"""What is below nats-py: asyncio's transport, that carries what is published, and the answers, past it.

nats-py runs on a loop of trio-asyncio's, where each of its steps takes a turn of two loops, and a publish is
many steps. So it connects, with TLS and whatever says who one is, subscribes, pings and listens for errors;
the rest is written to the transport directly, and taken out of what that receives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import trio

from localdelay.brokers.nats_frames import END, Answer, Frames
from localdelay.brokers.nats_loop import trio_asyncio

_MOST_UNWRITTEN = 1_000_000  # bytes


class Wire:
    """What is below a client: its transport, the newest one, and what that receives."""

    def __init__(self) -> None:
        loop: Any = trio_asyncio.current_loop.get()
        self.lost = trio.Event()
        self._loop = loop
        self._transports: list[asyncio.WriteTransport] = []
        self._answered: Callable[[Answer], None] | None = None
        self._frames: Frames | None = None
        self._last_two = END
        """Bytes of what has come."""
        self._room = trio.Event()
        self.heard = 0
        """How often something has come."""
        # These are for the connections that this loop makes from now on.
        loop.create_connection = self._create_connection
        loop.start_tls = self._start_tls
        loop.getaddrinfo = _getaddrinfo

    def listen(self, inbox: bytes, answered: Callable[[Answer], None]) -> None:
        """Give answers to this inbox to this function from now on, and not to the client."""
        self._frames = Frames(inbox, inside_a_line=self._last_two != END)
        self._answered = answered

    def write(self, frames: bytes) -> None:
        """Send whole frames, at once or when there is room."""
        transport = self._transports[-1]
        if not transport.is_closing():  # it would say so on standard error
            transport.write(frames)

    @property
    def is_encrypted(self) -> bool:
        """Whether there is TLS."""
        return self._transports[-1].get_extra_info("ssl_object") is not None

    @property
    def is_full(self) -> bool:
        """Whether more is not yet written than should be."""
        return not self.lost.is_set() and self._transports[-1].get_write_buffer_size() > _MOST_UNWRITTEN

    async def wait_room(self) -> None:
        """Wait until there is room to write, or no connection any more."""
        while self.is_full:
            self._room = trio.Event()
            await self._room.wait()

    def abort(self) -> None:
        """Close the sockets, whatever they still have to send."""
        for transport in self._transports:
            transport.abort()
        self._lose()

    def _lose(self) -> None:
        self.lost.set()
        self._room.set()

    async def _create_connection(self, make_protocol: Callable[[], Any], *args: Any, **options: Any) -> Any:
        own = type(self._loop).create_connection
        made = await own(self._loop, lambda: self._watched(make_protocol()), *args, **options)
        self._transports.append(made[0])
        return made

    async def _start_tls(self, transport: Any, protocol: Any, *args: Any, **options: Any) -> Any:
        own = type(self._loop).start_tls
        made = await own(self._loop, transport, self._watched(protocol), *args, **options)
        self._transports.append(made)
        return made

    def _watched(self, protocol: Any) -> Any:
        connection_lost, resume_writing = protocol.connection_lost, protocol.resume_writing
        pass_on, eof_received = protocol.data_received, protocol.eof_received

        def lost(error: Exception | None) -> None:
            connection_lost(error)
            self._lose()

        def ended() -> Any:
            stay = eof_received()
            self._lose()
            return stay

        def resumed() -> None:
            resume_writing()
            self._room.set()

        def received(data: bytes) -> None:
            self.heard += 1
            if self._frames is None or self._answered is None:
                self._last_two = (self._last_two + data[-2:])[-2:]
                pass_on(data)
                return
            try:
                answers, others = self._frames.feed(data)
            except ValueError:
                self.abort()
                return
            if others:
                pass_on(others)
            for answer in answers:
                self._answered(answer)

        protocol.connection_lost, protocol.resume_writing = lost, resumed
        protocol.data_received, protocol.eof_received = received, ended
        return protocol


async def _getaddrinfo(
    host: str, port: int, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[Any]:
    # The loop's own can't be cancelled, and a name server may take its time.
    lookup = trio_asyncio.trio_as_aio(trio.socket.getaddrinfo)
    found: list[Any] = await lookup(host, port, family, type, proto, flags)
    return found
