"""The message, and where its id comes from."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from .arguments import Terms

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
NO_TERMS: Terms = (None, None)

# An id is a random prefix of the process and a number. A forked child goes on with numbers of its own
# under a prefix of its own, and still knows its parent's: `number >> _BITS` says whose a number is.
_BITS = 52
_MASK = (1 << _BITS) - 1
_prefixes = [secrets.token_hex(6)]
_RUN = 32


def _all_runs(first: int) -> Iterator[range]:
    return map(range, itertools.count(first, _RUN), itertools.count(first + _RUN, _RUN))


_runs = _all_runs(_RUN)


def numbers() -> Iterator[int]:
    """Numbers that no other message of this process has, for one queue or fallback.

    They are taken from the process's in runs, so that those of one queue lie close together.
    """
    # No code of Python's runs in any of it. A handler of signals that came in the midst of a generator, and
    # raised there or put a message itself, would end that for good, and with it every put from then on.
    return itertools.chain.from_iterable(_runs)


def render_id(number: int) -> str:
    """The id of the message with this number: unique across processes by its random prefix."""
    return f"{_prefixes[number >> _BITS]}-{number & _MASK}"


def number_of(id: str) -> int | None:
    """The number behind an id that this process, or one that it was forked from, made; None for any other."""
    prefix, _, digits = id.rpartition("-")
    if prefix not in _prefixes or not re.fullmatch("[1-9][0-9]{0,15}", digits):
        return None
    number = int(digits)
    return _prefixes.index(prefix) << _BITS | number if number <= _MASK else None


def _begin_anew() -> None:
    global _runs  # noqa: PLW0603 (a forked child would otherwise give out its parent's ids)
    _runs = _all_runs((len(_prefixes) << _BITS) + _RUN)
    _prefixes.append(secrets.token_hex(6))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _as_text(id: str | int) -> str:
    # A number becomes text only when somebody looks: most messages are sent without.
    return id if isinstance(id, str) else render_id(id)


@attrs.define(repr=False, unsafe_hash=True)
class Message:
    """One delayed message, as `send`, the dead-letter hook and the hand-back receive it. It can't be changed.

    An id is text; the queues give a number instead, which stands for an id of this process. `repr` shows the
    size of the payload and never its bytes, so that a message can be logged.
    """

    # Properties over private fields, and not a frozen class: to make one of these takes a third of the
    # time, and one is made for each put and each send.
    _id: str | int = attrs.field(alias="id", eq=_as_text)
    _payload: bytes
    _execute_at: float
    _headers: Mapping[str, str] = attrs.field(default=NO_HEADERS, hash=False)
    _attempt: int = 1
    # Hardly any message has these: where they are set it is done afterwards, or all others would pay for it.
    _terms: Terms = attrs.field(init=False, eq=False)

    @property
    def id(self) -> str:
        """Never changes, from the first publish to the last retry: consumers deduplicate by it."""
        return _as_text(self._id)

    @property
    def payload(self) -> bytes:
        """What the caller gave to `put`."""
        return self._payload

    @property
    def execute_at(self) -> float:
        """When it is due, in seconds on Trio's clock."""
        return self._execute_at

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller gave to `put`, read-only."""
        return self._headers

    @property
    def attempt(self) -> int:
        """1 in the first send."""
        return self._attempt

    @property
    def expires(self) -> float | None:
        """Seconds past its execute-at after which it is not worth sending; None: it always is."""
        return terms_of(self)[0]

    @property
    def at(self) -> float | None:
        """The Unix time that it was put for by `at`; None where a delay was given."""
        return terms_of(self)[1]

    @property
    def size(self) -> int:
        """Bytes of payload and headers: what the queue counts against `capacity_bytes`."""
        return len(self.payload) + headers_size(self.headers)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may be read by another process, where a number would be the id of another message.
        parts = (self.id, self.payload, self.execute_at, dict(self.headers), self.attempt)
        terms = terms_of(self)
        return (Message, parts) if terms == NO_TERMS else (_with_terms, (parts, terms))

    def __repr__(self) -> str:
        return (
            f"Message(id={self.id!r}, payload=<{len(self.payload)} bytes>, "
            f"execute_at={self.execute_at!r}, attempt={self.attempt})"
        )


def terms_of(message: Message) -> Terms:
    """When the message expires, and which instant it was put for."""
    terms: Terms = getattr(message, "_terms", NO_TERMS)
    return terms


def add_terms(message: Message, terms: Terms) -> None:
    """Say so of a message that is being made."""
    message._terms = terms  # noqa: SLF001 (its other half)


def _with_terms(parts: Any, terms: Terms) -> Message:
    message = Message(*parts)
    add_terms(message, terms)
    return message


def number_in(message: Message) -> int | None:
    """What the id is made of, where a queue or a fallback of this process made it; else None."""
    return None if isinstance(message._id, str) else message._id  # noqa: SLF001 (its other half)


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes of all names and values in UTF-8."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
