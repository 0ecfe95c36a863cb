"""A relay: the input, the queue and the broker, and what stops it."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from localdelay import arguments
from localdelay.brokers import STDOUT, Broker, check_url, open_broker
from localdelay.errors import Throttled
from localdelay.message import Message
from localdelay.nurseries import bare
from localdelay.queue.batch import BatchPolicy
from localdelay.queue.opening import open_delay_queue
from localdelay.queue.queue import DelayQueue
from localdelay.queue.retry import RetryPolicy
from localdelay.queue.sending import HandBack
from localdelay.relay.lines import cut_off, record
from localdelay.relay.reading import Reader
from localdelay.relay.saving import JsonLines, places, save
from localdelay.relay.settings import AnyQueue, Outcome, Phase, Settings, Watcher
from localdelay.relay.source import Descriptor, Source
from localdelay.signals import heard
from localdelay.statistics import Statistics

if TYPE_CHECKING:
    from localdelay.redis_plan import RedisDelayQueue

PROGRESS_EVERY = 0.5  # seconds
_POLL = 0.02  # seconds
_ASK_EVERY = 0.2  # seconds between two looks at whether other instances still have messages
_ANSWER_WITHIN = 2.0  # seconds
_LONGEST_TOLD = 1000  # characters

_Item: TypeAlias = tuple[Message, Exception | None] | bytes
"""What is written at the end: a message, with what it was given up for; or half a line."""


class NoDelay(ValueError):
    """There is nothing to hand messages back to; it names the setting."""


def check(settings: Settings, descriptor: int = 0) -> None:
    """Raise a `ValueError` for what can't be done here: it names the setting."""
    with arguments.renamed("url", "to"):
        check_url(settings.to)
    if settings.hold is not None:
        with suppress(ModuleNotFoundError), arguments.renamed("url", "hold"):
            # The extra may be missing, which is told when the queue is opened.
            from localdelay.redis_plan import check_url as check_hold

            check_hold(settings.hold)
    if settings.to == STDOUT and _is_same_file(1, descriptor):
        raise ValueError("to must not be the file that is read: it would never end")
    for name in ("unsent", "dead_letters"):
        path: Path | None = getattr(settings, name)
        if path is not None and _is_same_file(path, descriptor):
            raise ValueError(f"{name} must not be the file that is read: what was sent would be in it again")
        if settings.to == STDOUT and path is not None and _is_same_file(path, 1):
            raise ValueError(f"{name} must not be the file that the messages go to")


def run(settings: Settings, watcher: Watcher, descriptor: int = 0) -> Outcome:
    """Relay what can be read from the descriptor, until its end or until a signal stops it.

    The first of `stops` ends the reading, and what comes due within the grace is sent; the second ends that,
    too. What was not sent is written to a file in every case.

    Raises `ValueError` for a setting that can't be, `InputError` where there is nothing to read,
    `ConnectionError` and `ModuleNotFoundError` as `open_broker` does, and `NoDelay`; nothing is read then.
    """
    check(settings, descriptor)
    relay = Relay(settings, Descriptor(descriptor), watcher)

    async def go() -> None:
        async with heard(stops(), relay.stop):
            await relay.go()

    trio.run(go)
    return relay.outcome


def stops() -> list[signal.Signals]:
    """The signals that stop a relay."""
    # What is ignored stays so: a hang-up under `nohup`, Ctrl-C in the background of a script.
    asked = [signum for signum in signal.Signals if signum.name in ("SIGHUP", "SIGINT", "SIGTERM")]
    return [signum for signum in asked if signal.getsignal(signum) != signal.SIG_IGN]


