"""For asyncio programs: the queue runs on a Trio loop in a thread of its own, and sends on the caller's loop.

`send` and `publish_delayed` are coroutine functions that run on the loop that has opened the queue, for that
is the loop that their clients belong to. What is to be sent comes over many at a time, and so does what came
of it. Cancelling a task that waits here means what it means elsewhere: a cancelled put was not accepted, a
cancelled drain ends the workers at once, and a send that takes too long is cancelled on its loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, Unpack

from . import arguments
from .arguments import Delay
from .fallback.publishing import not_this_ones
from .fallback.router import World
from .message import Message, number_of
from .portal import awaiting
from .portal.calls import Call
from .portal.face import Face, RemoteFallback
from .portal.movable import MovableClock
from .portal.portal import Options, Remote
from .portal.tasks import Errands, Tasks, is_within
from .queue import opening
from .queue.admission import Stamped, already_pending
from .queue.draining import ended_inside
from .queue.queue import DelayQueue as DelayQueueOfTrio
from .queue.sending import awaitable
from .statistics import DrainReport
from .worlds import check_asyncio

__all__ = ["DelayQueue", "Fallback", "open_delay_queue", "start_delay_queue"]

Send: TypeAlias = Callable[..., Coroutine[Any, Any, object]]
HandBack: TypeAlias = Callable[[Message, float], Coroutine[Any, Any, object]]
PublishDelayed: TypeAlias = Callable[[Message, float], Coroutine[Any, Any, object]]
CancelDelayed: TypeAlias = Callable[[str, Any], Coroutine[Any, Any, object]]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _asked(
    act: Callable[Concatenate[DelayQueueOfTrio, _P], _T],
) -> Callable[Concatenate[DelayQueue, _P], Coroutine[Any, Any, _T]]:
    """The same method of the queue on its loop: called there, and awaited on this one."""

    @wraps(act)
    async def ask(self: DelayQueue, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._ask(lambda: act(self.remote.queue, *args, **kwargs))

    ask.__module__ = __name__
    return ask


class DelayQueue(Face):
    """Holds messages in memory until they are due, and then sends them. Made by `open_delay_queue` here.

    All methods are to be called on the asyncio loop that has opened it. What a method does or tells comes
    after all that was put before its call.
    """

    _asks = 0.02  # so long a call that is not awaited may hold the loop

    def __init__(self, remote: Remote, errands: Errands) -> None:
        super().__init__(remote)
        self.errands = errands
        """For `Fallback`."""
        self._block: AsyncExitStack | None = None

    async def put(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
    ) -> Message:
        """Accept a message, waiting for room if the queue is full.

        `delay` is in seconds, or a `timedelta`; `at` is an aware datetime, and one in the past means now:
        give one of them. `at` means the wall clock, also where that is set or the machine sleeps meanwhile; a
        `delay` stays a delay. When it is due is decided at the call, not when room is found. What could only
        be sent more than `expires` (as a delay) past its execute-at is not sent, but given to the dead
        letters with `Expired`. Calls get room in their order. With a journal it returns when that has the
        message. Raises `QueueClosed`, `JournalError`, and `TypeError` or `ValueError` for an argument that is
        wrong; an `id` that is pending already is wrong too. One that is cancelled was not accepted, or is
        cancelled in the queue as by `cancel`, as far as that can be done there.
        """
        stamped = self.remote.stamp(payload, delay, at, id, headers, expires, asks=None)
        if id is not None and number_of(id) is not None and await self.is_pending(id):
            raise already_pending(id)
        call = self.remote.accept_or_wait(stamped, waits=True)
        if call is not None:
            await awaiting.accepted(self.remote, call, math.inf)
        message = stamped[0]
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            awaiting.undo(self.remote, message)
            raise
        return message

    async def reschedule(self, id: str, *, delay: Delay | None = None, at: datetime | None = None) -> bool:
        """Give a message another execute-at, earlier or later: `delay` from now, or `at`, as for `put`.

        True: it has that, and is as new but for its attempts; should the process be killed before `flush` has
        returned, a journal may bring it back under the old one. False: it is unknown, being sent, or
        finished. Raises like `put` for a time that is wrong, and `RuntimeError` if the queue was opened with
        `cancellable=False`.
        """
        return await self._ask(self.remote.reschedule(id, delay, at))

    cancel = _asked(DelayQueueOfTrio.cancel)
    is_pending = _asked(DelayQueueOfTrio.is_pending)
    messages = _asked(DelayQueueOfTrio.messages)
    statistics = _asked(DelayQueueOfTrio.statistics)
    pause = _asked(DelayQueueOfTrio.pause)
    resume = _asked(DelayQueueOfTrio.resume)
    resize = _asked(DelayQueueOfTrio.resize)
    cut_short = _asked(DelayQueueOfTrio.cut_short)

    async def flush(self) -> None:
        """Wait until the journal has all that was accepted. Raises `JournalError` if it can't be written."""
        call: Call[None] = self.remote.begin(self.remote.queue.flush)
        await awaiting.outcome(self.remote, call)

    async def close(self) -> None:
        """End what `start_delay_queue` has started, as leaving a block does: wait until all is sent.

        With a `drain` before it it waits no longer than that. Raises `RuntimeError` inside a block, which
        ends its queue itself, and inside a send or a hand-back.
        """
        if self._block is None:
            raise RuntimeError("the queue ends with its block: close is for start_delay_queue")
        if self.remote.is_inside():  # before it takes the block: the queue goes on, and may be closed yet
            raise ended_inside("close")
        await self._block.aclose()
        await awaiting.ended(self.remote)  # for of two calls at once, one has found the block empty

    async def drain(self, grace: float | None = None, hand_back: HandBack | None = None) -> DrainReport:
        """Close the queue, empty it as far as the grace allows, end the workers, and say what became of all.

        `grace` is in seconds; None waits until all is sent. What comes due within it is sent on time; for
        the rest, `await hand_back(message, remaining_seconds)` is called on this loop at once, up to
        100 at a time, and again with the retry policy's waits where it fails. Whatever is still running at
        the end of the grace is cancelled or abandoned. What is left then stays in the journal; without one
        it is in the report's `remaining`, and stays pending. A queue can be drained once: a second call
        raises `QueueClosed`, and one from inside a send or a hand-back `RuntimeError`. If the caller is
        cancelled meanwhile, the workers are ended at once, and everything unfinished is still in
        `messages()`. Beyond the grace a journal that hangs is waited for, 5 s here and 10 s where the block
        is left.
        """
        arguments.check_seconds("grace", grace, zero=True)
        if self.remote.is_inside():
            raise ended_inside()
        given = None if hand_back is None else self.errands.on_loop("hand_back", hand_back)
        return await awaiting.outcome(self.remote, self.remote.drain(grace, given))

    async def _ask(self, act: Callable[[], _T]) -> _T:
        if self.remote.is_alone():
            return act()
        return await awaiting.outcome(self.remote, self.remote.begin(act))


