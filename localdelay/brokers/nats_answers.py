"""What NATS JetStream's answers to a publish mean, and the errors of its connection. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import nats.errors
import nats.js.errors

from localdelay.errors import PermanentSendError, Throttled

_NO_RESPONDERS = b"NATS/1.0 503"
_TOO_MANY_REQUESTS = 429
# JetStream's err_code: the account's limits (a 400, though it passes); insufficient resources, memory,
# storage; too many requests.
_OUT_OF_ROOM = frozenset({10002, 10023, 10028, 10047, 10167})
_STORE_FAILED = 10077
_PUB_ACK = b'{"stream":'
_REFUSED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


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
