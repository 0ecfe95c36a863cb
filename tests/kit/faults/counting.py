"""What was put against what the broker has, by id, through a client that has nothing of localdelay's."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import cast
from urllib.parse import urlsplit

import attrs

from tests.kit.servers.process import Received, Server
from tests.kit.servers.redis import PAYLOAD, RedisServer

_AT_ONCE = 2_000
_MILLISECOND = 0.001
_SHOWN = 10
_DIGEST = 8
_ID, _EXECUTE_AT = "Localdelay-Id", "Localdelay-Execute-At"


def payload_of(key: str, due: float, size: int = 0) -> bytes:
    """A payload that says what it is, and when it is due (Unix time), so that no header need be believed.

    It ends with a digest of all that, so that a byte that has changed is seen.
    """
    text = (b"%s %.6f " % (key.encode(), due)).ljust(size - _DIGEST, b".")
    return text + b"%08x" % zlib.crc32(text)


@attrs.frozen
class Arrival:
    """One copy of a message, as the broker has it."""

    key: str
    """Whose it is: from the payload."""
    id: str | None
    """From the header; None where the broker has no headers."""
    due: float
    """Unix time, from the payload."""
    header_due: float | None
    """The same, as the library has told the consumer."""
    at: float
    """Unix time at which the broker had it at the latest."""
    is_sound: bool = True
    """Whether its payload is what was put."""


def arrival_of(received: Received, rounded_by: float = 0.0) -> Arrival:
    """One copy that was read; the broker's time is rounded down by so many seconds at most."""
    key, due, _ = received.payload.split(b" ", 2)
    header = received.headers.get(_EXECUTE_AT)
    return Arrival(
        key.decode(),
        received.headers.get(_ID),
        float(due),
        None if header is None else datetime.fromisoformat(header).timestamp(),
        received.at + rounded_by,
        b"%08x" % zlib.crc32(received.payload[:-_DIGEST]) == received.payload[-_DIGEST:],
    )


def in_redis(server: RedisServer, url: str) -> Iterator[Arrival]:
    """All entries of a stream, in their order; a million of them are never in memory at once."""
    stream, start = urlsplit(url).path[1:], "-"
    with server.client() as client:
        while entries := cast("list[tuple[bytes, dict[bytes, bytes]]]", _range(client, stream, start)):
            for id, fields in entries:
                headers = {name.decode(): value.decode() for name, value in fields.items() if name != PAYLOAD}
                at = int(id.split(b"-")[0]) / 1000
                yield arrival_of(Received(fields[PAYLOAD], headers, at), _MILLISECOND)
            start = f"({entries[-1][0].decode()}"


def _range(client: object, stream: str, start: str) -> object:
    return client.xrange(stream, start, count=_AT_ONCE)  # type: ignore[attr-defined]


def in_broker(server: Server, url: str, expected: int, timeout: float) -> Iterator[Arrival]:
    """What has arrived at any broker, as soon as so many have or the time is over."""
    if isinstance(server, RedisServer):
        return in_redis(server, url)
    rounded_by = _MILLISECOND if server.name == "kafka" else 0.0  # its records have milliseconds
    return (arrival_of(received, rounded_by) for received in server.read(url, expected, timeout))


@attrs.frozen
class Count:
    """What came of the messages."""

    arrived: int
    lost: int
    duplicated: int
    early: int
    latest: float
    """Seconds that the last of the first copies came after it was due."""
    cut_off: int
    """Messages that arrived and whose put has not returned: it was under way when the process was killed."""
    unexpected: int
    """Messages that arrived, and that nobody has begun to put."""
    both: int
    """Messages that arrived although the caller was told of them instead."""
    wrong: tuple[str, ...]


def count(
    accepted: Mapping[str, str],
    arrivals: Iterable[Arrival],
    *,
    told: Collection[str] = (),
    begun: Collection[str] = (),
    ahead: float = 0.0,
    headers: bool = True,
) -> Count:
    """Compare what was put with what has arrived.

    `accepted` has ids by keys; `told` are keys that the caller was told of instead, `begun` those of puts
    that have begun. `ahead` is what the process's wall clock was ahead of the broker's, in seconds. Without
    `headers` those are not compared with the broker's clock.
    """
    copies: dict[str, int] = {}
    early = cut_off = unexpected = renamed = damaged = 0
    latest = 0.0
    for arrival in arrivals:
        seen = copies.get(arrival.key, 0)
        copies[arrival.key] = seen + 1
        if arrival.key not in accepted:
            cut_off += not seen and arrival.key in begun
            unexpected += not seen and arrival.key not in begun
        elif arrival.id not in (None, accepted[arrival.key]):
            renamed += 1
        damaged += not arrival.is_sound
        dues = [arrival.due, arrival.header_due if headers else None]
        early += any(due is not None and arrival.at + ahead <= due for due in dues)
        if not seen:
            latest = max(latest, arrival.at + ahead - arrival.due)
    arrived = sum(key in copies for key in accepted)
    lost = [key for key in accepted if key not in copies and key not in told]
    both = sum(key in copies for key in told)
    wrong = [f"{renamed} arrived under another id"] * bool(renamed)
    if damaged:
        wrong.append(f"{damaged} arrived with another payload")
    if unexpected:
        wrong.append(f"{unexpected} arrived that nobody has put")
    if lost:
        wrong.append(f"lost: {', '.join(lost[:_SHOWN])}{' ...' if len(lost) > _SHOWN else ''}")
    duplicated = sum(copies.values()) - len(copies)
    return Count(arrived, len(lost), duplicated, early, latest, cut_off, unexpected, both, tuple(wrong))
