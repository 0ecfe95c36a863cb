"""Messages on their way to NATS: what waits to go out, what waits for its answer, and who is told."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import nats.errors
import nats.js.errors
import trio

from localdelay.backoff import Backoff
from localdelay.brokers.nats_answers import answer_error, classified, in_a_line, refused_by
from localdelay.brokers.nats_frames import END, Answer, publish_head
from localdelay.brokers.nats_line import Line, connect, in_asyncio, logger
from localdelay.errors import PermanentSendError
from localdelay.message import Message
from localdelay.settling import Confirmation, caused_by

_MESSAGES_AT_ONCE = 100
_BYTES_AT_ONCE = 256 * 1024
_SAYS_WHY_WITHIN = 0.01
_FIRST_WAIT = 0.1
_LOOKUP_TIMEOUT = 2.0
_LOOKUP_HOLDS = 1.0
# A server that is back may not have all of its streams yet.
_STREAMS_BACK_WITHIN = 10.0


@attrs.define(eq=False)
class Publication:
    """One message as it goes out."""

    subject: bytes
    headers: bytes
    payload: bytes
    held_by: str
    """What a stream must hold for it: the subject, or its wildcard."""


@attrs.define(eq=False)
class _Publish:
    """A publication that somebody waits for."""

    number: int
    publication: Publication
    confirmation: Confirmation
    position: int
    expires: float
    only_now: bool
    place: OrderedDict[int, _Publish] | None
    """Where it waits; None when it has ended."""


class Outbox:
    """Publishes many messages at once, on one connection at a time."""

    def __init__(
        self,
        servers: Sequence[str],
        options: dict[str, Any],
        confirm_timeout: float,
        connect_timeout: float,
        reconnect: bool,
    ) -> None:
        self.on_connected: Callable[[Line], None] = lambda line: None
        self._given = list(servers)
        self._servers = list(servers)
        """The one that it was connected to is the last to be tried again."""
        self._options = options
        self._confirm_timeout = confirm_timeout
        self._connect_timeout = connect_timeout
        self._reconnect = reconnect
        self._inbox: str | None = None
        self._reply = b""
        self._most = 0
        """Bytes of a message with its headers."""
        self._numbers = itertools.count(1)
        self._waiting: OrderedDict[int, _Publish] = OrderedDict()
        self._unanswered: OrderedDict[int, _Publish] = OrderedDict()
        self._filled = trio.Event()
        self._line: Line | None = None
        self._connected_again_at = -math.inf
        self._trouble: BaseException | None = None
        self._untaken: list[_Publish] = []
        self._untaken_came = trio.Event()
        self._absent: dict[str, tuple[float, bool]] = {}
        self._closed = False

    async def publish(self, publication: Publication, *, only_now: bool = False) -> None:
        """Publish, and wait for the answer. With `only_now` it fails where there is no connection."""
        self._check(publication)
        confirmation = Confirmation()
        publish = self._add(publication, confirmation, 0, only_now)
        self._write_soon()
        try:
            await confirmation.of_one()
        finally:
            _forget(publish)

    async def publish_all(
        self, messages: Sequence[Message], publication_of: Callable[[Message], Publication]
    ) -> None:
        """Publish all, and wait for all answers; raises as `Broker.send_batch` does."""
        self.check_open()
        confirmation = Confirmation(len(messages))
        publications: list[tuple[int, Publication]] = []
        for position, message in enumerate(messages):
            try:
                publication = publication_of(message)
                self._check(publication)
            except PermanentSendError as error:
                confirmation.settle(position, error)
            else:
                publications.append((position, publication))
        # Only now, or those before one that is no message at all would be on their way.
        publishes = [self._add(what, confirmation, position, False) for position, what in publications]
        self._write_soon()
        try:
            await confirmation.of_all(messages)
        finally:
            for publish in publishes:
                _forget(publish)

    def check_open(self) -> None:
        """Raise what a publish raises that comes too late."""
        if self._closed:
            raise nats.errors.ConnectionClosedError

    async def open(self) -> None:
        """Connect for the first time. Raises a `ConnectionError` of one line."""
        self._begin(await self._connect_to_any())

    async def run(self) -> None:
        """Do all the work, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connected)
                nursery.start_soon(self._write)
                nursery.start_soon(self._expire)
                nursery.start_soon(self._explain)
        finally:
            if self._line is not None:
                self._line.wire.abort()  # it may have been made a moment ago

    async def close(self) -> None:
        """Fail whatever is under way and all that comes later, and let the connection go."""
        self._end()
        if self._line is not None:
            await self._line.close()

    def _end(self) -> None:
        self._closed = True
        for publish in (*self._unanswered.values(), *self._waiting.values()):
            self._settle(publish, nats.errors.ConnectionClosedError())

    # What is published:

    def _check(self, publication: Publication) -> None:
        size = len(publication.headers) + len(publication.payload)
        if size > self._most:
            # The server would not just refuse it: it would end the connection.
            raise PermanentSendError(f"{size} bytes with headers; this server takes {self._most} at most")

    def _add(
        self, publication: Publication, confirmation: Confirmation, position: int, only_now: bool
    ) -> _Publish:
        self.check_open()
        if only_now and self._line is None:
            raise self._not_connected()
        number = next(self._numbers)
        expires = trio.current_time() + self._confirm_timeout
        publish = _Publish(number, publication, confirmation, position, expires, only_now, self._waiting)
        self._waiting[number] = publish
        return publish

    def _write_soon(self) -> None:
        line = self._line
        if line is not None and not self._unanswered and not (line.wire.is_full or line.wire.lost.is_set()):
            self._write_some(line)  # there is nothing to be gained by waiting for others
        if self._waiting:
            self._filled.set()

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._waiting and (line := self._line) is not None and not line.wire.lost.is_set():
                await line.wire.wait_room()
                if not line.wire.lost.is_set():
                    self._write_some(line)
                await trio.lowlevel.checkpoint()  # others want to run too

    def _write_some(self, line: Line) -> None:
        written: list[bytes] = []
        room = _BYTES_AT_ONCE
        for _ in range(_MESSAGES_AT_ONCE):
            if not self._waiting or room <= 0:
                break
            number, publish = self._waiting.popitem(last=False)
            self._unanswered[number] = publish
            publish.place = self._unanswered
            what = publish.publication
            head = publish_head(what.subject, self._reply, number, what.headers, len(what.payload))
            written += (head, what.payload, END)
            room -= len(head) + len(what.payload)
        line.wire.write(b"".join(written))

    def _answered(self, answer: Answer) -> None:
        publish = self._unanswered.get(answer.number)
        if publish is None:
            return  # nobody waits for it any more
        error = answer_error(answer.headers, answer.data)
        if isinstance(error, nats.js.errors.NoStreamResponseError):
            self._untaken.append(publish)
            self._untaken_came.set()
        else:
            self._settle(publish, error)

    def _settle(self, publish: _Publish, error: Exception | None) -> None:
        if publish.place is None:
            return
        _forget(publish)
        if error is not None:
            error = caused_by(classified(error), error)
        publish.confirmation.settle(publish.position, error)

    def _noted(self, error: Exception) -> None:
        """The server may refuse a subject: it answers no publish to it, but says so to the connection."""
        kind, name = refused_by(error) or ("", "")
        if kind == "publish":
            subject = name.lower()
            for publish in list(self._unanswered.values()):
                if publish.publication.subject.decode().lower() == subject:
                    self._settle(publish, error)

    async def _expire(self) -> None:
        """Fail what has waited for too long."""
        while True:
            now = trio.current_time()
            for place in (self._unanswered, self._waiting):
                while place and (first := _first(place)).expires <= now:
                    self._settle(first, self._too_late(first))
            firsts = [_first(place) for place in (self._unanswered, self._waiting) if place]
            await trio.sleep_until(
                min((first.expires for first in firsts), default=now + self._confirm_timeout)
            )

    def _too_late(self, publish: _Publish) -> Exception:
        if publish.place is self._waiting and self._line is None:
            return self._not_connected()
        return TimeoutError(f"the NATS server did not confirm within {self._confirm_timeout:g} s")

    # The connection:

    async def _keep_connected(self) -> None:
        while self._line is not None:
            line = self._line
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.keep_alive)
                await line.wire.lost.wait()
                nursery.cancel_scope.cancel()
            if self._closed:
                return
            await trio.sleep(_SAYS_WHY_WITHIN)
            self._line = None
            self._learn_servers(line)
            self._fail_what_is_lost(line)
            await line.close()
            if not self._reconnect:
                self._end()
                return
            self._begin(await self._reconnected())
            self._connected_again_at = trio.current_time()

    async def _connect_to_any(self) -> Line:
        for last in range(len(self._servers) - 1, -1, -1):
            server = self._servers.pop(0)
            self._servers.append(server)
            try:
                return await connect(
                    server, self._options, self._connect_timeout, self._inbox, self._answered, self._noted
                )
            except ConnectionError:
                if not last:
                    raise
        raise ConnectionError("no servers")

    async def _reconnected(self) -> Line:
        backoff = Backoff(_FIRST_WAIT)
        while True:
            try:
                line = await self._connect_to_any()
            except Exception as error:  # noqa: BLE001 (whatever it is: the next time may do)
                self._trouble = error
                logger.debug("%s", in_a_line(error))
                await trio.sleep(backoff.next())
            else:
                logger.info("connected to the NATS server again")
                return line

    def _begin(self, line: Line) -> None:
        self._line = line
        self._trouble = None
        self._inbox, self._reply = line.inbox, line.inbox.encode()
        self._most = line.client.max_payload
        self.on_connected(line)
        self._filled.set()

    def _learn_servers(self, line: Line) -> None:
        found = [f"{server.scheme}://{server.netloc}" for server in line.client.discovered_servers]
        known = dict.fromkeys([*self._given, *found])
        current = self._servers[-1]
        self._servers = [*(server for server in known if server != current), current]

    def _fail_what_is_lost(self, line: Line) -> None:
        reason = self._trouble = line.went_silent or line.client.last_error
        said = "" if reason is None else f": {in_a_line(reason)}"
        logger.info("the connection to the NATS server was lost%s", said)
        for publish in list(self._unanswered.values()):
            # Whether the server has stored it, nobody can tell any more.
            error = ConnectionError(f"the connection to the NATS server was lost{said}")
            self._settle(publish, error if reason is None else caused_by(error, reason))
        for publish in [publish for publish in self._waiting.values() if publish.only_now]:
            self._settle(publish, self._not_connected())

    def _not_connected(self) -> Exception:
        reason = self._trouble
        said = "" if reason is None else f": {in_a_line(reason)}"
        error = ConnectionError(f"not sent, there is no connection to the NATS server{said}")
        return error if reason is None else caused_by(error, reason)

    # Nobody has taken a message: is there no stream for it, or is one only away?

    async def _explain(self) -> None:
        while True:
            await self._untaken_came.wait()
            self._untaken_came = trio.Event()
            untaken, self._untaken = self._untaken, []
            for publish in untaken:
                if publish.place is None:
                    continue
                subject = publish.publication.held_by
                error: Exception = nats.js.errors.NoStreamResponseError()
                if await self._no_stream_holds(subject):
                    error = nats.js.errors.NotFoundError(404, f"no stream holds {subject}")
                self._settle(publish, error)

    async def _no_stream_holds(self, subject: str) -> bool:
        """Whether the server knows for sure that there is none; asked once a second at most."""
        line, now = self._line, trio.current_time()
        if line is None or now < self._connected_again_at + _STREAMS_BACK_WITHIN:
            return False
        asked_at, absent = self._absent.get(subject, (-math.inf, False))
        if now < asked_at + _LOOKUP_HOLDS:
            return absent
        absent = False
        try:
            streams = line.client.jetstream(timeout=_LOOKUP_TIMEOUT)
            await in_asyncio(streams.find_stream_name_by_subject, subject)
        except nats.js.errors.NotFoundError:
            absent = True
        except Exception as error:  # noqa: BLE001 (then nobody can tell)
            logger.debug("which stream holds %s: %s", subject, in_a_line(error))
        self._absent[subject] = (trio.current_time(), absent)
        return absent


def _forget(publish: _Publish) -> None:
    if publish.place is not None:
        del publish.place[publish.number]
        publish.place = None


def _first(place: OrderedDict[int, _Publish]) -> _Publish:
    return next(iter(place.values()))
