"""A publish as the bytes that AMQP 0-9-1 puts on the wire, and the queues that delay messages.

pika would build the same bytes from half a dozen objects a message, and give each of the three frames to
the socket by a call of its own: that is what most of its time goes into.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final, Literal

from pika import frame, spec

from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, rfc3339
from localdelay.errors import PermanentSendError
from localdelay.message import Message

DelayQueueType = Literal["classic", "quorum"]

SHORT: Final = 255
"""Bytes of UTF-8 that a name may have."""
LONGEST_DELAY: Final = 315_360_000_000 - 600_000
"""Milliseconds: RabbitMQ lets a queue live unused for ten years."""
LEASE_MARGIN: Final = 600.0
"""Seconds that a delay queue lives longer than what was put into it when it was declared."""

_FRAME_OVERHEAD = 8  # type, channel and size before a frame's payload, and its end
_END = bytes([spec.FRAME_END])
_PERSISTENT = bytes([spec.PERSISTENT_DELIVERY_MODE])
_FLAGS = spec.BasicProperties.FLAG_HEADERS | spec.BasicProperties.FLAG_DELIVERY_MODE
_FLAGS_WITH_ID = _FLAGS | spec.BasicProperties.FLAG_MESSAGE_ID
_DIGITS = 3
_OWN = frozenset({ID, ATTEMPT, EXECUTE_AT})
# RabbitMQ takes further routing keys from these, and closes the channel where they are no list.
_ROUTING = frozenset({"CC", "BCC"})

_head = struct.Struct(">BHI").pack
_content = struct.Struct(">HxxQH").pack
_length = struct.Struct(">I").pack


def publish_frame(channel: int, queue: str) -> bytes:
    """The first frame of a publish to a queue, through the default exchange, mandatory."""
    method = spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
    return bytes(frame.Method(channel, method).marshal())


def content_frames(channel: int, message: Message, due: float, frame_max: int) -> list[bytes | memoryview]:
    """The frames after that, in pieces: properties and payload, in frames of at most `frame_max` bytes.

    Raises `PermanentSendError` for what AMQP, or RabbitMQ, can't carry.
    """
    payload = message.payload
    try:
        encoded_id = message.id.encode()
        headers = _headers(message, encoded_id, due)
    except UnicodeEncodeError:
        # Its own text, and what it is about, would show a header.
        raise PermanentSendError("an id or a header has a surrogate, which is no UTF-8") from None
    if len(encoded_id) <= SHORT:
        flags, rest = _FLAGS_WITH_ID, b"%b%c%b" % (_PERSISTENT, len(encoded_id), encoded_id)
    else:  # too long for a property: it travels in the headers alone
        flags, rest = _FLAGS, _PERSISTENT
    size, length = len(payload), 18 + len(headers) + len(rest)
    largest = frame_max - _FRAME_OVERHEAD
    if length > largest:
        raise PermanentSendError(f"id and headers take {length} bytes; this broker takes {largest} at most")
    properties = b"%b%b%b%b%b%b" % (
        _head(spec.FRAME_HEADER, channel, length),
        _content(spec.BasicProperties.INDEX, size, flags),
        _length(len(headers)),
        headers,
        rest,
        _END,
    )
    if size <= largest:
        if not size:
            return [properties]
        return [properties, _head(spec.FRAME_BODY, channel, size), payload, _END]
    pieces: list[bytes | memoryview] = [properties]
    view = memoryview(payload)
    for start in range(0, size, largest):
        part = view[start : start + largest]
        pieces += (_head(spec.FRAME_BODY, channel, len(part)), part, _END)
    return pieces


def _headers(message: Message, encoded_id: bytes, due: float) -> bytes:
    """The table of headers, without its length."""
    attempt, execute_at = b"%d" % message.attempt, rfc3339(due).encode()
    own = b"".join(
        (
            _ID_KEY,
            _length(len(encoded_id)),
            encoded_id,
            _ATTEMPT_KEY,
            _length(len(attempt)),
            attempt,
            _EXECUTE_AT_KEY,
            _length(len(execute_at)),
            execute_at,
        )
    )
    return own if not message.headers else _table(message.headers) + own


def _table(headers: Mapping[str, str]) -> bytes:
    pieces: list[bytes] = []
    for name, value in headers.items():
        if name in _OWN:
            continue
        if name in _ROUTING:
            raise PermanentSendError(f"RabbitMQ takes no text as the header {name}: it is for routing")
        text = value.encode()
        pieces += (_key(name), _length(len(text)), text)
    return b"".join(pieces)


def _key(name: str) -> bytes:
    """The name of a header whose value is text, as it stands before the value's length."""
    encoded = name.encode()
    if len(encoded) > SHORT:
        raise PermanentSendError(
            f"the name of a header takes {len(encoded)} bytes; AMQP takes {SHORT} at most"
        )
    return b"%c%bS" % (len(encoded), encoded)


_ID_KEY, _ATTEMPT_KEY, _EXECUTE_AT_KEY = _key(ID), _key(ATTEMPT), _key(EXECUTE_AT)


def quantised(delay: float) -> int:
    """A delay in seconds as whole milliseconds of three significant digits, rounded up: at most 1 % more.

    So that there are at most 900 delay queues a decade. Raises `PermanentSendError` above ten years.
    """
    # What a float is off by, such as 1.11 · 1000, is no millisecond: it is less than a nanosecond.
    exact = round(delay * 1000, 6)
    if exact > LONGEST_DELAY:
        raise PermanentSendError(f"RabbitMQ's longest delay is {LONGEST_DELAY / 1000:g} s, not {delay:g} s")
    milliseconds = math.ceil(exact)
    step: int = 10 ** max(0, len(str(milliseconds)) - _DIGITS)
    return -(-milliseconds // step) * step


def delay_queue(queue: str, milliseconds: int, type: DelayQueueType) -> str:
    """The name of the queue that delays messages for another one by so much."""
    suffix = "" if type == "classic" else f".{type}"
    return f"localdelay.{queue}.{milliseconds}{suffix}"


def delay_arguments(queue: str, milliseconds: int, type: DelayQueueType) -> dict[str, str | int]:
    """The arguments that such a queue is declared with: of its name alone, so that all declare the same."""
    arguments: dict[str, str | int] = {
        "x-queue-type": type,
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        # Under a policy that bounds its length it refuses, where it would else dead-letter early.
        "x-overflow": "reject-publish",
        "x-expires": milliseconds + int(LEASE_MARGIN * 1000),
    }
    if type == "quorum":
        arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments
