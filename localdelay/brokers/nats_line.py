"""One connection to NATS, on a line of its own: what is published on it, and what is answered.

nats-py would take several turns of trio-asyncio's loop for each message: less than half of the rate.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import secrets
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
import trio

from localdelay.brokers.broker import in_a_line
from localdelay.brokers.line import Line, OutOfStep
from localdelay.brokers.nats_answers import MESSAGES, Frame, answer_error, frames, refused_by
from localdelay.brokers.outbox import Outbox, Parcel

logger = logging.getLogger("localdelay.brokers.nats")

_MOST_UNWRITTEN = 16 * 1024 * 1024  # bytes
_PINGS = 2  # so many may be unanswered

# In seconds.
_PING_EVERY = 5.0
_LOOKUP_TIMEOUT = 2.0
_LOOKUP_HOLDS = 1.0
_STREAMS_BACK_WITHIN = 10.0  # a server that is back may not have all of its streams yet


class Publication(NamedTuple):
    """One message as it goes out."""

    subject: str
    headers: bytes
    payload: bytes
    held_by: str
    """What a stream must hold for it: the subject, or its wildcard."""


class Connection(Line):
    """Publishes, and settles what is answered: the inbox has a subject for each message."""

    def __init__(self, connected: socket.socket, outbox: Outbox, inbox: str, *, again: bool) -> None:
        super().__init__(connected, outbox)
        self.info: dict[str, Any] = {}
        """What the server says of itself."""
        self._inbox = f"{inbox}.{secrets.token_hex(11)}".encode()
        self._numbers = itertools.count()
        self._pings = 0
        self._under_way: dict[bytes, Parcel] = {}
        self._untaken: list[Parcel] = []
        self._untaken_came = trio.lowlevel.ParkingLot()
        self._knows_streams_at = trio.current_time() + _STREAMS_BACK_WITHIN if again else -math.inf
        self._absent: dict[str, tuple[float, bool]] = {}
        self._question: tuple[bytes, trio.Event] = (b"", trio.Event())
        self._answer = b""

    async def open(self, host: str, user: Mapping[str, str], *, needs_tls: bool) -> None:
        """Come in, and listen to the inbox. Raises `ConnectionError` in a few words, and `OSError`."""
        await self.read_until(lambda: self.info)
        encrypted = self.info.get("tls_required") or (needs_tls and self.info.get("tls_available"))
        if encrypted:
            await self.start_tls(ssl.create_default_context(), host)
        elif needs_tls:
            raise ConnectionError("it offers no TLS")
        about = {"name": "localdelay", "lang": "python", "version": "1", "protocol": 1, "verbose": False}
        asks = {"pedantic": False, "headers": True, "no_responders": True, "tls_required": bool(encrypted)}
        connect = json.dumps({**about, **asks, **user}).encode()
        self._pings = 1
        self.send(b"CONNECT %b\r\nSUB %b.* 1\r\nPING\r\n" % (connect, self._inbox))
        await self.read_until(lambda: not self._pings)

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Write whole frames, at once or when there is room."""
        if self.unwritten > _MOST_UNWRITTEN:
            raise ConnectionError("it reads nothing")  # nobody waits any more for most of what is unwritten
        under_way = self._under_way
        while under_way and next(iter(under_way.values())).sending is None:
            del under_way[next(iter(under_way))]  # given up, and never answered
        written: list[bytes] = []
        for parcel in parcels:
            subject, headers, payload, _ = parcel.content
            reply, size = self._reply(), len(headers)
            under_way[reply] = parcel
            line = b"HPUB %b %b %d %d\r\n" % (subject.encode(), reply, size, size + len(payload))
            written += (line, headers, payload, b"\r\n")
        self.send(b"".join(written))

    def _reply(self) -> bytes:
        return b"%b.%d" % (self._inbox, next(self._numbers))

    def received(self, data: bytes) -> bytes:
        """Settle what is answered, and answer what is asked."""
        found, rest = frames(data)
        for frame in found:
            if frame.kind == b"PING":
                self.send(b"PONG\r\n")
            elif frame.kind == b"PONG":
                self._pings = 0
            elif frame.kind == b"INFO":
                self._told(frame.said)
            elif frame.kind == b"-ERR":
                self._refused(frame.said)
            elif frame.kind in MESSAGES:
                self.answered(frame)
        return rest

    def answered(self, answer: Frame) -> None:
        """Settle what a message that has come is the answer to."""
        parcel = self._under_way.pop(answer.said, None)
        if parcel is None:
            subject, came = self._question
            if answer.said == subject:
                self._answer = answer.data
                came.set()
            return  # else nobody waits for it any more
        error = answer_error(answer.headers, answer.data)
        if isinstance(error, nats.js.errors.NoStreamResponseError):
            self._untaken.append(parcel)
            self._untaken_came.unpark()
        else:
            parcel.settle(error)

    def _told(self, said: bytes) -> None:
        try:
            self.info |= json.loads(said)
        except (ValueError, TypeError, RecursionError):
            raise OutOfStep(f"it says of itself {said[:80]!r}") from None

    def _refused(self, said: bytes) -> None:
        """The server may refuse a subject: it answers no publish to it, but says so to the connection."""
        error = nats.errors.Error(" ".join(said.decode(errors="replace").split()).strip("' "))
        kind, name = refused_by(error) or ("", "")
        if kind != "publish":  # it hangs up next; or without answers nothing is ever confirmed
            raise OutOfStep(str(error))
        for parcel in list(self._under_way.values()):
            if parcel.content.subject == name:
                parcel.settle(error)

    async def lost(self) -> Exception:
        """Read and write, ask whether it is still there, and explain what nobody has taken."""
        reason: Exception = ConnectionError("stale connection")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._explain)
            nursery.start_soon(self._ping, nursery.cancel_scope)
            reason = await super().lost()
            nursery.cancel_scope.cancel()
        return reason

    async def _ping(self, stale: trio.CancelScope) -> None:
        while self._pings <= _PINGS:
            await trio.sleep(_PING_EVERY)
            self._pings += 1
            self.send(b"PING\r\n")
        stale.cancel()

    # Nobody has taken a message: is there no stream for it, or is one only away?

    async def _explain(self) -> None:
        while True:
            while not self._untaken:
                await self._untaken_came.park()
            untaken, self._untaken = self._untaken, []
            for parcel in untaken:
                if parcel.sending is None:
                    continue
                subject = parcel.content.held_by
                error: Exception = nats.js.errors.NoStreamResponseError()
                if await self._no_stream_holds(subject):
                    error = nats.js.errors.NotFoundError(404, f"no stream holds {subject}")
                parcel.settle(error)

    async def _no_stream_holds(self, subject: str) -> bool:
        """Whether the server knows for sure that there is none; asked once a second at most."""
        now = trio.current_time()
        if now < self._knows_streams_at:
            return False
        asked_at, absent = self._absent.get(subject, (-math.inf, False))
        if now < asked_at + _LOOKUP_HOLDS:
            return absent
        absent = False
        try:
            names = await self.ask("STREAM.NAMES", {"subject": subject})
            absent = "error" not in names and not names["streams"]
        except Exception as error:  # noqa: BLE001 (then nobody can tell)
            logger.debug("which stream holds %s: %s", subject, in_a_line(error))
        self._absent[subject] = (trio.current_time(), absent)
        return absent

    async def ask(self, verb: str, content: Mapping[str, Any], within: float = _LOOKUP_TIMEOUT) -> Any:
        """What JetStream answers, one question at a time; None where there is no JetStream.

        Raises `trio.TooSlowError`, and `ConnectionError`.
        """
        came = trio.Event()
        self._question, self._answer = (self.call(verb, content), came), b""
        with trio.fail_after(within):
            await came.wait()
        return json.loads(self._answer) if self._answer else None

    def call(self, verb: str, content: Mapping[str, Any]) -> bytes:
        """Have JetStream do something; what it answers comes to the subject that this returns."""
        reply, body = self._reply(), json.dumps(content).encode()
        self.send(b"PUB $JS.API.%b %b %d\r\n%b\r\n" % (verb.encode(), reply, len(body), body))
        return reply