@asynccontextmanager
async def open_delay_queue(
    send: Send | None = None,
    *,
    send_batch: Send | None = None,
    workers: int,
    on_dead_letter: Send | None = None,
    drain_on_exit: float | None = None,
    clock: MovableClock | None = None,
    **options: Unpack[Options],
) -> AsyncIterator[DelayQueue]:
    """Run a delay queue, in a thread of its own, for the length of an `async with` block.

    `await send(message)`, `await send_batch(messages)` and `await on_dead_letter(message, error)` run on the
    loop of the caller, as many sends at once as there are `workers`, each with the context that the queue was
    opened in. A task sends several messages, one after the other; a send that takes longer than
    `send_timeout` is cancelled. The other options are those of `localdelay.open_delay_queue`, and so is what
    happens when the block is left. A program that exits without leaving it warns of what is pending; a
    forked child has no queue. Sends need this loop: `drain_on_exit` is for programs in which it still runs
    at the exit. A listener or a key that raises what is no `Exception`, as `sys.exit()` does, ends the queue
    at once: the log has an error, and who leaves the block has it raised. A test may give a `clock` of its
    own, `localdelay.testing.MovableClock`.
    """
    check_asyncio("localdelay.aio.open_delay_queue")
    errands = Errands(asyncio.get_running_loop())
    tasks = None if send is None else Tasks(send, arguments.count("workers", workers))
    opened = partial(
        opening.open_delay_queue,
        tasks,
        send_batch=None if send_batch is None else errands.on_loop("send_batch", send_batch),
        on_dead_letter=None if on_dead_letter is None else errands.on_loop("on_dead_letter", on_dead_letter),
        workers=workers,
        **options,
    )
    remote = Remote(
        opened, lambda: is_within(errands) or is_within(tasks), drain_on_exit=drain_on_exit, clock=clock
    )
    try:
        # Awaited, for a journal of millions takes seconds, in which the loop has other things to do.
        await asyncio.shield(asyncio.wrap_future(remote.start()))
        yield DelayQueue(remote, errands)
        remote.leave(at_once=False)
        if not remote.ended.done():
            await asyncio.shield(asyncio.wrap_future(remote.ended))
        remote.result()
    except BaseException as raised:
        if isinstance(raised, GeneratorExit):
            remote.drop()
        else:
            remote.leave(at_once=True)
        try:
            if remote.runs() and not remote.ended.done():
                await awaiting.until(asyncio.wrap_future(remote.ended))
        finally:
            with suppress(Exception):  # what the block raised is what matters
                remote.result()
        raise


def _starts(
    opens: Callable[_P, AbstractAsyncContextManager[DelayQueue]],
) -> Callable[_P, Coroutine[Any, Any, DelayQueue]]:
    async def start_delay_queue(*args: _P.args, **options: _P.kwargs) -> DelayQueue:
        """`open_delay_queue` without a block, for a class or a notebook: `close` ends the queue.

        To drop it without that ends it as an exception ends a block, with a warning.
        """
        async with AsyncExitStack() as block:
            queue = await block.enter_async_context(opens(*args, **options))
            queue._block = block.pop_all()  # noqa: SLF001 (its own)
        return queue

    return start_delay_queue


start_delay_queue = _starts(open_delay_queue)


class Fallback(RemoteFallback[PublishDelayed, DelayQueue, CancelDelayed]):
    """Publishes through a primary on the caller's loop, and through the local queue what that refuses.

    `publish_delayed` is a coroutine function that runs on the loop that has opened the queue; the listener
    is called on either loop.
    """

    async def _put(self, stamped: Stamped, patience: float) -> None:
        remote = self._queue.remote
        if (call := remote.accept_or_wait(stamped, waits=patience > 0)) is not None:
            await awaiting.accepted(remote, call, patience)

    async def _call(self, function: Callable[..., Awaitable[object]], *args: object) -> object:
        timeout = self._publish_timeout
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout) as limit:
                return await function(*args)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"the primary took longer than {timeout:g} s") from error

    async def _hand_back(self, message: Message, delay: float) -> None:
        handle = await awaitable("publish_delayed", self._publish_delayed(message, delay))
        self._router.remember(message, handle)

    def _world(self) -> World:
        queue = self._queue
        if not isinstance(queue, DelayQueue):
            raise not_this_ones("localdelay.aio.DelayQueue", queue)
        return queue.remote.world(queue.errands.on_loop("publish_delayed", self._hand_back))