class Relay:
    """One relay; `run` is the way to start it, and this for a test with a source and a broker of its own."""

    def __init__(
        self, settings: Settings, source: Source, watcher: Watcher, broker: Broker | None = None
    ) -> None:
        self._settings = settings
        self._watcher = watcher
        self._broker = open_broker(settings.to) if broker is None else nullcontext(broker)
        self._reader = Reader(source, settings, watcher.wrong_line)
        self._all = trio.CancelScope()
        self._until_stopped = trio.CancelScope()
        self._queue: AnyQueue | None = None
        self._began = self._deadline = 0.0
        self._letters: JsonLines | None = None
        self._kept: list[tuple[Message, Exception | None]] = []  # given up, but nobody took them
        self.outcome = Outcome()
        """How far it is, and what became of it all when it has ended."""

    def stop(self, signum: int) -> None:
        """Stop because of this signal: within the grace, and at the second call at once."""
        if self.outcome.stopped_by is not None or self._queue is None:
            self._all.cancel()
        self.outcome.stopped_by = self.outcome.stopped_by or signum
        self._until_stopped.cancel()

    async def go(self) -> None:
        """Relay all there is, or what there is until `stop`. Raises as `run` does."""
        try:
            with self._all:
                async with self._broker as broker:
                    await self._through(broker)
        except Exception as raised:
            if self._queue is None:
                raise
            # All that was not sent is written by now, and it is for the outcome to say where.
            self._fail(self._told(bare(raised)))

    async def _through(self, broker: Broker) -> None:
        settings = self._settings
        if settings.hand_back and not broker.native_delay:
            raise NoDelay("hand_back needs a broker that has a delay of its own")
        sender: dict[str, Any] = {"send": broker.send}
        if settings.batch is not None:
            sender = {"send_batch": broker.send_batch, "batch": BatchPolicy(max_messages=settings.batch)}
        try:
            async with _opened(settings, on_dead_letter=self._give_up, **sender) as queue:
                self._queue = queue
                self._watcher.opened(queue)
                self._began = trio.current_time()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._show, queue)
                    all_sent = False
                    try:
                        hand_back = broker.publish_delayed if settings.hand_back else None
                        all_sent = await self._relay(queue, hand_back)
                    finally:
                        if not all_sent and not isinstance(queue, DelayQueue):
                            self.outcome.held = await _held(queue)
                    nursery.cancel_scope.cancel()
        finally:
            self._save()

    async def _relay(self, queue: AnyQueue, hand_back: HandBack | None) -> bool:
        """Relay until all is sent; False where a stop came before."""
        with self._until_stopped:
            try:
                await self._reader.run(queue)
            except OSError as error:
                self._fail(f"standard input can't be read: {error.strerror or error}")
            self._reader.stop()
            self.outcome.phase = Phase.LAST
            await _until_all_is_sent(queue)
            return True
        self._reader.stop()
        self.outcome.phase = Phase.STOPPING
        self._deadline = trio.current_time() + self._settings.grace
        if hand_back is None:  # else those need the grace, and the file is for what was not taken in
            with trio.move_on_at(self._deadline):
                await self._reader.take_in_rest(queue, self._deadline)
        await queue.drain(max(0.0, self._deadline - trio.current_time()), hand_back)
        return False

    def _fail(self, reason: str) -> None:
        self.outcome.failure = self.outcome.failure or reason  # the first is what the others come of

    def _end(self, reason: str) -> None:
        """End at once: there is no use in going on."""
        self._fail(reason)
        self._all.cancel()

    async def _show(self, queue: AnyQueue) -> None:
        while True:
            now = self._count(queue)
            if self.outcome.phase is Phase.STOPPING:
                self.outcome.grace_left = max(0.0, self._deadline - trio.current_time())
            self._watcher.progress(self.outcome, now)
            await trio.sleep(PROGRESS_EVERY)

    def _count(self, queue: AnyQueue) -> Statistics:
        outcome, reader = self.outcome, self._reader
        outcome.seconds = trio.current_time() - self._began
        outcome.lines, outcome.wrong, outcome.input_ended = reader.lines, reader.wrong, reader.ended
        outcome.queue = queue.statistics()
        return outcome.queue

    async def _give_up(self, message: Message, error: Exception) -> None:
        """The dead-letter hook."""
        if self._settings.to == STDOUT and isinstance(error.__cause__, BrokenPipeError):
            self._kept.append((message, None))
            self._end(str(error))
            return
        try:
            if self._letters is None:
                self._letters = _open_letters(self._settings.dead_letters)
            self._letters.append([record(message, *_now(), self._told(error))])
        except OSError as failed:
            self._kept.append((message, error))
            self._end(f"dead letters can't be written: {failed.strerror or failed}")
        self._watcher.dead_letter(message, error)

    def _save(self) -> None:
        """Write down what was not sent. Nothing can cancel this: it awaits nothing."""
        (unread, half), (clock, wall), outcome = self._reader.stop(), _now(), self.outcome
        pending = self._queue.messages() if isinstance(self._queue, DelayQueue) else []  # Redis keeps its own
        messages = [*((message, None) for message in (*pending, *unread)), *self._kept]
        items: list[_Item] = [*messages, half] if half else [*messages]

        def encode(item: _Item) -> bytes:
            if isinstance(item, bytes):
                return cut_off(item)
            message, error = item
            return record(message, clock, wall, None if error is None else self._told(error))

        outcome.saved = save(items, encode, places("unsent", self._settings.unsent))
        outcome.unsent, outcome.half = len(messages), len(half)
        if self._queue is not None:
            outcome.dead = self._count(self._queue).dead - len(self._kept)
        if self._letters is not None:
            outcome.letters = self._letters.path
            try:
                self._letters.close()
            except OSError as error:
                self._fail(f"dead letters can't be written: {error.strerror or error}")

    def _told(self, error: BaseException) -> str:
        if isinstance(error, MemoryError):  # which says nothing
            return "the memory is full: a smaller capacity or capacity_bytes holds less"
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return self._settings.hide_secrets(told)[:_LONGEST_TOLD]


