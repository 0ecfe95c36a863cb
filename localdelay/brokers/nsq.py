"""NSQ, by its own line protocol on Trio's sockets. It needs no extra."""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.line import Line, OutOfStep, connect_socket
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.errors import DelayNotSupported, PermanentSendError, Throttled
from localdelay.message import Message

_ERROR = 1
_LARGEST_FRAME = 1024 * 1024
_BATCH_BYTES = 1024 * 1024
_HEARTBEAT = 10_000  # milliseconds
_LIMITS = {
    "message": re.compile(r"PUB message too big \d+ > (\d+)"),
    "batch": re.compile(r"MPUB body too big \d+ > (\d+)"),
    "delay": re.compile(r"DPUB timeout \d+ out of range 0-(\d+)"),
}
_head, _word = struct.Struct(">II"), struct.Struct(">I").pack


class NsqError(Exception):
    """What an nsqd has answered: a code, such as E_BAD_TOPIC, and some words."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.code = said.partition(" ")[0]
        self.takes_nothing = self.code.endswith("PUB_FAILED")
        """Whether it is the topic that can take no message, and not this one that is refused."""


def classified(error: Exception) -> Exception:
    """What to raise for an error of the server's: `Throttled`, `PermanentSendError`, or the error itself."""
    if isinstance(error, NsqError):
        if error.takes_nothing and "exiting" not in str(error):
            return Throttled(str(error))
        if _LIMITS["delay"].search(str(error)):
            return DelayNotSupported(str(error))
        if error.code.startswith("E_BAD_") or error.code in ("E_INVALID", "E_UNAUTHORIZED"):
            return PermanentSendError(str(error))
    return error


def frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames in this data, as type and content, and the rest. Raises `OutOfStep`. Pure."""
    found: list[tuple[int, bytes]] = []
    begin = 0
    while len(data) - begin >= _head.size:
        size, kind = _head.unpack_from(data, begin)
        if not 4 <= size <= _LARGEST_FRAME or kind > 2:
            raise OutOfStep("it does not speak NSQ's protocol")
        end = begin + 4 + size
        if end > len(data):
            break
        found.append((kind, data[begin + 8 : end]))
        begin = end
    return found, data[begin:]


def commands(parcels: Sequence[Parcel], most_bytes: int) -> Iterator[list[Parcel]]:
    """What goes as one command: a delayed one by itself, others together up to so many bytes. Pure."""
    together: list[Parcel] = []
    size = 0
    for parcel in parcels:
        delayed = parcel.only_now
        if together and (delayed or size + len(parcel.content) > most_bytes):
            yield together
            together, size = [], 0
        if delayed:
            yield [parcel]
        else:
            together.append(parcel)
            size += len(parcel.content)
    if together:
        yield together


class _Line(Line):
    """A connection to one nsqd."""

    def __init__(self, connected: socket.socket, outbox: Outbox, driver: _Driver) -> None:
        super().__init__(connected, outbox)
        self._driver = driver
        self._unanswered: deque[Sequence[Parcel]] = deque()
        self._frames: deque[tuple[int, bytes]] = deque()

    async def answer(self, command: bytes = b"") -> bytes:
        """Write a command, and read its answer: before there are messages. Raises `ConnectionError`."""
        self.send(command)
        while not self._frames:
            found, self._rest = frames(self._rest + await self.receive())
            self._frames.extend(found)
        kind, said = self._frames.popleft()
        if kind == _ERROR:
            raise ConnectionError(said.decode(errors="replace"))
        return said

    def write(self, parcels: Sequence[Parcel]) -> None:
        driver, written = self._driver, []
        groups = list(commands(parcels, driver.limits["batch"]))
        for group in groups:
            content: bytes = group[0].content
            if group[0].only_now:
                written.append(content)
            elif len(group) == 1:
                written += (driver.pub, content)
            else:
                body = b"".join([_word(len(group)), *[parcel.content for parcel in group]])
                written += (driver.mpub, _word(len(body)), body)
        self.send(b"".join(written))
        self._unanswered.extend(groups)

    def received(self, data: bytes) -> bytes:
        found, rest = frames(data)
        now = trio.current_time()
        for kind, said in found:
            if kind != _ERROR and said == b"_heartbeat_":
                self.send(b"NOP\n")
                continue
            if not self._unanswered:
                raise OutOfStep(f"it says {said[:80]!r}")
            self.heard = now  # but not at a heartbeat, which comes also while it takes nothing
            group = self._unanswered.popleft()
            if kind == _ERROR:
                self._refused(group, NsqError(said.decode(errors="replace")))
            else:
                for parcel in group:
                    parcel.settle()
        return rest

    def _refused(self, group: Sequence[Parcel], error: NsqError) -> None:
        self._driver.learn(str(error))
        # nsqd hangs up after each error of a publish, and has not read what was written behind.
        self.outbox.again([parcel for behind in self._unanswered for parcel in behind])
        self._unanswered.clear()
        if len(group) > 1 and not error.takes_nothing:
            self.outbox.again(group, alone=True)
        else:
            for parcel in group:
                parcel.settle(error)
        raise OutOfStep(str(error))


class _Driver(Driver):
    no_delay = "NSQ's own delay does not outlive much; ?delay=native asks for it"
    in_order = True
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self.where = f"NSQ at {where.place}"
        self.native_delay = where.choice("delay", "native") is not None
        self._given = {
            "message": where.count("max_msg_size", 1024 * 1024),
            "batch": _BATCH_BYTES,
            "delay": where.count("max_req_timeout", 3600) * 1000,
        }
        self._has_learned = False
        self.limits = self._given
        """Bytes of a message and of a batch, and milliseconds of a delay; nsqd's own unless it says more."""
        self._topic = where.target.encode()
        self.pub, self.mpub = b"PUB %b\n" % self._topic, b"MPUB %b\n" % self._topic
        self._address = where.host, where.port
        self._secret = (where.password or where.username or "").encode()
        self._needs_tls = where.choice("tls", "required") is not None

    def learn(self, said: str) -> None:
        """What the server tells of its limits when it refuses, and then hangs up."""
        for name, pattern in _LIMITS.items():
            if found := pattern.search(said):
                self.limits = {**self.limits, name: min(self.limits[name], int(found[1]))}
                self._has_learned = True

    def encode(self, message: Message, delay: float | None, now: float) -> bytes:
        size = len(message.payload)
        if not size:
            raise PermanentSendError("NSQ takes no empty payload")
        if size > self.limits["message"]:
            raise PermanentSendError(
                f"{size} bytes; this nsqd takes {self.limits['message']} at most (--max-msg-size)"
            )
        body = _word(size) + message.payload
        if delay is None:
            return body
        milliseconds = math.ceil(round(delay * 1000, 6))
        if milliseconds > self.limits["delay"]:
            most = self.limits["delay"] / 1000
            raise DelayNotSupported(
                f"{delay:g} s; this nsqd delays by {most:g} s at most (--max-req-timeout)"
            )
        return b"DPUB %b %d\n%b" % (self._topic, milliseconds, body)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Line]:
        if (
            not self._has_learned
        ):  # else this would be refused again: it may be another server, that takes more
            self.limits = self._given
        self._has_learned = False
        with closing(_Line(await connect_socket(*self._address), outbox, self)) as line:
            about = {"client_id": "localdelay", "hostname": socket.gethostname(), "user_agent": "localdelay"}
            asked = {"feature_negotiation": True, "heartbeat_interval": _HEARTBEAT, "tls_v1": True}
            body = json.dumps(about | asked).encode()
            said = await line.answer(b"  V2IDENTIFY\n%b%b" % (_word(len(body)), body))
            try:
                told = dict(json.loads(said))
            except (ValueError, TypeError):
                raise ConnectionError(f"it answers {said[:80]!r}") from None
            if told.get("tls_v1"):
                await line.start_tls(ssl.create_default_context(), self._address[0])
                await line.answer()
            elif self._needs_tls:
                raise ConnectionError("it offers no TLS")
            if told.get("auth_required"):
                if not self._secret:
                    raise ConnectionError("it asks for a secret, as in nsq://SECRET@host:4150/TOPIC")
                await line.answer(b"AUTH\n%b%b" % (_word(len(self._secret)), self._secret))
            yield line


driver_at = _Driver
