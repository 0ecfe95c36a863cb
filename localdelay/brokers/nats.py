"""NATS JetStream, with nats-py's errors, on a line of its own. Needs the extra `nats`."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any
from urllib.parse import urlsplit

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.line import connect_socket
from localdelay.brokers.nats_answers import classified
from localdelay.brokers.nats_line import Connection, Publication
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ID, OWN, headers_of, rfc3339
from localdelay.errors import PermanentSendError
from localdelay.message import Message

_SCHEDULE, _TARGET = "Nats-Schedule", "Nats-Schedule-Target"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110
# A line of the protocol may have 4,096 bytes, and more than a subject is in it.
_LONGEST_SUBJECT = 3000
_PORT = 4222
_MAX_PAYLOAD = 1024 * 1024  # the server's own, until it has said which


def schedule_subject(subject: str, id: str) -> str:
    """Where the schedule of one message is kept: an id may hold what a subject may not."""
    return f"{subject}.delayed.{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def stream_subjects(subject: str) -> list[str]:
    """The subjects that a stream must hold for `send` and `publish_delayed`."""
    return [subject, f"{subject}.delayed.*"]


def has_schedules(version: str) -> bool:
    """Whether a server of this version has message schedules."""
    said = re.match(r"(\d+)\.(\d+)", version)
    return said is not None and (int(said[1]), int(said[2])) >= (2, 12)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they go out. Raises `PermanentSendError` for what is no NATS header."""
    name = headers[ID]
    if name != name.strip() or "\n" in name or "\r" in name:
        raise PermanentSendError("an id with a line break, or blanks around it, can't be a NATS header")
    lines = "NATS/1.0\r\n"
    for name, value in headers.items():
        if name not in OWN:
            if not _NAME.fullmatch(name):
                raise PermanentSendError(f"a header can't be called {name!r} in NATS")
            if "\n" in value or "\r" in value:
                raise PermanentSendError(f"the header {name!r} has a line break, which NATS can't carry")
        lines += f"{name}: {value}\r\n"
    return f"{lines}\r\n".encode()


class _Driver(Driver):
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self.where = f"NATS at {where.place}"
        if len(where.target.encode()) > _LONGEST_SUBJECT:
            raise ValueError(f"the subject must have {_LONGEST_SUBJECT:,} bytes at most")
        self._subject = where.target
        self._inbox = where.options.get("inbox_prefix", "_INBOX")
        if not re.fullmatch(r"[^\s*>]+", self._inbox):
            raise ValueError("inbox_prefix must be a subject, as in ?inbox_prefix=mine")
        self._needs_tls = where.choice("tls", "required") is not None
        self._user: dict[str, str] = {}
        if where.username and where.password is None:
            self._user = {"auth_token": where.username}
        elif where.username:
            self._user = {"user": where.username, "pass": where.password or ""}
        self._given = where.hosts
        self._servers = list(where.hosts)
        """The one that it was connected to is the last to be tried again."""
        self._most = _MAX_PAYLOAD
        self._connected_before = False

    def encode(self, message: Message, delay: float | None, now: float) -> Publication:
        subject = held_by = self._subject
        if delay is None:
            headers = headers_of(message, now)
        else:
            due = time.time() + delay
            try:
                at = rfc3339(due)
            except OverflowError:
                raise ValueError(f"delay must end before the year 10000, not {delay:g} s from now") from None
            ours = (_SCHEDULE.lower(), _TARGET.lower())
            headers = {
                name: value
                for name, value in headers_of(message, now, at).items()
                if name.lower() not in ours
            }
            headers |= {_SCHEDULE: f"@at {at}", _TARGET: subject}
            held_by = stream_subjects(subject)[1]
            subject = schedule_subject(subject, message.id)
        lines = header_lines(headers)
        size = len(lines) + len(message.payload)
        if size > self._most:
            # The server would not just refuse it: it would end the connection.
            raise PermanentSendError(f"{size} bytes with headers; this server takes {self._most} at most")
        return Publication(subject, lines, message.payload, held_by)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[Connection]:
        with closing(await self._reach(outbox)) as connection:
            self._know(connection.info)
            yield connection

    async def _reach(self, outbox: Outbox) -> Connection:
        """Connect to the first server that lets one in. Raises what is wrong with the last one."""
        left = len(self._servers)
        while True:
            host, port = server = self._servers.pop(0)
            self._servers.append(server)
            now = trio.current_time()
            try:
                # One that does not answer must leave some time for the others.
                with trio.fail_after(max(0.0, trio.current_effective_deadline() - now) / left):
                    connected = await connect_socket(host, port)
                    connection = Connection(connected, outbox, self._inbox, again=self._connected_before)
                    try:
                        await connection.open(host, self._user, needs_tls=self._needs_tls)
                    except BaseException:
                        connection.close()
                        raise
                    return connection
            except Exception:
                left -= 1
                if not left:
                    raise

    def _know(self, info: Mapping[str, Any]) -> None:
        """What the server says of itself, and of its cluster."""
        self._connected_before = True
        version = f"{info.get('version')}"
        self.native_delay = has_schedules(version)
        self.no_delay = f"NATS {version} has no message schedules: they came with 2.12"
        try:
            self._most = int(info.get("max_payload", _MAX_PAYLOAD))
            hosts = [urlsplit(f"//{one}") for one in info.get("connect_urls") or ()]
            found = [(one.hostname or "", one.port or _PORT) for one in hosts]
        except (TypeError, ValueError):
            raise ConnectionError("what it says of itself is none of NATS's") from None
        current = self._servers[-1]
        known = dict.fromkeys([*self._given, *found])
        self._servers = [*(server for server in known if server != current), current]


driver_at = _Driver
