"""The scene: one peak of traffic, published plainly and then through `Fallback`."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import nats.errors
import trio

import localdelay
from localdelay.brokers import Broker, open_broker
from localdelay.demo.reader import Reader, open_reader
from localdelay.demo.report import Report, Run, reckon, reckon_fallback
from localdelay.demo.server import Server, ServerError, running_server
from localdelay.nurseries import bare_nursery
from localdelay.signals import Stopped, heard
from localdelay.units import format_duration, format_number

MAX_MESSAGES = 1_000_000
"""Both the demo and its server keep every message in memory."""
MAX_MESSAGE_BYTES = 1_000_000
"""The server takes 1,048,576, headers included."""
LONGEST_DELAY = 3600.0

# Traffic comes in gusts, each about one write on the wire, and the server refuses what its buffer can't
# take of a gust: that depends less on how fast the machine is than a steady stream would.
_GUST_EVERY = 0.02
_MAX_BUFFERED = 20
# With ten hand-backs, as many at once as the buffer holds: no refusals where nothing else is being published.
_WORKERS = _MAX_BUFFERED - 10
# A buffer that is full is empty again within milliseconds, so there is no point in waiting long.
_RETRY = localdelay.RetryPolicy(wait_initial=0.01, wait_max=0.1, wait_jitter=0.02)
# A hand-back has until its message is due; one that a busy machine does not get done by then arrives twice.
_HAND_BACK_AFTER = 1.0
_SUBJECT = "orders.due"
_PROGRESS_EVERY = _LOOK_EVERY = _BACKLOG_EVERY = 0.1
# A broker that delivers nothing for so long, although it should, has lost what is missing.
_GIVE_UP_AFTER = 5.0
_END_NOTICED_WITHIN = 0.5
# With a server that has frozen, retries would go on for ever. Nothing need happen while all wait to be due.
_STUCK_AFTER = 20.0

PublishOne: TypeAlias = Callable[[str, bytes, float], Awaitable[None]]
Publish: TypeAlias = Callable[["Scene", Broker, Run], Awaitable[None]]
Export: TypeAlias = Callable[[localdelay.DelayQueue, localdelay.Fallback], None]
Started: TypeAlias = Callable[[Server], object]
"""Is called once the server answers."""
Progress: TypeAlias = Callable[[Run], object]
"""Is called some ten times a second, and once more at the end of a run."""


def _positive(_: object, attribute: Any, value: float) -> None:
    longest = LONGEST_DELAY if attribute.name == "delay" else math.inf
    if not 0 < value <= longest or math.isinf(value):
        limit = "" if math.isinf(longest) else f" and at most {longest:g}"
        raise ValueError(f"{attribute.name} must be a finite number over 0{limit}, not {value:g}")


@attrs.frozen
class Scene:
    """What is published: each message once a run, at a steady rate.

    A rate or delay that is not positive and finite is a `ValueError` that starts with the field's name.
    """

    messages: Sequence[bytes]
    """At least one, at most `MAX_MESSAGES`, none longer than `MAX_MESSAGE_BYTES`."""
    rate: float = attrs.field(validator=_positive)
    """Messages per second."""
    delay: float = attrs.field(validator=_positive)
    """Seconds from when a message is published to when it is due."""


def run(scene: Scene, started: Started, progress: Progress, export: Export | None = None) -> Report:
    """Play the scene. Ctrl-C and SIGTERM end it, and raise `Stopped` once the server is gone.

    `export(queue, fallback)` is called when these two are there, on the loop that runs them.

    Raises `ServerError` where there is no server, or where it ends or does not do what it should.
    """

    async def go() -> Report:
        async with heard((signal.SIGINT, signal.SIGTERM)):
            return await _play(scene, started, progress, export)

    try:
        return trio.run(go)
    except BaseException as raised:
        error = _first(raised)
        if isinstance(error, nats.errors.Error | ConnectionError | TimeoutError | trio.BrokenResourceError):
            raise ServerError(f"the NATS server does not do what it should: {error}") from raised
        raise error from raised


async def _play(scene: Scene, started: Started, progress: Progress, export: Export | None) -> Report:
    plain, fallback = Run("plain"), Run("fallback")
    async with running_server(max_buffered=_MAX_BUFFERED) as server:
        started(server)
        try:
            async with bare_nursery() as nursery:
                nursery.start_soon(server.watch)
                await _one_run(plain, _publish_plainly, scene, server, progress)
                await _one_run(fallback, partial(_publish_with_fallback, export), scene, server, progress)
                nursery.cancel_scope.cancel()
        except Exception:
            # A lost connection is noticed before the end of the server behind it is.
            with trio.move_on_after(_END_NOTICED_WITHIN):
                await server.watch()
            raise
    return Report(reckon(plain), reckon_fallback(fallback))


async def _one_run(run: Run, publish: Publish, scene: Scene, server: Server, progress: Progress) -> None:
    async with (
        open_reader(server.url, _SUBJECT, run) as reader,
        open_broker(f"{server.url}/{_SUBJECT}") as broker,
        bare_nursery() as nursery,
    ):
        nursery.start_soon(_report_progress, run, progress, scene.delay + _STUCK_AFTER)
        try:
            await publish(scene, broker, run)
        except* (TimeoutError, ConnectionError) as errors:
            await reader.backlog()  # `ServerError` where it is the server that does not answer
            raise ServerError(_behind(scene, run)) from errors
        await trio.sleep_until(max(run.due.values()))
        await _read_all(reader)
        nursery.cancel_scope.cancel()
        run.finished = True
        progress(run)


def _behind(scene: Scene, run: Run) -> str:
    """That publishes waited for their answers for too long, though the server gives them."""
    answered, published = run.refused + len(run.primary), len(scene.messages)
    return (
        f"the demo could not keep up on this machine: of {published:,} publishes at "
        f"{format_number(scene.rate)}/s {answered:,} had an answer after {format_duration(run.now)}; "
        "try a lower --rate"
    )


async def _publish_plainly(scene: Scene, broker: Broker, run: Run) -> None:
    """What an application does without this library: a message that is refused is lost."""

    async def publish(id: str, payload: bytes, delay: float) -> None:
        message = localdelay.Message(id, payload, trio.current_time() + delay)
        try:
            await broker.publish_delayed(message, delay)
        except localdelay.Throttled:
            run.refused += 1
        else:
            run.primary.append(run.now)

    await _peak(scene, run, publish)


async def _publish_with_fallback(export: Export | None, scene: Scene, broker: Broker, run: Run) -> None:
    """The same with this library: what is refused waits here, and is sent when it is due or goes back."""
    async with localdelay.open_delay_queue(
        broker.send, capacity=len(scene.messages), workers=_WORKERS, retry=_RETRY
    ) as queue:
        fallback = localdelay.Fallback(
            broker.publish_delayed,
            queue,
            limit=queue.limit,
            hand_back=True,
            hand_back_after=min(_HAND_BACK_AFTER, scene.delay / 2),
            listener=run,
        )
        if export is not None:
            export(queue, fallback)

        async def look() -> None:
            while True:
                run.found.append((run.now, fallback.statistics().limit_rate))
                await trio.sleep(_LOOK_EVERY)

        async def publish(id: str, payload: bytes, delay: float) -> None:
            receipt = await fallback.publish(payload, delay=delay, id=id)
            if receipt.route is localdelay.Route.PRIMARY:
                run.primary.append(run.now)

        async with bare_nursery() as nursery:
            nursery.start_soon(look)
            await _peak(scene, run, publish)
            # A queue that is being left hands nothing back any more.
            await trio.sleep_until(max(run.due.values()))
            nursery.cancel_scope.cancel()


async def _peak(scene: Scene, run: Run, publish: PublishOne) -> None:
    """Publish every message when its turn comes, whatever has become of those before it (an open loop).

    Message i is due at start + i / rate + delay. A publish that begins a little late, for being part of a
    gust or because the machine is busy, asks for what is left of its delay: it is due when it always was.
    """

    async def one(id: str, payload: bytes) -> None:
        await publish(id, payload, max(0.0, run.due[id] - trio.current_time()))

    run.start = trio.current_time()
    begun = 0
    async with trio.open_nursery() as nursery:
        while True:
            turn = min(len(scene.messages), int(run.now * scene.rate) + 1)
            for number in range(begun, turn):
                message_id = f"{run.name}-{number + 1}"
                run.due[message_id] = run.start + number / scene.rate + scene.delay
                nursery.start_soon(one, message_id, scene.messages[number])
            begun = turn
            if begun == len(scene.messages):
                break
            await trio.sleep(_GUST_EVERY)


async def _read_all(reader: Reader) -> None:
    """Wait until the broker, by its own count, has nothing left that the consumer has not read."""
    backlog = await reader.backlog()
    give_up_at = trio.current_time() + _GIVE_UP_AFTER
    while any(backlog) and trio.current_time() < give_up_at:
        await trio.sleep(_BACKLOG_EVERY)
        before, backlog = backlog, await reader.backlog()
        if backlog != before:
            give_up_at = trio.current_time() + _GIVE_UP_AFTER


async def _report_progress(run: Run, progress: Progress, stuck_after: float) -> None:
    last: object = None
    moved_at = trio.current_time()
    while True:
        progress(run)
        if run.counts() != last:
            last, moved_at = run.counts(), trio.current_time()
        elif trio.current_time() - moved_at > stuck_after:
            raise ServerError(f"the NATS server has stopped answering: nothing in {stuck_after:g} s")
        await trio.sleep(_PROGRESS_EVERY)


def _first(raised: BaseException) -> BaseException:
    """One exception of a group, to be shown to people: the first that tells of the server, or the first."""
    if isinstance(raised, BaseExceptionGroup):
        raised = raised.subgroup((Stopped, ServerError)) or raised
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return raised
