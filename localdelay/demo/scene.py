"""The scene: one peak of traffic, published plainly and then through `Fallback`."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import attrs
import nats.errors
import trio

import localdelay
from localdelay.brokers.nats import NatsBroker, open_nats
from localdelay.demo.reader import Reader, open_reader
from localdelay.demo.record import Record
from localdelay.demo.report import FallbackResult, Progress, Report, RunResult, reckon
from localdelay.demo.server import Server, ServerError, running_server
from localdelay.demo.timeline import timeline, times_opened

MAX_MESSAGES = 1_000_000
"""Both the demo and its server keep every message in memory."""
MAX_MESSAGE_BYTES = 1_000_000
"""The server takes 1,048,576, headers included."""
LONGEST_DELAY = 3600.0

# Traffic comes in gusts, each about one write on the wire, and the server refuses what its buffer can't
# take of a gust: that depends less on how fast the machine is than a steady stream would.
_GUST_EVERY = 0.035
_MAX_BUFFERED = 50
# With ten hand-backs, as many at once as the buffer holds: no refusals where nothing else is being published.
_WORKERS = _MAX_BUFFERED - 10
# A buffer that is full is empty again within milliseconds, so there is no point in waiting long.
_RETRY = localdelay.RetryPolicy(wait_initial=0.01, wait_max=0.1, wait_jitter=0.02)
# A peak of seconds is to show several openings; in a service, where it lasts for hours, they would be longer.
_BREAKER = localdelay.BreakerPolicy(consecutive=10, wait_initial=0.3)
# A hand-back has until its message is due; one that a busy machine does not get done by then arrives twice.
_HAND_BACK_AFTER = 1.0
_SUBJECT = "orders.due"
_PROGRESS_EVERY = 0.1
_BACKLOG_EVERY = 0.1
# A broker that delivers nothing for so long, although it should, has lost what is missing.
_GIVE_UP_AFTER = 5.0

_END_NOTICED_WITHIN = 0.5
# With a server that has frozen, retries would go on for ever. Nothing need happen while all wait to be due.
_STUCK_AFTER = 20.0

PublishOne: TypeAlias = Callable[[str, bytes, float], Awaitable[None]]


class Stopped(Exception):
    """A signal has ended the demo."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Watcher(Protocol):
    """Whoever shows how the demo goes on."""

    def started(self, server: Server) -> None:
        """The server answers."""

    def progress(self, progress: Progress) -> None:
        """Called some ten times a second, and once more at the end of a run."""


def _positive(longest: float = math.inf) -> Callable[[object, attrs.Attribute[float], float], None]:
    def check(_: object, attribute: attrs.Attribute[float], value: float) -> None:
        if not 0 < value <= longest or math.isinf(value):
            limit = "" if math.isinf(longest) else f" and at most {longest:g}"
            raise ValueError(f"{attribute.name} must be a finite number over 0{limit}, not {value:g}")

    return check


@attrs.frozen
class Scene:
    """What is published: each message once a run, at a steady rate.

    A rate or delay that is not positive and finite, no messages, too many, or one that is too large for the
    broker are a `ValueError` that starts with the field's name.
    """

    messages: Sequence[bytes] = attrs.field()
    rate: float = attrs.field(validator=_positive())
    """Messages per second."""
    delay: float = attrs.field(validator=_positive(LONGEST_DELAY))
    """Seconds from when a message is published to when it is due."""

    @messages.validator
    def _check_messages(self, _: object, messages: Sequence[bytes]) -> None:
        if not 0 < len(messages) <= MAX_MESSAGES:
            raise ValueError(f"messages must be 1 to {MAX_MESSAGES:,}, not {len(messages):,}")
        for number, message in enumerate(messages, start=1):
            if len(message) > MAX_MESSAGE_BYTES:
                raise ValueError(
                    f"messages must have {MAX_MESSAGE_BYTES:,} bytes at most; "
                    f"number {number:,} has {len(message):,}"
                )


Export: TypeAlias = Callable[[localdelay.DelayQueue, localdelay.Fallback], None]
Publish: TypeAlias = Callable[[str, Scene, NatsBroker, Record], Awaitable[None]]


def _not_exported(queue: localdelay.DelayQueue, fallback: localdelay.Fallback) -> None:
    pass


def run(scene: Scene, watcher: Watcher, export: Export = _not_exported) -> Report:
    """Play the scene. Ctrl-C and SIGTERM end it, and raise `Stopped` once the server is gone.

    `export(queue, fallback)` is called when these two are there, on the loop that runs them.

    Raises `ServerError` where there is no server, or where it ends or does not do what it should.
    """
    return trio.run(_play_until_signal, scene, watcher, export)


async def _play_until_signal(scene: Scene, watcher: Watcher, export: Export) -> Report:
    stopped: Stopped | None = None

    async def watch() -> None:
        nonlocal stopped
        async for signum in signals:
            stopped = stopped or Stopped(signum)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                report = await play(scene, watcher, export)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = _first(group)
            if isinstance(error, nats.errors.Error | ConnectionError | TimeoutError):
                raise ServerError(f"the NATS server does not do what it should: {error}") from group
            raise error from group
    if stopped is not None:
        raise stopped
    return report


async def play(scene: Scene, watcher: Watcher, export: Export = _not_exported) -> Report:
    """Play the scene on a server of its own; raises as `run` does, but no signal ends it."""
    async with running_server(max_buffered=_MAX_BUFFERED) as server:
        watcher.started(server)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise_if_ended, server)
                plain = await _one_run("plain", _publish_plainly, scene, server, watcher, Record())
                record = Record()
                publish = partial(_publish_with_fallback, export)
                result = await _one_run("fallback", publish, scene, server, watcher, record)
                nursery.cancel_scope.cancel()
        except (ExceptionGroup, OSError) as error:
            # A lost connection is noticed before the end of the server behind it is.
            with trio.move_on_after(_END_NOTICED_WITHIN):
                raise await server.wait_ended() from error
            raise
    return Report(plain, _with_story(result, record))


