"""Exceptions that come out of nurseries: what in a group is an error, and what is cancellation."""

from __future__ import annotations

from typing import NoReturn

import trio


def failure_in(raised: BaseException, *, timed_out: bool) -> Exception | None:
    """The error that a send failed with, or None where it was cut off and has not failed at all.

    A group with one exception in it stands for that exception: a send that opens a nursery raises such.
    """
    if isinstance(raised, BaseExceptionGroup):
        if not is_cancelled(raised):
            if len(raised.exceptions) == 1:
                return failure_in(raised.exceptions[0], timed_out=timed_out)
            return raised if isinstance(raised, Exception) else None
    elif isinstance(raised, Exception):
        return raised
    elif not isinstance(raised, trio.Cancelled):
        return None
    return trio.TooSlowError("the send took longer than send_timeout") if timed_out else None


def reraise_without_errors(raised: BaseException) -> NoReturn:
    """Raise again what cut a send off: of a group the cancellation, and not the send's own errors."""
    if isinstance(raised, BaseExceptionGroup):
        _, rest = raised.split(Exception)
        if rest is not None:
            raise rest from None
    raise raised


def is_cancelled(raised: BaseException) -> bool:
    """Whether there is a cancellation in it."""
    if isinstance(raised, BaseExceptionGroup):
        # Not `subgroup`: that calls `derive`, which a send's own class of groups may get wrong.
        return any(is_cancelled(inner) for inner in raised.exceptions)
    return isinstance(raised, trio.Cancelled)


def what_to_raise(
    from_block: BaseException | None, from_nursery: BaseException | None
) -> BaseException | None:
    """What leaves the block: the caller's own exception as it is, and without groups of our making.

    A nursery puts a group around whatever leaves it. From the workers there comes nothing but
    cancellation and what is no `Exception` (a `KeyboardInterrupt` in a send, say).
    """
    if from_nursery is None:
        return from_block
    crash = bare(from_nursery)
    if from_block is None:
        return crash
    if isinstance(crash, trio.Cancelled):
        return from_block
    if is_cancelled(from_block):
        return crash
    return BaseExceptionGroup("the block and a send both raised", [from_block, crash])


def bare(raised: BaseException) -> BaseException:
    """A lone exception without the groups around it, and one of many cancellations."""
    while isinstance(raised, BaseExceptionGroup):
        if len(raised.exceptions) > 1 and raised.split(trio.Cancelled)[1] is not None:
            break
        raised = raised.exceptions[0]
    return raised
