"""The fallback in a throttle storm: what it calls, what it spares, what it says, and how it comes back."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import (
    BreakerPolicy,
    BreakerState,
    Fallback,
    Message,
    PermanentSendError,
    QueueFull,
    RateLimit,
    RateLimited,
    Reason,
    Route,
    Throttled,
    open_delay_queue,
)
from localdelay.listening import Closed, DeadLetter, Degraded, Event, Full, HalfOpened, HandedBack, Opened
from localdelay.testing import RecordingSender

STEADY: dict[str, Any] = {"breaker": BreakerPolicy(wait_jitter=0.0), "ambiguous": "degrade"}
DOWN = ConnectionError("down")


class Weather:
    """A primary that asks what the weather is at each call."""

    def __init__(self, error_at: Callable[[float, int], Exception | None]) -> None:
        self._error_at = error_at
        self.calls: list[tuple[float, Message, float]] = []
        self.taken: list[tuple[float, Message, float]] = []

    async def __call__(self, message: Message, delay: float) -> None:
        self.calls.append((trio.current_time(), message, delay))
        error = self._error_at(trio.current_time(), len(self.calls))
        if error is not None:
            raise error
        self.taken.append(self.calls[-1])


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []

    def on_event(self, event: Event) -> None:
        self.events.append((trio.current_time(), event))

    def of(self, *kinds: type) -> list[tuple[float, Any]]:
        return [(when, event) for when, event in self.events if isinstance(event, kinds)]


def always(error: Exception | None) -> Weather:
    return Weather(lambda now, number: error)


async def test_a_storm_of_ten_minutes(autojump_clock: trio.testing.MockClock, conserved: Any) -> None:
    """All is refused for 5 minutes, half of it for 5 more; 8 publishes a second, none lost, few called.

    It opens at the fifth call, at 0.5 s. Trials follow after 1, 2, 4, 8, 16, 30, 30, ... seconds, at 1.5,
    3.5, 7.5, 15.5, 31.5, 61.5, ... 271.5: 13 of them, each refused. From 300 s every second call is taken:
    at 301.5 one is, the next opens it again, and so every 30.125 s, ten times. From 600 s all is taken:
    three trials from 602.75 on close it at 603.0.
    """
    odd = {"calls": 0}

    def weather(now: float, number: int) -> Exception | None:
        if now < 300:
            return DOWN
        if now >= 600:
            return None
        odd["calls"] += 1
        return None if odd["calls"] % 2 else DOWN

    primary, sender, heard = Weather(weather), RecordingSender(), Heard()
    async with open_delay_queue(sender, capacity=10_000, workers=2) as queue:
        fallback = Fallback(primary, queue, **STEADY, listener=heard)
        receipts = []
        for number in range(8 * 660):
            receipts.append(await fallback.publish(b"%d" % number, delay=120.0))
            if number == 8 * 300 - 1:
                storm = fallback.statistics()
            await trio.sleep(0.125)
        statistics = fallback.statistics()
    assert (storm.calls, storm.calls_saved, storm.local) == (18, 2382, 2400)
    assert storm.degraded[Reason.AMBIGUOUS] == 18
    assert storm.breaker is BreakerState.OPEN
    assert (storm.breaker_for, storm.retry_in) == (28.375, 1.625)  # it opened again at 271.5 s
    assert [when for when, _, _ in primary.calls[5:18]] == [
        *(1.5, 3.5, 7.5, 15.5),
        31.5,
        *(61.5 + 30 * n for n in range(8)),
    ]
    second = [(when, taken) for when, _, taken in primary.calls if 300 <= when < 600]
    assert [when for when, _ in second[::2]] == [301.5 + 30.125 * n for n in range(10)]
    assert len(second) == 20
    ((recovered, closed),) = heard.of(Closed)
    assert recovered == 603.0
    assert closed.open_for == 602.5
    assert statistics.breaker is BreakerState.CLOSED
    # Nothing is lost: each is with the primary or was sent on time.
    assert statistics.primary + statistics.local == len(receipts) == 5280
    assert statistics.primary == len(primary.taken) == 10 + 8 * 660 - 4822
    assert conserved(queue).sent == statistics.local == len(sender.sent)
    assert {m.id for _, m, _ in primary.taken} | {m.id for _, m in sender.sent} == {
        receipt.message.id for receipt in receipts
    }
    assert all(when == message.execute_at for when, message in sender.sent)


async def test_due_sends_come_first_where_the_limit_is_shared(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """Ten due sends take the whole rate for a second; a publish meanwhile finds no token left for it."""
    limit, sender, primary = RateLimit(10.0, burst=1), RecordingSender(), always(None)
    async with open_delay_queue(sender, capacity=50, workers=20, limit=limit) as queue:
        fallback = Fallback(primary, queue, limit=limit)
        for _ in range(10):
            queue.put_nowait(b"", delay=1.0)
        await trio.sleep(1.45)
        receipt = await fallback.publish(b"", delay=10.0)
        assert isinstance(receipt.reason, RateLimited)
    assert [round(when, 3) for when, _ in sender.sent[:10]] == [1.0 + n / 10 for n in range(10)]
    assert conserved(queue).lateness.max == pytest.approx(0.9, rel=0.01)


async def test_what_is_far_from_due_goes_back(autojump_clock: trio.testing.MockClock, conserved: Any) -> None:
    """When the storm is over, messages return with the delay that is left, paced by the limit."""
    primary = Weather(lambda now, number: DOWN if now < 10 else None)
    sender, heard, limit = RecordingSender(), Heard(), RateLimit(20.0, burst=1)
    async with open_delay_queue(sender, capacity=500, workers=2) as queue:
        fallback = Fallback(
            primary, queue, **STEADY, limit=limit, hand_back=True, hand_back_after=30.0, listener=heard
        )
        for number in range(100):
            delay = 25.0 if number % 4 == 0 else 120.0
            await fallback.publish(b"%d" % number, delay=delay, id=f"m{number}")
            await trio.sleep(0.09)
        await trio.sleep(11.0)
        assert conserved(queue).pending == 25  # what is at risk has shrunk to what is due soon
        assert fallback.statistics().handed_back == 75
        await fallback.publish(b"new", delay=120.0)
    assert conserved(queue).handed_back == 75
    assert len(sender.sent) == 25
    assert {message.id for _, message in sender.sent} == {f"m{n}" for n in range(0, 100, 4)}
    back = heard.of(HandedBack)
    assert len(back) == 75
    # One every twentieth of a second, the latest first, each with what was left of its delay.
    returned = [call for call in primary.taken if call[1].payload != b"new"]
    assert [message.id for _, message, _ in returned[:3]] == ["m99", "m98", "m97"]
    for when, message, remaining in returned:
        assert remaining == pytest.approx(message.execute_at - when)
    times = [when for when, _, _ in returned]
    assert all(later - earlier >= 0.0499 for earlier, later in itertools.pairwise(times))


async def test_after_the_trials_many_go_back_at_once(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """Three trials, and when these have closed the breaker ten at a time."""

    async def primary(message: Message, delay: float) -> None:
        if trio.current_time() < 5:
            raise DOWN
        await trio.sleep(0.5)

    async with open_delay_queue(RecordingSender(), capacity=500, workers=2) as queue:
        fallback = Fallback(primary, queue, **STEADY, hand_back=True, hand_back_after=10.0)
        for _ in range(103):
            await fallback.publish(b"", delay=300.0)
        await trio.sleep(7.0 + 0.5 - 0.001)
        assert conserved(queue).sending == 3
        await trio.sleep(0.5)
        assert conserved(queue).sending == 10
        await trio.sleep(5.0)
        assert conserved(queue).handed_back == 103


async def test_a_predicate_that_raises_harms_nobody_else(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """The caller gets its error; the trials are not used up by it, and a hand-back survives it."""

    def degrades(error: Exception) -> bool:
        if error is DOWN:
            return True
        raise AttributeError("mine")

    primary = Weather(lambda now, number: DOWN if now < 5 else ValueError("odd") if now < 20 else None)
    async with open_delay_queue(RecordingSender(), capacity=500, workers=2) as queue:
        fallback = Fallback(
            primary, queue, **STEADY, degrade_on=degrades, hand_back=True, hand_back_after=10.0
        )
        for _ in range(5):
            await fallback.publish(b"", delay=300.0)
        await trio.sleep(8)
        for _ in range(5):
            with pytest.raises(AttributeError, match="mine"):
                await fallback.publish(b"", delay=300.0)
        await trio.sleep(60)
        assert fallback.statistics().breaker is BreakerState.CLOSED
        assert conserved(queue).handed_back == 5


@pytest.mark.parametrize(
    ("error", "tries"), [(PermanentSendError("no such queue"), 1), (ValueError("broken"), 4)]
)
async def test_a_message_that_cannot_go_back_is_sent_here(
    error: Exception, tries: int, autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """One that is refused for good is not tried again; other errors are, after longer and longer waits."""
    primary = Weather(lambda now, number: Throttled("429") if number == 1 else error)
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=500, workers=2) as queue:
        fallback = Fallback(primary, queue, **STEADY, limit=None, hand_back=True, hand_back_after=10.0)
        await fallback.publish(b"", delay=22.0)
        await trio.sleep(25)
    assert [when for when, _ in sender.sent] == [22.0]
    assert len(primary.calls) == 1 + tries
    assert conserved(queue).handed_back == 0


@pytest.mark.parametrize(
    ("takes", "delay", "handed_back"), [(20.0, 36.0, 3), (60.0, 36.0, 0), (60.0, 25.0, 0)]
)
async def test_a_drain_waits_for_the_hand_backs_under_way(
    takes: float, delay: float, handed_back: int, autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """They end, or fail for taking longer than a send may, or until it is due: then it is sent on time."""

    async def primary(message: Message, delay: float) -> None:
        if trio.current_time() < 1:
            raise Throttled("429")
        await trio.sleep(takes)

    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=500, workers=2) as queue:
        fallback = Fallback(primary, queue, **STEADY, limit=None, hand_back=True, hand_back_after=10.0)
        for _ in range(3):
            await fallback.publish(b"", delay=delay)
        await trio.sleep(5)
        assert conserved(queue).sending == 3
    statistics = conserved(queue)
    assert (statistics.handed_back, statistics.sent) == (handed_back, 3 - handed_back)
    assert [when for when, _ in sender.sent] == [delay] * (3 - handed_back)


async def test_one_log_line_for_each_change(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Opened, half-open, closed: a line each, and none for a message."""
    primary = Weather(lambda now, number: DOWN if now < 1 else None)
    with caplog.at_level(logging.INFO, "localdelay"):
        async with open_delay_queue(RecordingSender(), capacity=500, workers=2) as queue:
            fallback = Fallback(primary, queue, **STEADY)
            for _ in range(100):
                await fallback.publish(b"secret", delay=1.0)
                await trio.sleep(0.0625)
    assert [record.getMessage() for record in caplog.records] == [
        "the breaker is open: the primary is not called for 1 s",
        "the breaker is closed after 1.12 s: the primary is called again",
    ]


