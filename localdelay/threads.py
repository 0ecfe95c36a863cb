"""For threaded programs: the queue runs on a Trio loop in a thread of its own, and any thread may use it.

A function `publish_delayed(topic, body, delay)` that a program calls everywhere keeps its callers:

    def degrading(publish_delayed):
        def primary(message, delay):
            return publish_delayed(message.headers["topic"], message.payload, delay)

        fallback = threads.Fallback(primary, queue)

        @functools.wraps(publish_delayed)
        def publish(topic, body, delay):
            return fallback.publish(body, delay=delay, headers={"topic": topic})

        return publish

    def send(message):
        client.publish(message.headers["topic"], message.payload)

    queue = threads.start_delay_queue(send, capacity=24_000, workers=20, drain_on_exit=25.0)

    @degrading
    def publish_delayed(topic, body, delay):
        client.publish(topic, body, delay=delay)

On asyncio it is the same with `async def` and `await`, where the queue is started on the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from datetime import datetime
from functools import partial, wraps
from threading import get_ident
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, Unpack

import trio

from . import arguments
from .arguments import NOT_GIVEN, Delay, NotGiven
from .fallback.publishing import not_this_ones
from .fallback.router import World
from .message import Message
from .portal.blocking import MOST, Leaving, finished, in_threads
from .portal.calls import Call
from .portal.face import Face, RemoteFallback
from .portal.movable import MovableClock
from .portal.pool import Threads
from .portal.portal import Options, Remote
from .queue import opening
from .queue.admission import Stamped
from .queue.draining import HAND_BACKS_IN_FLIGHT, ended_inside
from .queue.queue import DelayQueue as DelayQueueOfTrio
from .queue.sending import HandBack as HandBackOnLoop
from .statistics import DrainReport

__all__ = ["DelayQueue", "Fallback", "open_delay_queue", "start_delay_queue"]

HandBack: TypeAlias = Callable[[Message, float], object]
_P = ParamSpec("_P")
_T = TypeVar("_T")
PublishDelayed: TypeAlias = Callable[[Message, float], object]
CancelDelayed: TypeAlias = Callable[[str, Any], object]


def _asked(
    act: Callable[Concatenate[DelayQueueOfTrio, _P], _T],
) -> Callable[Concatenate[DelayQueue, _P], _T]:
    """The same method of the queue on its loop: called there, and waited for in any thread."""

    @wraps(act)
    def ask(self: DelayQueue, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.remote.ask(lambda: act(self.remote.queue, *args, **kwargs))

    ask.__module__ = __name__
    return ask


class DelayQueue(Face):
    """Holds messages in memory until they are due, and then sends them. Made by `open_delay_queue` here.

    Any thread may call any method, but a `send` that runs on the loop: it would wait for itself. What a
    method does or tells comes after all that was put before its call.
    """

    def __init__(self, remote: Remote, pool: Threads, hooks: Threads) -> None:
        super().__init__(remote)
        self._hands_back: set[int] = set()  # the threads in which something is handed back right now
        self._pool = pool
        self._hooks = hooks
        self._blocks: list[ExitStack] | None = None  # where it was started: one, until `close` takes it

    def put(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Accept a message, blocking while the queue is full, for at most `timeout` seconds.

        Then it raises `QueueFull`. `delay` is in seconds, or a `timedelta`; `at` is an aware datetime, and
        one in the past means now: give one of them. `at` means the wall clock, also where that is set or the
        machine sleeps meanwhile; a `delay` stays a delay. When it is due is decided at the call, not when
        room is found. What could only be sent more than `expires` (as a delay) past its execute-at is not
        sent, but given to the dead letters with `Expired`. Calls get room in their order. With a journal it
        returns when that has the message. Raises `QueueClosed`, `JournalError`, and `TypeError` or
        `ValueError` for an argument that is wrong; an `id` that is pending already is wrong too.
        """
        stamped = self.remote.stamp(payload, delay, at, id, headers, expires)
        return self.remote.put(stamped, arguments.check_seconds("timeout", timeout, zero=True))

    def reschedule(self, id: str, *, delay: Delay | None = None, at: datetime | None = None) -> bool:
        """Give a message another execute-at, earlier or later: `delay` from now, or `at`, as for `put`.

        True: it has that, and is as new but for its attempts; should the process be killed before `flush` has
        returned, a journal may bring it back under the old one. False: it is unknown, being sent, or
        finished. Raises like `put` for a time that is wrong, and `RuntimeError` if the queue was opened with
        `cancellable=False`.
        """
        return self.remote.ask(self.remote.reschedule(id, delay, at))

    cancel = _asked(DelayQueueOfTrio.cancel)
    is_pending = _asked(DelayQueueOfTrio.is_pending)
    messages = _asked(DelayQueueOfTrio.messages)
    statistics = _asked(DelayQueueOfTrio.statistics)
    pause = _asked(DelayQueueOfTrio.pause)
    resume = _asked(DelayQueueOfTrio.resume)

    def resize(
        self,
        *,
        capacity: int | None = None,
        workers: int | None = None,
        capacity_bytes: int | NotGiven | None = NOT_GIVEN,
    ) -> None:
        """Change the capacity (messages), the workers, or `capacity_bytes` (None: no limit).

        Nothing that is pending is lost and no send is interrupted: a queue that holds more than its new
        capacity accepts nothing until it holds less, and a worker too many leaves when it is idle. A put
        that waits with a message larger than the new `capacity_bytes` raises `ValueError`.
        """

        def resize() -> None:
            self.remote.queue.resize(capacity=capacity, workers=workers, capacity_bytes=capacity_bytes)
            if workers is not None:
                self._pool.resize(workers)
                self._hooks.resize(workers)

        self.remote.ask(resize)

    def flush(self) -> None:
        """Wait until the journal has all that was accepted. Raises `JournalError` if it can't be written."""

        def begin() -> Call[None]:
            return self.remote.begin(self.remote.queue.flush)

        self.remote.wait(begin)

    def close(self) -> None:
        """End what `start_delay_queue` has started, as leaving a block does: wait until all is sent.

        With a `drain` before it it waits no longer than that. Raises `RuntimeError` inside a block, which
        ends its queue itself, and inside a send or a hand-back.
        """
        if self._blocks is None:
            raise RuntimeError("the queue ends with its block: close is for start_delay_queue")
        # Before it takes the block: the queue goes on, and may be closed yet.
        self._check_outside("close")
        self.remote.check_elsewhere()
        try:
            block = self._blocks.pop()  # one step for all threads: of two calls at once, one ends the queue
        except IndexError:
            self.remote.wait_ended()
        else:
            block.close()

    def cut_short(self) -> None:
        """End the grace of a drain that is under way, now; it returns what it returns at the end of one.

        This may be called in a handler of signals, too.
        """
        self.remote.begin(self.remote.queue.cut_short)

    def drain(self, grace: float | None = None, hand_back: HandBack | None = None) -> DrainReport:
        """Close the queue, empty it as far as the grace allows, end the workers, and say what became of all.

        `grace` is in seconds; None waits until all is sent. What comes due within it is sent on time; for
        the rest, `hand_back(message, remaining_seconds)`, an ordinary function or an async one, is called at
        once, up to 100 at a time, and again with the retry policy's waits where it fails. Whatever is still
        running at the end of the grace is abandoned. What is left then stays in the journal; without one it
        is in the report's `remaining`, and stays pending. A queue can be drained once: a second call raises
        `QueueClosed`, and one from inside a send or a hand-back `RuntimeError`. If the caller is interrupted
        meanwhile, the workers are ended at once, and everything unfinished is still in `messages()`. Beyond
        the grace a journal that hangs is waited for, 5 s here and 10 s where the block is left. It is not for
        a handler of signals, which may have come in the midst of a put: what that holds would be waited for.
        """
        arguments.check_seconds("grace", grace, zero=True)
        self._check_outside("drain")
        given = _async("hand_back", hand_back, partial(self.hand_back_in_threads, most=HAND_BACKS_IN_FLIGHT))
        return self.remote.wait(lambda: self.remote.drain(grace, given))

    def hand_back_in_threads(self, hand_back: HandBack, most: int) -> HandBackOnLoop:
        """For `Fallback`, too: make of a blocking hand-back one for the loop, so many at once at most."""

        def marked(message: Message, delay: float) -> None:
            here = get_ident()
            self._hands_back.add(here)
            try:
                finished(hand_back, hand_back(message, delay))
            finally:
                self._hands_back.discard(here)

        return in_threads(marked, trio.CapacityLimiter(most))

    def _check_outside(self, call: str) -> None:
        if self.remote.is_inside() or get_ident() in self._hands_back:
            raise ended_inside(call)


