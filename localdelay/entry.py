"""What waits, as plain tuples and bytes, and how to read it.

Most messages are a payload and nothing else, and that is all that is kept of them. Exact tuples and bytes
that hold nothing but each other, numbers and strings are invisible to the garbage collector: with millions
of objects of any class waiting, each full collection would walk all of them and stop everything meanwhile.
A `Message` is made when a message leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeAlias

from .message import NO_HEADERS, NO_TERMS, Message, add_terms, headers_size, number_in, render_id, terms_of

Details: TypeAlias = tuple[
    bytes, dict[str, str] | None, str | None, int, int, float, bool, float | None, float | None
]
"""(payload, headers, id that the caller chose, attempt, failures, execute_at, alone, expires, at); alone: to
be sent in a batch of its own; expires: in seconds past execute_at; at: the Unix time that it was put for."""
Body: TypeAlias = bytes | Details
Entry: TypeAlias = tuple[float, int, Body]
"""(due, number, body), `due` in seconds on Trio's clock; the number is unique and breaks ties."""

_BODY: Final = itemgetter(2)
CHOSEN_ID: Final = 2
_ATTEMPT: Final = 3
_FAILURES: Final = 4
_EXECUTE_AT: Final = 5
_ALONE: Final = 6
_EXPIRES: Final = 7
AT: Final = 8


def all_plain(entries: Sequence[Entry]) -> bool:
    """Whether each of these is a payload and nothing else. A loop in C, for it runs over every batch."""
    return {*map(type, map(_BODY, entries))} == {bytes}


def plain_size(entries: Sequence[Entry]) -> int:
    """Bytes of these together, if they are all plain."""
    return sum(map(len, map(_BODY, entries)))


def chosen_id(body: Body) -> str | None:
    """The id that the caller chose; None where the id is made of the number."""
    return None if isinstance(body, bytes) else body[CHOSEN_ID]


def attempt_of(body: Body) -> int:
    """The number of the message's next send, or of the one that is under way."""
    return 1 if isinstance(body, bytes) else body[_ATTEMPT]


def failures_of(body: Body) -> int:
    """How often this message has failed."""
    return 0 if isinstance(body, bytes) else body[_FAILURES]


def goes_alone(body: Body) -> bool:
    """Whether this message must not share a batch."""
    return not isinstance(body, bytes) and body[_ALONE]


def is_suspect(entry: Entry) -> bool:
    """Whether this message was being sent when the last process ended, and was not sent since."""
    # What a journal brings back has a number below 0; of these, what has not failed goes alone for this only.
    return entry[1] < 0 and goes_alone(entry[2]) and not failures_of(entry[2])


def execute_at_of(due: float, body: Body) -> float:
    """When the message was to be sent first: its due time, unless it is a retry."""
    return due if isinstance(body, bytes) else body[_EXECUTE_AT]


def expires_of(body: Body) -> float | None:
    """Seconds past its execute-at after which the message is not worth sending; None: it always is."""
    return None if isinstance(body, bytes) else body[_EXPIRES]


def has_expired(entry: Entry, now: float) -> bool:
    """Whether the message is not worth sending any more."""
    due, _, body = entry
    expires = expires_of(body)
    return expires is not None and now - execute_at_of(due, body) > expires


def at_of(body: Body) -> float | None:
    """The Unix time that the message was put for; None where a delay was given."""
    return None if isinstance(body, bytes) else body[AT]


def size_of(body: Body) -> int:
    """Bytes of payload and headers."""
    if isinstance(body, bytes):
        return len(body)
    payload, headers = body[0], body[1]
    return len(payload) if headers is None else len(payload) + headers_size(headers)


def message_of(entry: Entry) -> Message:
    """The message that the entry stands for."""
    due, number, body = entry
    if isinstance(body, bytes):
        return Message(number, body, due)
    payload, headers, chosen, attempt, _, execute_at, _, expires, at = body
    shown = NO_HEADERS if headers is None else MappingProxyType(headers)
    message = Message(number if chosen is None else chosen, payload, execute_at, shown, attempt)
    if expires is not None or at is not None:
        add_terms(message, (expires, at))
    return message


def plain_entry(message: Message) -> Entry | None:
    """The entry of a new message that is a payload and nothing else, and made of a number; else None."""
    number = number_in(message)
    if number is None or message.headers is not NO_HEADERS or terms_of(message) is not NO_TERMS:
        return None
    return message.execute_at, number, message.payload


def _details(due: float, body: Body) -> Details:
    return (body, None, None, 1, 0, due, False, None, None) if isinstance(body, bytes) else body


def rescheduled(entry: Entry, due: float, at: float | None, number: int) -> Entry:
    """The same message under another number and the id that it had, due then; `at` as in `Details`."""
    _, before, body = entry
    payload, headers, chosen, attempt, failures, _, alone, expires, _ = _details(due, body)
    name = render_id(before) if chosen is None else chosen
    if is_suspect(entry):
        number = -number  # and so it stays: it may have had its last attempt
    return due, number, (payload, headers, name, attempt, failures, due, alone, expires, at)


def moved(entry: Entry, when: float) -> Entry:
    """The same message, to be sent at another time than its execute-at."""
    due, number, body = entry
    return when, number, _details(due, body)


def moved_to(entry: Entry, due: float) -> Entry:
    """The same message with another execute-at, which has not failed."""
    _, number, body = entry
    if isinstance(body, bytes):
        return due, number, body
    return due, number, (*body[:_EXECUTE_AT], due, *body[_ALONE:])


def after_failing(entry: Entry, attempt: int, *, alone: bool, counts: bool = True) -> Body:
    """The body of the same message when it has failed once more, and `attempt` is its next send.

    Unless that `counts` it will wait no longer for it when it fails the next time.
    """
    due, _, body = entry
    payload, headers, chosen, _, failures, execute_at, before, expires, at = _details(due, body)
    failures = max(1, failures + counts)
    return (payload, headers, chosen, attempt, failures, execute_at, alone or before, expires, at)
