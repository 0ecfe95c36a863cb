"""An nsqd of a test's own; read back over a connection of the kit's own, since its Python client is dead."""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from tests.kit.servers.artifacts import bring
from tests.kit.servers.process import OneProcess, Received, free_port

_CHANNEL = "read"
_SETTLE = 0.1
_MESSAGE = 2  # the type of a frame


class NsqServer(OneProcess):
    """One nsqd process. It loses what it has confirmed when it is killed, so that `kill` ends it in order."""

    name: ClassVar[str] = "nsq"
    too_large: ClassVar[int] = 1024 * 1024 + 1
    takes_empty: ClassVar[bool] = False

    def __init__(self, *options: str, durable: bool = True) -> None:
        """Options as nsqd takes them on its command line; it is as durable as it can be either way."""
        super().__init__()
        self._options = options or ("-mem-queue-size", "0")
        self._received: dict[str, list[Received]] = {}
        self._http_port = 0

    def start(self) -> None:
        executable = bring("nsq") / "nsqd"
        self.port = self.port or free_port()
        self._http_port = self._http_port or free_port()
        self._data.mkdir(exist_ok=True)
        command = [str(executable), "-data-path", str(self._data), "-broadcast-address", "127.0.0.1"]
        command += ["-tcp-address", f"127.0.0.1:{self.port}", "-http-address", f"127.0.0.1:{self._http_port}"]
        self._process.start([*command, *self._options], self._answers)

    def kill(self) -> None:
        self._process.terminate()

    def fresh(self) -> str:
        topic = f"topic{next(self._numbers)}"
        self.post(f"topic/create?topic={topic}")
        self.post(f"channel/create?topic={topic}&channel={_CHANNEL}")
        return self.url(topic)

    def url(self, topic: str, options: str = "") -> str:
        """The URL of a topic that need not be there."""
        return f"nsq://127.0.0.1:{self.port}/{topic}{options}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        topic = unquote(urlsplit(url).path[1:])
        # To read takes out: what earlier calls have read is kept here.
        received = self._received.setdefault(topic, [])
        until = time.monotonic() + timeout
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            frames = _Frames(connection)
            connection.sendall(b"  V2SUB %s %s\nRDY 2500\n" % (topic.encode(), _CHANNEL.encode()))
            while time.monotonic() < until:
                if (frame := frames.next(within=_SETTLE)) is None:
                    if len(received) >= count and not self._left(topic):
                        break
                    continue
                kind, data = frame
                if kind == _MESSAGE:
                    received.append(Received(data[26:], {}, time.time()))
                    connection.sendall(b"FIN %s\n" % data[10:26])
                elif data == b"_heartbeat_":
                    connection.sendall(b"NOP\n")
                else:
                    assert data == b"OK", data
            connection.sendall(b"CLS\n")
            # What it has sent meanwhile it would keep for a minute, for this connection.
            while (frame := frames.next(within=10)) != (0, b"CLOSE_WAIT") and frame is not None:
                kind, data = frame
                if kind == _MESSAGE:
                    received.append(Received(data[26:], {}, time.time()))
                    connection.sendall(b"FIN %s\n" % data[10:26])
            while frames.next(within=_SETTLE) is not None:  # so that it has seen every FIN
                pass
        return list(received)

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """Its disk takes nothing: its directory is away. Topics that have been written to go on."""
        away = self._data.with_name("away")
        self._data.rename(away)
        try:
            yield
        finally:
            away.rename(self._data)

    def post(self, path: str) -> None:
        """Ask for something over HTTP, as in `topic/create?topic=T`."""
        self._ask(path, "POST")

    def _left(self, topic: str) -> int:
        """How many messages nobody has read yet, but for those whose delay is not over."""
        (found,) = json.loads(self._ask(f"stats?format=json&topic={topic}", "GET"))["topics"]
        (channel,) = found["channels"]
        return int(found["depth"] + channel["depth"] + channel["in_flight_count"])

    def _ask(self, path: str, method: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self._http_port}/{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return bytes(answer.read())

    @property
    def _data(self) -> Path:
        return self._process.directory / "data"

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"  V2IDENTIFY\n" + struct.pack(">i", 2) + b"{}")
            return _Frames(connection).next(within=1) == (0, b"OK")


class _Frames:
    """What nsqd says on a connection, frame by frame."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def next(self, within: float) -> tuple[int, bytes] | None:
        """The type and the data of the next frame; None if it does not come within so many seconds."""
        until = time.monotonic() + within
        while True:
            if len(self._buffer) >= 8:
                size, kind = struct.unpack_from(">ii", self._buffer)
                if len(self._buffer) >= 4 + size:
                    data, self._buffer = self._buffer[8 : 4 + size], self._buffer[4 + size :]
                    return kind, data
            self._connection.settimeout(max(1e-3, until - time.monotonic()))
            try:
                got = self._connection.recv(1 << 18)
            except TimeoutError:
                return None
            if not got:
                raise EOFError
            self._buffer += got
