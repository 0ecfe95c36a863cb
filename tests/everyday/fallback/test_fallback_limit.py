"""A fallback with a limit that finds its rate: what it calls and says, and what is left to the breaker."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import AdaptiveLimit, Fallback, Message, Route, Throttled, open_delay_queue
from localdelay.listening import Event, LimitBegan, LimitEnded
from localdelay.testing import RecordingSender


class Quota:
    """A primary that takes one call every tenth of a second, while it is busy."""

    def __init__(self) -> None:
        self.calls = 0
        self.busy = True
        self._next = 0.0

    async def __call__(self, message: Message, delay: float) -> None:
        self.calls += 1
        if self.busy and trio.current_time() < self._next - 1e-9:
            raise Throttled
        self._next = trio.current_time() + 0.1


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, LimitBegan | LimitEnded):
            self.events.append(event)


async def publish_for(fallback: Fallback, seconds: float, rate: float, delay: float = 3600.0) -> list[Route]:
    routes = []
    for _ in range(round(seconds * rate)):
        routes.append((await fallback.publish(b"", delay=delay)).route)
        await trio.sleep(1 / rate)
    return routes


async def test_it_tells_when_it_begins_and_when_it_ends(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One event for each, and one log line a minute at most, however often it comes and goes."""
    primary, heard = Quota(), Heard()
    with caplog.at_level(logging.INFO, "localdelay"):
        async with open_delay_queue(RecordingSender(), capacity=5000, workers=1) as queue:
            fallback = Fallback(primary, queue, limit=AdaptiveLimit(), listener=heard)
            for _ in range(3):
                await publish_for(fallback, 5.0, 20.0)
                await publish_for(fallback, 5.0, 2.0)
                assert fallback.statistics().limit_rate is None
            lines = [(record.levelno, record.getMessage()) for record in caplog.records]
            await queue.drain(0.0)
    assert [type(event) for event in heard.events] == [LimitBegan, LimitEnded] * 3
    began, ended = heard.events[:2]
    assert isinstance(began, LimitBegan)
    assert 0 < began.rate < 20
    assert isinstance(ended, LimitEnded)
    assert 5 < ended.limited_for < 10
    assert lines == [
        (
            logging.WARNING,
            f"the broker refuses calls: it gets {began.rate:.3g} a second at first, and the rest waits here",
        ),
        (logging.INFO, f"the limit is off again after {ended.limited_for:.3g} s"),
    ]


async def test_a_shared_limit_is_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Queue and fallback both see that it limits, and each tells its listener; the log says so once."""
    primary, publishes, sends = Quota(), Heard(), Heard()

    async def send(message: Message) -> None:
        await primary(message, 0.0)

    with caplog.at_level(logging.INFO, "localdelay"):
        async with open_delay_queue(send, capacity=5000, workers=5, listener=sends) as queue:
            fallback = Fallback(primary, queue, listener=publishes)
            await publish_for(fallback, 20.0, 30.0, delay=5.0)
            await trio.sleep(100.0)
            await publish_for(fallback, 5.0, 2.0)
            await queue.put(b"", delay=0.5)
            await trio.sleep(1.0)
            assert queue.statistics().limit_rate is None
            await queue.drain(0.0)
    for heard in (publishes, sends):
        assert [type(event) for event in heard.events if type(event) in (LimitBegan, LimitEnded)] == [
            LimitBegan,
            LimitEnded,
        ]
    said = [record.getMessage() for record in caplog.records if "limit" in record.getMessage()]
    assert len([line for line in said if "off again" in line]) == 1
    begun = [record for record in caplog.records if record.getMessage().startswith("the broker refuses")]
    assert [record.levelno for record in begun] == [logging.WARNING]


async def test_messages_go_back_at_the_rate_that_was_found(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """What was held at the peak returns behind new publishes, without a storm of calls."""
    primary = Quota()
    async with open_delay_queue(RecordingSender(), capacity=5000, workers=1) as queue:
        fallback = Fallback(primary, queue, limit=AdaptiveLimit(), hand_back=True)
        await publish_for(fallback, 10.0, 30.0)
        held = conserved(queue).pending
        assert held > 100
        calls = primary.calls
        await trio.sleep(60.0)
        back = conserved(queue).handed_back
        assert back >= held * 0.9
        assert primary.calls - calls <= 1.3 * back
        await queue.drain(0.0)


async def test_messages_go_back_soon_after_all_was_refused(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """Whoever takes nothing for ten seconds is asked now and then, and has all back five seconds later."""
    refuses, calls = True, 0

    async def primary(message: Message, delay: float) -> None:
        nonlocal calls
        calls += 1
        if refuses:
            raise Throttled

    async with open_delay_queue(RecordingSender(), capacity=5000, workers=1) as queue:
        fallback = Fallback(primary, queue, limit=AdaptiveLimit(), hand_back=True)
        await publish_for(fallback, 10.0, 30.0)
        assert calls <= 20
        refuses = False
        await trio.sleep(5.0)
        assert conserved(queue).handed_back == 300