async def test_a_listener_hears_everything(autojump_clock: trio.testing.MockClock) -> None:
    """Each kind of event, in order, as a frozen object."""
    primary = Weather(lambda now, number: DOWN if now < 1 else None)
    heard = Heard()
    sender_error = PermanentSendError("never")

    async def send(message: Message) -> None:
        raise sender_error

    async with open_delay_queue(send, capacity=6, workers=2, listener=heard) as queue:
        fallback = Fallback(primary, queue, **STEADY, listener=heard, hand_back=True, hand_back_after=10.0)
        first = await fallback.publish(b"", delay=0.5)
        for _ in range(5):
            await fallback.publish(b"", delay=60.0)
        with pytest.raises(QueueFull):
            await fallback.publish(b"", delay=60.0)
        await trio.sleep(30)
    kinds = [type(event) for _, event in heard.events]
    # The hand-backs of what is held already fail beside the publishes, and count for the breaker as they do.
    assert sorted(kind.__name__ for kind in kinds[:7]) == ["Degraded"] * 6 + ["Opened"]
    assert kinds[7] is Full
    assert kinds[8:10] == [DeadLetter, HalfOpened]
    assert sorted(kind.__name__ for kind in kinds[10:]) == ["Closed"] + ["HandedBack"] * 5
    assert heard.events[0][1] == Degraded(first.message, Reason.AMBIGUOUS, first.reason, 1)
    ((_, opened),) = heard.of(Opened)
    assert opened.retry_in == 1.0
    ((_, dead),) = heard.of(DeadLetter)
    assert (dead.message.id, dead.error) == (first.message.id, sender_error)
    with pytest.raises(AttributeError):
        dead.error = None


async def test_a_listener_that_fails_harms_nobody(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, conserved: Any
) -> None:
    """It is logged, and the message goes its way."""

    class Broken:
        def on_event(self, event: Event) -> None:
            raise RuntimeError("payload")

    async with open_delay_queue(RecordingSender(), capacity=6, workers=2, listener=Broken()) as queue:
        receipt = await Fallback(always(Throttled()), queue, listener=Broken(), limit=None).publish(
            b"", delay=1.0
        )
        assert receipt.route is Route.LOCAL
    assert conserved(queue).sent == 1
    assert caplog.records[0].getMessage() == "the listener failed at Degraded: RuntimeError"
