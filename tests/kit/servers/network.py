"""The network to a broker, on loopback: it holds back, slows down, swallows, stalls and resets."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
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
    flows: trio.Event


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
        self.reset_after: int | None = None
        """Bytes to the server after which the connections are reset, once."""
        self.resets = 0
        """How often that was."""

    def hold(self) -> None:
        """From now on nothing passes."""
        self._flows = trio.Event()

    def flow(self) -> None:
        """What was held back passes."""
        self._flows.set()

    def stall(self) -> None:
        """From now on nothing passes on the connections that there are; new ones are not concerned."""
        for link in self._links:
            link.flows = trio.Event()

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
                    link = _Link(client, server, trio.Event())
                    link.flows.set()
                    self._links.append(link)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass_on, link, client, server, nursery)
                        await self._pass_on(link, server, client, nursery)
                    self._links.remove(link)

    async def _pass_on(
        self, link: _Link, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with suppress(*_GONE):
            while data := await source.receive_some():
                if self.delay:
                    await trio.sleep(self.delay)
                await self._flows.wait()
                await link.flows.wait()
                if source is link.client and self.reset_after is not None:
                    self.reset_after -= len(data)
                    if self.reset_after < 0:
                        await sink.send_all(data[: self.reset_after])
                        self.reset_after = None
                        self.resets += 1
                        self.reset()
                        break
                if not self.swallows:
                    await sink.send_all(data)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def network_to(server_port: int) -> AsyncIterator[Network]:
    """The way to this port, until the block is left."""
    network = Network(server_port)
    async with listening(network.handle) as network.port:
        yield network


@asynccontextmanager
async def listening(handle: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    """A loopback port where each connection is given to an async function, until the block is left."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        try:
            yield listeners[0].socket.getsockname()[1]
        finally:
            nursery.cancel_scope.cancel()
