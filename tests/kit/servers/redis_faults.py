"""What stands in place of Redis, and misbehaves."""

from __future__ import annotations

import trio


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