async def _until_all_is_sent(queue: AnyQueue) -> None:
    """Wait until nothing is pending. A drain would do, but can't be given a grace afterwards."""
    while True:
        found = queue.statistics()
        if found.pending or found.next_due_in is not None:
            next_due_in = 0.0 if found.sending else found.next_due_in or 0.0
            await trio.sleep(max(_POLL, next_due_in))
        elif isinstance(queue, DelayQueue) or await _held(queue) == 0:
            return
        else:
            await trio.sleep(_ASK_EVERY)


async def _held(queue: RedisDelayQueue) -> int | None:
    """How many messages Redis has, those of other instances included; None where it does not say."""
    # Shielded: to be asked at an end, too, and then nobody waits long for it.
    with trio.move_on_after(_ANSWER_WITHIN, shield=True), suppress(Throttled, ConnectionError):
        return await queue.count()
    return None


def _opened(settings: Settings, **options: Any) -> AbstractAsyncContextManager[AnyQueue]:
    options |= {
        "workers": settings.workers,
        "capacity": settings.capacity,
        "capacity_bytes": settings.capacity_bytes,
        "retry": RetryPolicy(attempts=settings.attempts),
        "send_timeout": settings.send_timeout,
    }
    if settings.hold is None:
        return open_delay_queue(cancellable=False, **options)
    try:
        from localdelay.redis_plan import open_redis_delay_queue
    except ModuleNotFoundError as error:
        fix = "pip install 'localdelay[redis]'"
        raise ModuleNotFoundError(f"a queue in Redis needs a client: {fix}", name=error.name) from error
    return open_redis_delay_queue(url=settings.hold, **options)


def _now() -> tuple[float, float]:
    """Trio's clock and Unix time, in this order, or what is written down might be early."""
    return trio.current_time(), time.time()


def _open_letters(asked: Path | None) -> JsonLines:
    (_, first), (_, second) = places("dead-letters", asked)
    try:
        return first()
    except OSError:
        if asked is not None:
            raise
        return second()


def _is_same_file(file: Path | int, descriptor: int) -> bool:
    try:
        found = os.fstat(descriptor)
        there = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and os.path.samestat(found, there)
