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
_LINE = re.compile(
    rb"((H)?MSG) (\S+) \S+ (?:\S+ )?(?(2)(\d{1,9}) )(\d{1,9})|(PING|PONG|INFO|\+OK|-ERR)(?: (.*))?", re.DOTALL
)
"""A message, whose subject, bytes of headers and bytes in all it says; or something else."""
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
        line = _LINE.fullmatch(data, begin, end)
        if line is None:
            raise OutOfStep(f"no frame of NATS's: {data[begin:end][:80]!r}")
        message, _, subject, header_size, size, kind, said = line.groups()
        body = after = end + len(_END)
        if not message:
            found.append(Frame(kind, said or b""))
        else:
            split, last = body + int(header_size or 0), body + int(size)
            if split > last or last - body > _LARGEST:
                raise OutOfStep(f"a frame of {last - body} bytes, of which {split - body} are headers")
            after = last + len(_END)
            if after > len(data):
                break
            found.append(Frame(message, subject, data[body:split], data[split:last]))
        begin = after
    rest = data[begin:]
    if len(rest) > _LARGEST:
        raise OutOfStep(f"a frame of more than {_LARGEST} bytes")
    return found, rest


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
        told = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        told = {}
    error = told.get("error")
    if not isinstance(error, Mapping):
        confirms = error is None and "stream" in told and "seq" in told
        return None if confirms else nats.errors.Error("what has answered is no stream")
    # What a newer server may add to these would be a TypeError in nats-py, and so would be other types.
    kinds = {"code": int, "err_code": int, "description": str}
    known: dict[str, Any] = {
        name: value for name, kind in kinds.items() if isinstance(value := error.get(name), kind)
    }
    try:
        nats.js.errors.APIError.from_error({"code": None, **known})  # raises it, whatever its name says
    except nats.js.errors.APIError as raised:
        return raised
    return nats.js.errors.APIError(**known)


def refused_by(error: BaseException) -> tuple[str, str] | None:
    """Where an error of the connection's is a refusal: of "publish" or "subscription", and the subject.

    The server names the subject.
    """
    found = _REFUSED.search(str(error))
    return (found[1].lower(), found[2]) if found else None
