"""Which due messages are sent together, and which of them a failed batch is to blame on. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from .errors import PartialSendError


def _whole(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value!r}")


def _seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number of seconds, not {value!r}")


@attrs.frozen
class BatchPolicy:
    """When a batch is full. A wrong argument is a `TypeError` or `ValueError` that names it."""

    max_messages: int = attrs.field(default=500, validator=_whole)
    max_bytes: int = attrs.field(default=1_000_000, validator=_whole)
    """Payloads and headers; a message that is larger on its own goes alone."""
    max_wait: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds that a message may wait for company past its execute-at; 0: only what is due goes together."""


ONE = BatchPolicy(max_messages=1)
"""No batches: each message goes alone."""


def blame(error: Exception, ids: Sequence[str]) -> Mapping[str, Exception] | None:
    """Which messages of a batch failed, and with what; None where the batch failed as a whole.

    A `PartialSendError` that names an id that is not in the batch cannot be trusted to say what was
    sent, so it counts against the whole batch: twice is better than never.
    """
    if isinstance(error, PartialSendError) and error.failed.keys() <= set(ids):
        return error.failed
    return None
