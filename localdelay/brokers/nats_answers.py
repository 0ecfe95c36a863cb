"""What a NATS server says, and what JetStream's answers and the errors of its connection mean. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors

from localdelay.brokers.line import OutOfStep
from localdelay.errors import PermanentSendError, Throttled

MESSAGES = (b"MSG", b"HMSG")
_OTHERS = (b"PING", b"PONG", b"INFO", b"+OK", b"-ERR")
_END = b"\r\n"
_LARGEST = 8 * 1024 * 1024  # bytes of a frame: answers, and what the server says of itself, are far below

_NO_RESPONDERS = b"NATS/1.0 503"
_TOO_MANY_REQUESTS = 429
# JetStream's err_code: the account's limits (a 400, though it passes); insufficient resources, memory,
# storage; too many requests.
_OUT_OF_ROOM = frozenset({10002, 10023, 10028, 10047, 10167})
_STORE_FAILED = 10077
_PUB_ACK = b'{"stream":'
_REFUSED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


class Frame(NamedTuple):
    """What the server says."""

    kind: bytes
    said: bytes
    """The subject of a message; of all else, the rest of its line."""
    headers: bytes = b""
    """Empty where there are none."""
    data: bytes = b""


def frames(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames in this data, and the rest. Raises `OutOfStep`. Pure."""
    found: list[Frame] = []
    begin = 0
    while (end := data.find(_END, begin)) >= 0:
        words = data[begin:end].split()
        kind, body = words[0] if words else b"", end + len(_END)
        if kind in MESSAGES:
            size, header_size = _sizes(words)
            after, split = body + size + len(_END), body + header_size
            if after > len(data):
                break
            found.append(Frame(kind, words[1], data[body:split], data[split : body + size]))
            begin = after
        elif kind in _OTHERS:
            found.append(Frame(kind, data[begin:end].partition(b" ")[2]))
            begin = body
        else:
            raise OutOfStep(f"it says {data[begin:end][:80]!r}")
    rest = data[begin:]
    if len(rest) > _LARGEST:
        raise OutOfStep(f"a frame of more than {_LARGEST} bytes")
    return found, rest


def _sizes(words: list[bytes]) -> tuple[int, int]:
    """Bytes of headers and payload, and of the headers, as the line of a message says them."""
    count = 2 if words[0] == b"HMSG" else 1
    sizes = words[3:][-count:]
    if len(sizes) != count or not all(size.isdigit() and len(size) < 10 for size in sizes):
        raise OutOfStep("a frame that says nothing of its size")
    size, header_size = int(sizes[-1]), int(sizes[0]) if count == 2 else 0
    if size > _LARGEST or header_size > size:
        raise OutOfStep(f"a frame of {size} bytes, of which {header_size} are headers")
    return size, header_size


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's: `Throttled`, `PermanentSendError`, or the error itself."""
    if isinstance(error, nats.js.errors.APIError):
        description = error.description or "refused"
        full = error.err_code == _STORE_FAILED and "exceeded" in description
        if error.code == _TOO_MANY_REQUESTS or error.err_code in _OUT_OF_ROOM or full:
            return Throttled(f"{error.code} {description} (err_code {error.err_code})")
        if isinstance(error, nats.js.errors.BadRequestError):
            return PermanentSendError(f"{error.code} {description} (err_code {error.err_code})")
        if isinstance(error, nats.js.errors.NotFoundError):
            return PermanentSendError(description)
    refused = refused_by(error)
    if refused is not None and refused[0] == "publish":
        return PermanentSendError(f"the server does not let this user publish to {refused[1]}")
    return error


def answer_error(headers: bytes, data: bytes) -> Exception | None:
    """The client's error that an answer to a publish stands for, or None where it confirms.

    `NoStreamResponseError` where nobody has taken the message, and `nats.errors.Error` for what is no answer
    of a stream's.
    """
    if data.startswith(_PUB_ACK) and b'"error"' not in data:
        return None
    if headers.startswith(_NO_RESPONDERS):
        return nats.js.errors.NoStreamResponseError()
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, Mapping):
        return nats.errors.Error("what has answered is no stream")
    error = told.get("error")
    if not isinstance(error, Mapping):
        confirms = error is None and "stream" in told and "seq" in told
        return None if confirms else nats.errors.Error("what has answered is no stream")
    # What a newer server may add to these would be a TypeError in nats-py, and so would be other types.
    kinds = {"code": int, "err_code": int, "description": str}
    known: dict[str, Any] = {
        name: value for name, kind in kinds.items() if isinstance(value := error.get(name), kind)
    }
    known.setdefault("code", None)
    try:
        nats.js.errors.APIError.from_error(known)  # raises it, though its name says otherwise
    except nats.js.errors.APIError as raised:
        return raised
    return nats.js.errors.APIError(**known)


def refused_by(error: BaseException) -> tuple[str, str] | None:
    """Where an error of the connection's is a refusal: of "publish" or "subscription", and the subject.

    The server names the subject, and nats-py then writes it in small letters.
    """
    found = _REFUSED.search(str(error))
    return (found[1].lower(), found[2]) if found else None


def in_a_line(error: BaseException) -> str:
    """What a client's error says, for people."""
    text = " ".join(str(error).split()).removeprefix("nats: ").strip("'\" ")
    return text or type(error).__name__
