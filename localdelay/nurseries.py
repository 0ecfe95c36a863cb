"""What comes out of nurseries: errors and cancellation told apart, and a nursery without groups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


def is_within(nursery: trio.Nursery | None) -> bool:
    """Whether the task that asks runs in this nursery, or in one that a task of it has opened."""
    around = trio.lowlevel.current_task().parent_nursery
    while around is not None and around is not nursery:
        around = around.parent_task.parent_nursery
    return around is not None


@asynccontextmanager
async def bare_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that nobody sees from outside: what its block raises leaves it as it is, in no group.

    Its tasks are cancelled where the block raises, and waited for where it ends well. What one of them raises
    leaves without the groups around it, too.
    """
    from_block: BaseException | None = None
    from_tasks: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as raised:
                from_block = raised
                if is_cancelled(raised):
                    raise  # only the nursery can tell whether it was its own cancellation, and ends well then
                nursery.cancel_scope.cancel()
    except BaseException as raised:  # noqa: BLE001 (raised again below)
        from_tasks = raised
    if from_tasks is not None:
        raise _of_both(from_block, bare(from_tasks))
    if from_block is not None and not is_cancelled(from_block):
        raise from_block


def _of_both(from_block: BaseException | None, crash: BaseException) -> BaseException:
    """What leaves: of what the block and the tasks raised, that which is no mere consequence of the other."""
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
