"""Opening a delay queue for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import PathLike

from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.journal.record import Journal
from localdelay.journal.sqlite import journal_of
from localdelay.keys import Key
from localdelay.limit import Limit
from localdelay.listening import Listener
from localdelay.message import numbers
from localdelay.nurseries import bare_nursery
from localdelay.probe import ProbePolicy
from localdelay.timer import TimerKind
from localdelay.worlds import check_trio

from .batch import BatchPolicy
from .core import make_core
from .queue import DelayQueue
from .retry import RetryPolicy
from .sending import DeadLetterHook, Send, SendBatch
from .workers import BringsWorkers


@asynccontextmanager
async def open_delay_queue(
    send: Send | BringsWorkers | None = None,
    *,
    send_batch: SendBatch | None = None,
    batch: BatchPolicy = BatchPolicy(),  # noqa: B008 (it is frozen)
    capacity: int,
    workers: int,
    capacity_bytes: int | None = None,
    cancellable: bool = True,
    timer: TimerKind = "auto",
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
    send_timeout: float | None = 30.0,
    on_dead_letter: DeadLetterHook | None = None,
    limit: Limit | NotGiven | None = NOT_GIVEN,
    catch_up_rate: float | None = None,
    probe: ProbePolicy | None = ProbePolicy(),  # noqa: B008 (it is frozen)
    key: Key | None = None,
    listener: Listener | None = None,
    journal: Journal | str | PathLike[str] | None = None,
) -> AsyncIterator[DelayQueue]:
    """Run a delay queue for the length of an `async with` block.

    `await send(message)` gives one due message to the real queue and returns once that has confirmed it.
    `await send_batch(messages)` does so for several that are due, as many as `batch` allows; where some of
    them failed it raises `PartialSendError`, and where all did, anything else. Give one of the two.
    `capacity` bounds the pending messages, `capacity_bytes` their payloads and headers. `workers` is how many
    sends may run at once; `localdelay.plan_capacity` computes both. A send that takes more than
    `send_timeout` seconds (None: no limit) has failed, and so has a dead-letter hook. Failed messages are
    retried under `retry`; one that is given up on goes to `await on_dead_letter(message, error)`, or into one
    ERROR line of the log. `limit` paces the sends: an `AdaptiveLimit`, unless another is given, that begins
    when one of them is throttled and finds the rate (None: no limit); one that a `Fallback` shares gives them
    precedence. Of what is overdue after an outage or at a start, `catch_up_rate` go a second, beside what is
    on time (None: all, as fast as the limit allows). While
    sends of different messages fail one after the other the broker is taken to be down: under `probe` one
    message at a time is tried, which uses up no attempt, and all else waits until one is sent (None: all is
    tried). With `key(message)`, a topic or a tenant, say, each key has a limit and a probe of its own, copied
    from these, for the 1,024 keys that were used last: what waits for one key holds up no other's, but for
    sends that hang, of which each has its worker until `send_timeout`. A batch is of one key. A put for whose
    message `key` raises, or gives nothing hashable, raises `ValueError` or `TypeError`. `listener.on_event`
    is told of what is shut or limited, and of dead letters. `cancellable=False` saves time and memory where
    millions wait. `timer` is "trio" for Trio's own timer, good to a millisecond, or "auto" for a precise one
    where there is one.

    With a `journal` (`SqliteJournal`, or the path of one), what is pending survives a crash: a put returns
    when its message is in the journal, and opening a queue on a journal that holds messages takes these in
    again. They count as accepted, whatever the capacity. Raises `JournalError` where it can't be used.

    Leaving the block normally closes the queue to puts and waits until all is sent. Leaving it by an
    exception or a cancellation ends the workers; what is pending then stays in `messages()`, and one
    warning is logged. Raises `TypeError` and `ValueError` for an argument that is wrong, and `RuntimeError`
    where no task of Trio's calls it.
    """
    check_trio("localdelay.open_delay_queue")
    keeps = journal_of(journal)
    core = make_core(
        send,
        send_batch,
        batch,
        capacity=capacity,
        workers=workers,
        capacity_bytes=capacity_bytes,
        cancellable=cancellable,
        timer=timer,
        retry=retry,
        send_timeout=send_timeout,
        on_dead_letter=on_dead_letter,
        limit=limit,
        catch_up_rate=catch_up_rate,
        probe=probe,
        key=key,
        listener=listener,
    )
    queue = DelayQueue(core, numbers(), cancellable=bool(cancellable))
    try:
        async with bare_nursery() as nursery:
            await queue.begin(nursery, keeps)
            yield queue
            await queue.leave()
    finally:
        await queue.end()
