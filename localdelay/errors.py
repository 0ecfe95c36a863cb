"""What can go wrong, as a small tree: `LocalDelayError` and its children."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from .logs import log

_told: set[type] = set()  # kinds of `retry_after` that were ignored, and said to be


class LocalDelayError(Exception):
    """The base of every error that this library defines."""


class QueueFull(LocalDelayError):
    """The queue has no room, in messages or in bytes, or others already wait for room."""


class QueueClosed(LocalDelayError):
    """The queue takes no more messages: it is draining, or its block has been left."""


class Throttled(LocalDelayError):
    """The broker refuses for now because of a limit; the message itself is sound.

    Raised by a send, it uses up no attempt. `retry_after` is the wait in seconds that the broker
    asked for, or None where it said nothing: `Throttled(2.0)`, `Throttled(retry_after=2.0)`,
    `Throttled("429 too many requests", retry_after=2.0)`. It comes from strangers: what is no finite number
    of at least 0 becomes None, and a line of the log says so, once for each type.
    """

    retry_after: float | None = None  # also for a child that does not call `__init__`

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        if retry_after is None and len(args) == 1 and type(args[0]) in (int, float):
            retry_after = args[0]  # type: ignore[assignment]  # mypy does not follow the `in`
        if retry_after is not None:
            self.retry_after = _seconds_or_none(retry_after)


def asked_wait(error: BaseException | None) -> float | None:
    """The wait in seconds that a `Throttled` asks for, also where it was set later; of others, None."""
    if not isinstance(error, Throttled):
        return None
    try:
        return _seconds_or_none(error.retry_after)
    except Exception as raised:  # noqa: BLE001 (a child may have made a property of it)
        return _seconds_or_none(raised)


def _seconds_or_none(given: object) -> float | None:
    if given is None:
        return None
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
        return min(given, 1e18)  # an int may be larger than any float
    if type(given) not in _told:
        _told.add(type(given))
        line = "retry_after must be a number of seconds: one that is %s is ignored"
        log(logging.WARNING, line, _shown(given))
    return None


def _shown(given: object) -> str:
    return repr(given) if isinstance(given, float) else f"of type {type(given).__name__}"


class BreakerOpen(Throttled):
    """The primary was not called: it refused others just now, and the breaker is open."""


class RateLimited(Throttled):
    """The primary was not called: the limit that was set for it is reached."""


class Expired(LocalDelayError):
    """The message could only have been sent later than its `expires` past its execute-at: it was not sent."""


class PermanentSendError(LocalDelayError):
    """This message can never be sent, however often it is tried: it goes to the dead letters at once."""


class PartialSendError(LocalDelayError):
    """Some messages of a batch were not taken; those that are not named were confirmed.

    `failed` maps the ids of the messages that failed to their exceptions; anything else is a `TypeError`.
    """

    failed: Mapping[str, Exception] | None = None  # where a child does not call `__init__`: nobody knows

    def __init__(self, failed: Mapping[str, Exception]) -> None:
        if not isinstance(failed, Mapping):
            raise TypeError(f"failed must map ids to exceptions, not be {type(failed).__name__}")
        if not all(isinstance(key, str) and isinstance(error, Exception) for key, error in failed.items()):
            raise TypeError("failed must map ids to exceptions")
        self.failed = dict(failed)
        super().__init__(self.failed)

    def __str__(self) -> str:
        return f"{len(self.failed or ())} messages of the batch failed"


class DelayNotSupported(LocalDelayError):
    """The broker has no delay of its own: it publishes at once or not at all."""


class JournalError(LocalDelayError):
    """The journal on disk cannot be read or written."""
