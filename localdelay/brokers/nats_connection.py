"""One connection to NATS: what is published on it, what is answered, and why nobody has taken a message."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import nats.js.errors
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay.brokers.nats_answers import answer_error, in_a_line, refused_by
from localdelay.brokers.nats_client import in_asyncio, logger, start, transport_of
from localdelay.brokers.nats_frames import Answer, Sieve
from localdelay.brokers.outbox import Outbox, Parcel

_MOST_UNWRITTEN = 16 * 1024 * 1024  # bytes

# In seconds.
_NEVER = 10**9
_LOOK = 0.5
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


class Connection:
    """Publishes, and settles what is answered: the inbox has a subject for each message."""

    def __init__(self, outbox: Outbox, *, again: bool) -> None:
        self.client = Client()
        self._outbox = outbox
        self._knows_streams_at = trio.current_time() + _STREAMS_BACK_WITHIN if again else -math.inf
        self._transport: asyncio.WriteTransport | None = None
        self._inbox = b""
        self._numbers = itertools.count()
        self._under_way: dict[bytes, Parcel] = {}
        self._untaken: list[Parcel] = []
        self._untaken_came = trio.lowlevel.ParkingLot()
        self._ended = trio.Event()
        self._refused: Exception | None = None
        self._absent: dict[str, tuple[float, bool]] = {}

    async def open(self, server: str, options: dict[str, Any]) -> None:
        """Connect and listen; `options` are nats-py's. Raises `ConnectionError` in a few words."""
        client = self.client
        await start(client, server, self._noted, closed_cb=self._closed, **options)
        self._transport = transport_of(client)
        if "tls" in options and (
            self._transport is None or self._transport.get_extra_info("ssl_object") is None
        ):
            raise ConnectionError("it offers no TLS")
        self._inbox = client.new_inbox().encode()
        Sieve(self._transport, self._inbox, self._answered, self._ended.set)
        await in_asyncio(client.subscribe, f"{self._inbox.decode()}.*", cb=_never)
        await in_asyncio(client.flush, _NEVER)
        if self._refused is not None:  # without answers nothing is ever confirmed
            raise ConnectionError(in_a_line(self._refused))

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Write whole frames to the transport, at once or when there is room."""
        transport, under_way, inbox = self._transport, self._under_way, self._inbox
        if transport is None or transport.is_closing() or not self.client.is_connected:
            raise ConnectionError("it has ended")
        if transport.get_write_buffer_size() > _MOST_UNWRITTEN:
            raise ConnectionError("it reads nothing")  # nobody waits any more for most of what is unwritten
        while under_way and next(iter(under_way.values())).sending is None:
            del under_way[next(iter(under_way))]  # given up, and never answered
        written: list[bytes] = []
        for parcel in parcels:
            subject, headers, payload, _ = parcel.content
            reply = b"%b.%d" % (inbox, next(self._numbers))
            under_way[reply] = parcel
            size = len(headers)
            line = b"HPUB %b %b %d %d\r\n" % (subject.encode(), reply, size, size + len(payload))
            written += (line, headers, payload, b"\r\n")
        transport.write(b"".join(written))

    def _answered(self, answer: Answer) -> None:
        parcel = self._under_way.pop(answer.subject, None)
        if parcel is None:
            return  # nobody waits for it any more
        error = answer_error(answer.headers, answer.data)
        if isinstance(error, nats.js.errors.NoStreamResponseError):
            self._untaken.append(parcel)
            self._untaken_came.unpark()
        else:
            parcel.settle(error)

    def _noted(self, error: Exception) -> None:
        """The server may refuse a subject: it answers no publish to it, but says so to the connection."""
        kind, name = refused_by(error) or ("", "")
        if not kind:
            self._ended.set()  # such as an end of the file: nats-py closes next
            return
        self._refused = error
        for parcel in list(self._under_way.values()) if kind == "publish" else ():
            if parcel.content.subject.lower() == name.lower():
                parcel.settle(error)

    async def lost(self) -> Exception:
        """Explain what nobody has taken, until nats-py has ended; why it has."""
        client = self.client
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._explain)
            while client.is_connected and not self._ended.is_set():
                # Looked at as well: while it closes, nats-py may wait for a server that reads no more.
                with trio.move_on_after(_LOOK):
                    await self._ended.wait()
            nursery.cancel_scope.cancel()
        reason = client.last_error
        return ConnectionError("it has closed the connection" if reason is None else in_a_line(reason))

    async def _closed(self) -> None:
        self._ended.set()

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
            streams = self.client.jetstream(timeout=_LOOKUP_TIMEOUT)
            await in_asyncio(streams.find_stream_name_by_subject, subject)
        except nats.js.errors.NotFoundError:
            absent = True
        except Exception as error:  # noqa: BLE001 (then nobody can tell)
            logger.debug("which stream holds %s: %s", subject, in_a_line(error))
        self._absent[subject] = (trio.current_time(), absent)
        return absent


async def _never(_: Msg) -> None:
    """Answers do not come so far: see `Sieve`."""
