"""The message, and where its id comes from."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Mapping
from types import MappingProxyType

import attrs

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_sequence = itertools.count(1)
_prefix = secrets.token_hex(6)


def next_number() -> int:
    """A number that no other message of this process has; `render_id` makes the id of it."""
    return next(_sequence)


def render_id(number: int) -> str:
    """The id of the message with this number: unique across processes by its random prefix."""
    return f"{_prefix}-{number}"


def fresh_id() -> str:
    """An id for a message that no queue has numbered yet."""
    return f"{_prefix}-p{next(_sequence)}"


def number_of(id: str) -> int | None:
    """The number behind an id that this process made, or None for any other id."""
    prefix, _, digits = id.rpartition("-")
    if prefix != _prefix or not digits.isascii() or not digits.isdigit() or digits.startswith("0"):
        return None
    return int(digits)


def _renew_prefix() -> None:
    global _prefix  # noqa: PLW0603 (a forked child would otherwise give out its parent's ids)
    _prefix = secrets.token_hex(6)


os.register_at_fork(after_in_child=_renew_prefix)


@attrs.frozen(repr=False)
class Message:
    """One delayed message, as `send`, the dead-letter hook and the hand-back receive it.

    `repr` shows the size of the payload and never its bytes, so that a message can be logged.
    """

    _id: str | int = attrs.field(alias="id")
    payload: bytes
    execute_at: float
    """When it is due, in seconds on Trio's clock."""
    headers: Mapping[str, str] = NO_HEADERS
    attempt: int = 1
    """1 in the first send."""

    @property
    def id(self) -> str:
        """Never changes, from the first publish to the last retry: consumers deduplicate by it."""
        # A number becomes text only when somebody looks: most messages are sent without.
        return self._id if isinstance(self._id, str) else render_id(self._id)

    @property
    def size(self) -> int:
        """Bytes of payload and headers: what the queue counts against `capacity_bytes`."""
        return len(self.payload) + headers_size(self.headers)

    def __repr__(self) -> str:
        return (
            f"Message(id={self.id!r}, payload=<{len(self.payload)} bytes>, "
            f"execute_at={self.execute_at!r}, attempt={self.attempt})"
        )


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes of all names and values in UTF-8."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