@contextmanager
def open_delay_queue(
    send: Callable[..., object] | None = None,
    *,
    send_batch: Callable[..., object] | None = None,
    workers: int,
    on_dead_letter: Callable[..., object] | None = None,
    drain_on_exit: float | None = None,
    clock: MovableClock | None = None,
    **options: Unpack[Options],
) -> Iterator[DelayQueue]:
    """Run a delay queue, in a thread of its own, for the length of a `with` block.

    `send(message)`, `send_batch(messages)` and `on_dead_letter(message, error)` are ordinary functions,
    which then run in threads, as many at once as there are `workers`, or async ones, which run on Trio's
    loop. A blocking call cannot be interrupted: one that outlives `send_timeout` or a drain is abandoned, its
    message is pending again and may arrive twice, under one id, and it keeps its thread until it returns;
    while every thread is kept, nothing is sent. The other options are those of
    `localdelay.open_delay_queue`, and so is what happens when the block is left.

    A program that exits without leaving the block warns of what is pending; with `drain_on_exit` it drains
    first, for so many seconds at most, with sends that need no executor of `concurrent.futures`: those have
    ended by then. A block that is left by an exception, Ctrl-C too, drains nothing. A forked child has no
    queue: in it, puts raise `QueueClosed`. What runs on the loop (a listener, a key, an async send) and
    raises what is no `Exception`, as `sys.exit()` does, ends the queue at once: the log has an error, and
    who leaves the block has it raised. A test may give a `clock` of its own,
    `localdelay.testing.MovableClock`.
    """
    pool = Threads(arguments.count("workers", workers))
    hooks = Threads(workers)  # of their own: a dead letter must not wait for sends that take their time
    opened = partial(
        opening.open_delay_queue,
        _async("send", send, pool.sends),
        send_batch=_async("send_batch", send_batch, partial(pool.calls, waits=False)),
        on_dead_letter=_async("on_dead_letter", on_dead_letter, hooks.calls),
        workers=workers,
        **options,
    )
    remote = Remote(
        opened, lambda: pool.is_here() or hooks.is_here(), drain_on_exit=drain_on_exit, clock=clock
    )
    with closing(pool), closing(hooks):
        try:
            remote.start().result()
            pool.open()
            hooks.open()
            yield DelayQueue(remote, pool, hooks)
            remote.leave(at_once=False)
            remote.result()
        except GeneratorExit:
            # The garbage collector's, maybe. It comes in any thread, also in one that the end needs, and
            # under any lock, also one that the end takes to say a line: nobody may wait for it here.
            remote.drop()
            raise
        except BaseException:  # also Ctrl-C while it starts, opens, or waits for the end
            remote.leave(at_once=True)
            with suppress(Exception):  # what the block raised is what matters
                remote.result()
            raise


