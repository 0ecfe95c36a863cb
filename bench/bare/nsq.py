"""NSQ's line protocol alone, on one blocking socket: its Python client is dead. PUB, or MPUB for a batch."""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from urllib.parse import urlsplit

from bench.bare import Sent


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. Commands are written as there is room, and answers taken in their order."""
    where = urlsplit(url)
    topic = where.path[1:].encode()
    body = struct.pack(">i", len(payload)) + payload
    command = b"PUB %b\n%b" % (topic, body)
    if batch > 1:
        bodies = struct.pack(">i", batch) + body * batch
        command = b"MPUB %b\n%b%b" % (topic, struct.pack(">i", len(bodies)), bodies)
    times: list[float] = []
    under_way: deque[float] = deque()
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"  V2")
        left, rest = count // batch, b""
        begun = time.perf_counter()
        while left or under_way:
            room = min(at_once - len(under_way), left)
            if room:
                under_way.extend([time.perf_counter()] * room)
                connection.sendall(command * room)
                left -= room
            rest += connection.recv(1 << 16)
            while len(rest) >= 10:  # each is OK: a length, a type, two letters
                assert rest[8:10] == b"OK", rest
                rest = rest[10:]
                times.append(time.perf_counter() - under_way.popleft())
        return Sent(time.perf_counter() - begun, times)
