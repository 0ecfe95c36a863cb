"""What stands between a client and RabbitMQ and misbehaves."""

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
    flows: trio.Event = attrs.field(factory=trio.Event)


class Proxy:
    """Passes on what comes, on a port of its own."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._links: list[_Link] = []
        self.port = 0
        self.refuses = False
        """New connections are closed at once."""
        self.reset_after: int | None = None
        """Bytes to the server after which its connection is reset, once."""

    def stall(self) -> None:
        """From now on nothing passes on the connections that there are; new ones are not concerned."""
        for link in self._links:
            link.flows = trio.Event()

    def flow(self) -> None:
        """What was stalled passes."""
        for link in self._links:
            link.flows.set()

    def reset(self) -> None:
        """Reset the connections that there are."""
        for link in self._links:
            link.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.client.socket.close()

    async def handle(self, client: trio.SocketStream) -> None:
        async with client:
            if self.refuses:
                return
            async with await trio.open_tcp_stream("127.0.0.1", self._server_port) as server:
                link = _Link(client, server)
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
            while True:
                await link.flows.wait()
                data = await source.receive_some()
                await link.flows.wait()
                if not data:
                    break
                if source is link.client and self.reset_after is not None:
                    self.reset_after -= len(data)
                    if self.reset_after <= 0:
                        self.reset_after = None
                        self.reset()
                await sink.send_all(data)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxied(server_port: int) -> AsyncIterator[Proxy]:
    """A proxy to this port, until the block is left."""
    proxy = Proxy(server_port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, proxy.handle, 0, host="127.0.0.1"))
        proxy.port = listeners[0].socket.getsockname()[1]
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
