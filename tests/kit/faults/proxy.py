"""The network to a broker, on loopback: it holds back, slows down, swallows and resets."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@attrs.define(eq=False)
class _Link:
    """One connection of a client's, and what it is passed on to."""

    client: trio.SocketStream
    server: trio.SocketStream


class Network:
    """Passes on what comes, on a port of its own, as well as the network is at the moment."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._links: list[_Link] = []
        self._flows = trio.Event()
        self._flows.set()
        self.port = 0
        self.delay = 0.0
        """Seconds that each piece takes longer."""
        self.refuses = False
        """New connections are closed at once."""
        self.swallows = False
        """What comes is gone. Such a connection must be reset: TCP never goes on behind a gap."""

    def hold(self) -> None:
        """From now on nothing passes."""
        self._flows = trio.Event()

    def flow(self) -> None:
        """What was held back passes."""
        self._flows.set()

    def reset(self) -> None:
        """Reset the connections that there are."""
        for link in self._links:
            with suppress(*_GONE):
                link.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.client.socket.close()

    async def handle(self, client: trio.SocketStream) -> None:
        async with client:
            if self.refuses:
                return
            with suppress(OSError):
                server = await trio.open_tcp_stream("127.0.0.1", self._server_port)
                async with server:
                    link = _Link(client, server)
                    self._links.append(link)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass_on, client, server, nursery)
                        await self._pass_on(server, client, nursery)
                    self._links.remove(link)

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with suppress(*_GONE):
            while data := await source.receive_some():
                if self.delay:
                    await trio.sleep(self.delay)
                await self._flows.wait()
                if not self.swallows:
                    await sink.send_all(data)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def network_to(server_port: int) -> AsyncIterator[Network]:
    """The way to this port, until the block is left."""
    network = Network(server_port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, network.handle, 0, host="127.0.0.1"))
        network.port = listeners[0].socket.getsockname()[1]
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