def _with_story(result: RunResult, record: Record) -> FallbackResult:
    return FallbackResult(
        **attrs.asdict(result),
        handed_back=len(record.handed_back),
        breaker_opened=times_opened(record.changes),
        timeline=timeline(record.primary, record.local, record.handed_back, record.changes),
        breaker=record.changes,
    )


async def _raise_if_ended(server: Server) -> None:
    raise await server.wait_ended()


async def _one_run(
    name: str, publish: Publish, scene: Scene, server: Server, watcher: Watcher, record: Record
) -> RunResult:
    async with (
        open_reader(server.url, stream=name, subject=_SUBJECT) as reader,
        open_nats(server.url, subject=_SUBJECT, reconnect=False) as broker,
        trio.open_nursery() as nursery,
    ):

        def progress(*, finished: bool = False) -> Progress:
            return Progress(
                run=name,
                total=len(scene.messages),
                published=len(record.due),
                accepted=len(record.primary),
                refused=record.refused,
                degraded=len(record.local),
                received=len(reader.ids),
                finished=finished,
                handed_back=len(record.handed_back),
                breaker=None if name == "plain" else record.breaker,
            )

        nursery.start_soon(_report_progress, progress, watcher, scene.delay + _STUCK_AFTER)
        await publish(name, scene, broker, record)
        await trio.sleep_until(max(record.due.values()))
        await _read_all(reader)
        nursery.cancel_scope.cancel()
        watcher.progress(progress(finished=True))
    return reckon(
        record.due,
        reader.readings,
        accepted=len(record.primary),
        refused=record.refused,
        degraded=len(record.local),
    )


async def _publish_plainly(name: str, scene: Scene, broker: NatsBroker, record: Record) -> None:
    """What an application does without this library: a message that is refused is lost."""

    async def publish(id: str, payload: bytes, delay: float) -> None:
        message = localdelay.Message(id, payload, trio.current_time() + delay)
        try:
            await broker.publish_delayed(message, delay)
        except localdelay.Throttled:
            record.refused += 1
        else:
            record.primary.append(record.now)

    await _peak(name, scene, record, publish)


async def _publish_with_fallback(
    export: Export, name: str, scene: Scene, broker: NatsBroker, record: Record
) -> None:
    """The same with this library: what is refused waits here, and is sent when it is due or goes back."""
    async with localdelay.open_delay_queue(
        broker.send, capacity=len(scene.messages), workers=_WORKERS, retry=_RETRY
    ) as queue:
        fallback = localdelay.Fallback(
            broker.publish_delayed,
            queue,
            breaker=_BREAKER,
            hand_back=True,
            hand_back_after=min(_HAND_BACK_AFTER, scene.delay / 2),
            listener=record,
        )
        export(queue, fallback)

        async def publish(id: str, payload: bytes, delay: float) -> None:
            receipt = await fallback.publish(payload, delay=delay, id=id)
            if receipt.route is localdelay.Route.PRIMARY:
                record.primary.append(record.now)

        await _peak(name, scene, record, publish)
        # A queue that is being left hands nothing back any more.
        await trio.sleep_until(max(record.due.values()))


async def _peak(name: str, scene: Scene, record: Record, publish: PublishOne) -> None:
    """Publish every message when its turn comes, whatever has become of those before it (an open loop).

    Message i is due at start + i / rate + delay. A publish that begins a little late, for being part of a
    gust or because the machine is busy, asks for what is left of its delay: it is due when it always was.
    """

    async def one(id: str, payload: bytes) -> None:
        await publish(id, payload, max(0.0, record.due[id] - trio.current_time()))

    start = record.start = trio.current_time()
    begun = 0
    async with trio.open_nursery() as nursery:
        while True:
            turn = min(len(scene.messages), int((trio.current_time() - start) * scene.rate) + 1)
            for number in range(begun, turn):
                message_id = f"{name}-{number + 1}"
                record.due[message_id] = start + number / scene.rate + scene.delay
                nursery.start_soon(one, message_id, scene.messages[number])
            begun = turn
            if begun == len(scene.messages):
                break
            await trio.sleep(_GUST_EVERY)


async def _read_all(reader: Reader) -> None:
    """Wait until the broker, by its own count, has nothing left that the consumer has not read."""
    backlog = await reader.backlog()
    give_up_at = trio.current_time() + _GIVE_UP_AFTER
    while (backlog.scheduled or backlog.unread) and trio.current_time() < give_up_at:
        await trio.sleep(_BACKLOG_EVERY)
        before, backlog = backlog, await reader.backlog()
        if backlog != before:
            give_up_at = trio.current_time() + _GIVE_UP_AFTER


async def _report_progress(current: Callable[[], Progress], watcher: Watcher, stuck_after: float) -> None:
    last = None
    moved_at = trio.current_time()
    while True:
        progress = current()
        watcher.progress(progress)
        if progress != last:
            last = progress
            moved_at = trio.current_time()
        elif trio.current_time() - moved_at > stuck_after:
            raise ServerError(f"the NATS server has stopped answering: nothing in {stuck_after:g} s")
        await trio.sleep(_PROGRESS_EVERY)


def _first(group: BaseExceptionGroup) -> BaseException:
    """One exception of a group, to be shown to people: the first that tells of the server, or the first."""
    told = group.subgroup(ServerError)
    error: BaseException = told or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