def _starts(opens: Callable[_P, AbstractContextManager[DelayQueue]]) -> Callable[_P, DelayQueue]:
    def start_delay_queue(*args: _P.args, **options: _P.kwargs) -> DelayQueue:
        """`open_delay_queue` without a block, for a class or a notebook: `close` ends the queue.

        To drop it without that ends it as an exception ends a block, with a warning.
        """
        with ExitStack() as block:
            queue = block.enter_context(opens(*args, **options))
            queue._blocks = [block.pop_all()]  # noqa: SLF001 (its own)
        return queue

    return start_delay_queue


start_delay_queue = _starts(open_delay_queue)


def _blocking(
    act: Callable[Concatenate[Fallback, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Fallback, _P], _T]:
    """The same for a caller who blocks: nothing that it awaits ever suspends it."""

    @wraps(act)
    def block(self: Fallback, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            act(self, *args, **kwargs).send(None)
        except StopIteration as ended:
            result: _T = ended.value
            return result
        raise RuntimeError("what blocks has waited for a loop")

    return block


_publish, _cancel = _blocking(RemoteFallback.publish), _blocking(RemoteFallback.cancel)


class Fallback(RemoteFallback[PublishDelayed, DelayQueue, CancelDelayed]):
    """Publishes through a blocking primary, and through the local queue what that refuses.

    `publish_delayed` and `cancel_delayed` are ordinary functions, called in threads of their own, in the
    context of the caller, who waits for them `publish_timeout` seconds at most: a call that takes longer goes
    on without him. With `publish_timeout=None` they are called in the caller's thread. The listener is called
    in whatever thread something happens in.
    """

    publish = _publish  # type: ignore[assignment]  # no coroutine, here
    cancel = _cancel  # type: ignore[assignment]

    async def _call(self, function: Callable[..., object], *args: object) -> object:
        return finished(function, self._calls.call(function, *args))

    async def _put(self, stamped: Stamped, patience: float) -> None:
        self._queue.remote.put(stamped, patience)

    def _hand_back(self, message: Message, delay: float) -> None:
        handle = finished(self._publish_delayed, self._publish_delayed(message, delay))
        self._router.remember(message, handle)

    def _check(self, name: str, given: object) -> None:
        arguments.check_callable(name, given)
        if arguments.is_async(given):
            raise TypeError(f"{name} must be an ordinary function here")

    def _world(self) -> World:
        self._calls = Leaving("publish_delayed", self._publish_timeout)
        queue = self._queue
        if not isinstance(queue, DelayQueue):
            raise not_this_ones("localdelay.threads.DelayQueue", queue)
        return queue.remote.world(queue.hand_back_in_threads(self._hand_back, MOST))


def _async(name: str, given: Callable[..., object] | None, in_pool: Callable[..., Any]) -> Any:
    if given is None:
        return None
    arguments.check_callable(name, given)
    return given if arguments.is_async(given) else in_pool(given)
