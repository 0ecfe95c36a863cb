"""What stands between a client and Redis, or in place of it, and misbehaves."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio


@asynccontextmanager
async def listening(handle: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    """A loopback port where each connection is given to an async function, until the block is left."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


class Proxy:
    """Passes on what comes, and resets a connection after so many bytes have gone to the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reset_after: int | None = None
        self.resets = 0

    async def handle(self, client: trio.SocketStream) -> None:
        async with client:
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self._port)
            except OSError:
                return
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, client, server, nursery, True)
                await self._pass_on(server, client, nursery, False)

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery, forth: bool
    ) -> None:
        try:
            async for data in source:
                if forth and self.reset_after is not None:
                    self.reset_after -= len(data)
                    if self.reset_after < 0:
                        await sink.send_all(data[: self.reset_after])
                        self.reset_after = None
                        self.resets += 1
                        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


class SlowRedis:
    """Takes entries one by one, each after `seconds`; says yes to everything else."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.added = 0

    async def handle(self, client: trio.SocketStream) -> None:
        buffer = bytearray()
        async for data in client:
            buffer += data
            while (command := _next_command(buffer)) is not None:
                if command[0] == b"XADD":
                    await trio.sleep(self.seconds)
                    self.added += 1
                    await client.send_all(b"$3\r\n0-1\r\n")
                elif command[0] == b"HELLO":
                    await client.send_all(b"%3\r\n+proto\r\n:3\r\n+id\r\n:1\r\n+version\r\n+7.0.0\r\n")
                elif command[0] == b"CONFIG":
                    await client.send_all(b"%0\r\n")
                else:
                    await client.send_all(b"+OK\r\n")


def _next_command(buffer: bytearray) -> list[bytes] | None:
    """Take a command off the front; None if it is not all there."""
    lines, at = bytes(buffer), 0
    if b"\r\n" not in lines:
        return None
    end = lines.index(b"\r\n")
    words, at = int(lines[1:end]), end + 2
    command = []
    for _ in range(words):
        end = lines.find(b"\r\n", at)
        if end < 0:
            return None
        length, at = int(lines[at + 1 : end]), end + 2
        if len(lines) < at + length + 2:
            return None
        command.append(lines[at : at + length])
        at += length + 2
    del buffer[:at]
    return command
