"""Checking what a caller puts, and fixing when it is due. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import trio

from localdelay import arguments
from localdelay.message import Message
from localdelay.redis_plan.bodies import encode
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.keys import LARGEST_ID
from localdelay.redis_plan.puts import Put, body_size
from localdelay.redis_plan.store import Limits

LONGEST = 5e9
"""Seconds: what a score can still tell to the microsecond."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def stamp(
    payload: bytes,
    delay: float | None,
    at: datetime | None,
    id: str | None,
    headers: Mapping[str, str] | None,
    clock: RedisClock,
    limits: Limits,
) -> Put:
    """What a put makes of its arguments; raises for what is wrong with them."""
    now = trio.current_time()
    due = arguments.execute_at(now, delay, at, wall=at)  # the wall clock of this machine says nothing
    instant = None if at is None else (at - _EPOCH) // _MICROSECOND
    if instant is not None:
        due = max(now, clock.local(instant))
    _check_not_too_far("delay" if at is None else "at", due - now)
    copy = None if headers is None else arguments.check_headers(headers)
    put = _put(arguments.check_payload(payload), copy, id, due, 1, limits)
    put.at = instant
    return put


def of_message(message: Message, due: float, limits: Limits) -> Put:
    """The put of a message that has its id; to find it there already is well."""
    _check_not_too_far("delay", due - trio.current_time())
    if message.expires is not None:
        raise ValueError("expires must be None: a message in Redis does not expire")
    put = _put(message.payload, dict(message.headers) or None, message.id, due, message.attempt, limits)
    put.twice = True
    return put


def _check_not_too_far(name: str, seconds: float) -> None:
    if seconds > LONGEST:
        raise ValueError(f"{name} must be less than {LONGEST:g} s away")


def _put(
    payload: bytes, headers: dict[str, str] | None, id: str | None, due: float, attempt: int, limits: Limits
) -> Put:
    if id is not None:
        arguments.check_id(id)
        if len(id.encode()) > LARGEST_ID:
            raise ValueError(f"id must have at most {LARGEST_ID} bytes")
    body = encode(payload, headers, attempt)
    if body_size(body) > limits.bytes:
        raise ValueError(
            f"payload and headers of {len(body)} bytes are over the shard_bytes of {limits.bytes}"
        )
    return Put(body, payload, headers, attempt, id, due)
