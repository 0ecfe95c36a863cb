"""A line into a message, text as it is or a JSON object, and a message into such an object. Pure.

Text: the bytes of the line are the payload, and the delay is the same for all. An empty line is an empty
message.

JSON lines, each an object with `payload` (text, sent as UTF-8) or `payload_base64`; `delay` (seconds, or
"2m") or `at` (ISO 8601 with an offset; in the past: now), or neither where there is a delay for all; and if
you like `id`, `headers`, and `expires` (like `delay`: for how long past that time it is worth sending).
`error`, which dead letters have, is read over. Anything else is wrong.
"""

from __future__ import annotations

import binascii
import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias, TypedDict

from localdelay import arguments
from localdelay.brokers.wire import rfc3339
from localdelay.journal.record import Record
from localdelay.message import NO_HEADERS, Message, add_terms
from localdelay.units import parse_duration

KNOWN = frozenset({"payload", "payload_base64", "delay", "at", "id", "headers", "expires", "error"})
CUT_OFF = "cut_off"
"""Half a line, that a stop has cut off; `cut_off_base64` where it is no UTF-8."""

_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
_TIMES = "2026-01-31T12:00:00Z or 2026-01-31T12:00:00+01:00"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_duration = lru_cache(maxsize=1024)(parse_duration)
# It takes longer than all the rest of a line, and most lines have one of a few.


class Options(TypedDict, total=False):
    """The arguments of `put`, but for the payload."""

    delay: float
    at: datetime
    id: str
    headers: Mapping[str, str]
    expires: float


Parsed: TypeAlias = tuple[bytes, Options]
Parse: TypeAlias = Callable[[bytes], Parsed]
"""A line, without its line break, into the arguments of `put`; raises `WrongLine`."""


class WrongLine(ValueError):
    """What is wrong with a line, without anything of its payload."""


def text(delay: float) -> Parse:
    """Each line is a payload, due after `delay` seconds."""
    options: Options = {"delay": delay}
    return lambda line: (line, options)


def json_lines(delay: float | None) -> Parse:
    """Each line is a JSON object; `delay`, in seconds, is for those that say nothing of when."""
    return lambda line: _parse(line, delay)


def _parse(line: bytes, delay: float | None) -> Parsed:
    found = _object(line)
    if unknown := found.keys() - KNOWN:
        if unknown & {CUT_OFF, f"{CUT_OFF}_base64"}:
            raise WrongLine(f"{CUT_OFF} is half a line, that a stop has cut off: make it whole, or remove it")
        raise WrongLine(f"{_shown(min(unknown))} is no key that is known")
    options: Options = {}
    if "at" in found:
        if "delay" in found:
            raise WrongLine("only one of delay and at may be there")
        options["at"] = _at(_string("at", found["at"]))
    elif "delay" in found:
        options["delay"] = _delay("delay", found["delay"])
    elif delay is not None:
        options["delay"] = delay
    else:
        raise WrongLine("delay or at must be there, where no delay is given for all lines")
    if "id" in found:
        try:
            options["id"] = arguments.check_id(_string("id", found["id"]))
        except ValueError as error:
            raise WrongLine(str(error)) from None
    if "headers" in found:
        options["headers"] = _headers(found["headers"])
    if "expires" in found:
        options["expires"] = _delay("expires", found["expires"])
    return _payload(found), options


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = _DECODER.decode(line.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except WrongLine:
        raise
    except UnicodeDecodeError as error:
        raise WrongLine(f"is no UTF-8 from byte {error.start + 1} on") from None
    except json.JSONDecodeError as error:
        raise WrongLine(f"is no JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):
        raise WrongLine("is nested too deeply, or has a number with too many digits") from None
    if not isinstance(found, dict):
        raise WrongLine(f"must be a JSON object, not {_kind(found)}")
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise WrongLine(f"{_shown(twice)} is there twice")
    return found


def _constant(name: str) -> NoReturn:
    raise WrongLine(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def _payload(found: dict[str, Any]) -> bytes:
    if ("payload" in found) == ("payload_base64" in found):
        raise WrongLine("exactly one of payload and payload_base64 must be there")
    name = "payload" if "payload" in found else "payload_base64"
    value = _string(name, found[name])
    try:
        return value.encode() if name == "payload" else binascii.a2b_base64(value, strict_mode=True)
    except UnicodeEncodeError:
        raise WrongLine("payload must be text that UTF-8 can carry: it has half a surrogate pair") from None
    except ValueError:
        raise WrongLine("payload_base64 must be base64, with its padding and nothing in between") from None


def _delay(name: str, value: Any) -> float:
    try:
        return _duration(value) if isinstance(value, str) else arguments.at_least(name, value, 0)
    except TypeError:
        raise WrongLine(f"{name} must be a number of seconds or a string, not {_kind(value)}") from None
    except ValueError as error:
        raise WrongLine(f"{name}: {error}" if isinstance(value, str) else str(error)) from None


def _at(value: str) -> datetime:
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise WrongLine(f"at must be a time as in {_TIMES}") from None
    if at.utcoffset() is None:
        raise WrongLine(f"at must have an offset, as in {_TIMES}")
    return at


def _headers(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise WrongLine(f"headers must be an object of strings, not {_kind(value)}")
    for name, content in value.items():
        if not isinstance(content, str):
            raise WrongLine(f"headers must be an object of strings: {_shown(name)} is {_kind(content)}")
    try:
        return arguments.check_headers(value) or {}
    except ValueError:
        raise WrongLine("headers must be text that UTF-8 can carry: one has half a surrogate pair") from None


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise WrongLine(f"{name} must be a string, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")


def _shown(name: str) -> str:
    """A name that somebody else has chosen: printable, and not too long."""
    return repr(name if len(name) <= 40 else f"{name[:40]}...")


def record(message: Message, clock: float, wall: float, error: str | None = None) -> bytes:
    """The line of a message, with its line break; `clock` and `wall` are now, on both clocks.

    `at` is rounded up to the microsecond, so that nothing is early for having been written down.
    """
    found: dict[str, Any] = _as_text("payload", message.payload)
    left = message.execute_at - clock
    try:
        found["at"] = rfc3339(wall + left)
    except OverflowError:  # past the year 9999, or long before the first
        found["delay"] = max(0.0, left)
    found["id"] = message.id
    if message.headers:
        found["headers"] = dict(message.headers)
    if message.expires is not None:
        found["expires"] = message.expires
    if error is not None:
        found["error"] = error
    return _line(found)


def of_journal(kept: Record, now: float) -> bytes:
    """The line of what a journal holds, with its line break; `now` is Unix time in seconds.

    It says when the message is due and not how long that is from now, so that nothing is early or late for
    when and where the line is read. Only past the year 9999, which has no such text, is it the delay that is
    left. The attempt has no place in a line.
    """
    message = Message(kept.id, kept.payload, kept.due, kept.headers or NO_HEADERS, attempt=kept.attempt)
    add_terms(message, (kept.expires, kept.at))
    return record(message, now, now, kept.dead)


def cut_off(half: bytes) -> bytes:
    """The line of half a line: to be read back it must be made whole, and until then it is refused."""
    return _line(_as_text(CUT_OFF, half))


def _as_text(name: str, content: bytes) -> dict[str, str]:
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": binascii.b2a_base64(content, newline=False).decode()}


def _line(found: Mapping[str, Any]) -> bytes:
    # What is text here is UTF-8 but for an error, which may quote anything.
    return _encode(found).encode(errors="backslashreplace") + b"\n"
