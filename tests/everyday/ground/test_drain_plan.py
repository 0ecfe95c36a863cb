"""What a drain is expected to do, and what it then does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import DelayQueue, DrainReport, Message, RateLimit, Statistics, open_delay_queue, plan_drain
from tests.kit.journals import Disk
from tests.simulation.clock import Pace

Conserved = Callable[[DelayQueue], Statistics]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # pending, due, grace first; expected: send, hand_back, spool, remain, seconds
        ({"pending": 0, "due": 0, "grace": 5}, (0, 0, 0, 0, 0)),
        ({"pending": 10, "due": 4, "grace": 5, "last_due_in": 3}, (4, 0, 0, 6, 3)),
        ({"pending": 10, "due": 4, "grace": 5, "journal": True}, (4, 0, 6, 0, 0)),
        ({"pending": 10, "due": 4, "grace": 5, "hand_backs": 100}, (4, 6, 0, 0, 0)),
        ({"pending": 10, "due": 10, "grace": math.inf, "last_due_in": 100}, (10, 0, 0, 0, 100)),
        # Two senders take a second for each of their messages.
        ({"pending": 10, "due": 10, "grace": 3, "senders": 2, "send_seconds": 1}, (6, 0, 0, 4, 3)),
        ({"pending": 6, "due": 6, "grace": 5, "senders": 2, "send_seconds": 1}, (6, 0, 0, 0, 3)),
        # Five at once, two rounds.
        ({"pending": 20, "due": 0, "grace": 2, "hand_backs": 5, "hand_back_seconds": 1}, (0, 10, 0, 10, 2)),
        ({"pending": 9, "due": 0, "grace": 9, "hand_backs": 5, "hand_back_seconds": 1}, (0, 9, 0, 0, 2)),
        # A limit: sends first, and what it lets through beside them.
        (
            {"pending": 50, "due": 10, "grace": 2, "hand_backs": 9, "rate": 10, "tokens": 1},
            (10, 11, 0, 29, 2),
        ),
        ({"pending": 20, "due": 10, "grace": 9, "hand_backs": 9, "rate": 10}, (10, 10, 0, 0, 2)),
        ({"pending": 50, "due": 50, "grace": 2, "rate": 10, "journal": True}, (20, 0, 30, 0, 2)),
        ({"pending": 5, "due": 0, "grace": 0, "hand_backs": 9, "hand_back_seconds": 0.1}, (0, 0, 0, 5, 0)),
    ],
)
def test_the_plan(given: dict[str, Any], expected: tuple[float, ...]) -> None:
    """Each message goes to one place, and the times follow from how many go at once."""
    plan = plan_drain(**given)
    assert (plan.send, plan.hand_back, plan.spool, plan.remain, plan.seconds) == expected
    assert plan.send + plan.hand_back + plan.spool + plan.remain == plan.pending


def test_a_wrong_number_is_named() -> None:
    """By its argument."""
    names = ["pending", "due", "grace", "hand_backs", "hand_back_seconds", "last_due_in"]
    wrong: list[tuple[str, Any, type[Exception]]] = [(name, -1, ValueError) for name in names]
    wrong += [("due", 11, ValueError), ("senders", 0, ValueError), ("send_seconds", math.inf, ValueError)]
    wrong += [("grace", math.nan, ValueError), ("grace", "1", TypeError)]
    for name, value, error in wrong:
        with pytest.raises(error, match=f"^{name} "):
            plan_drain(**({"pending": 10, "due": 5, "grace": 1} | {name: value}))


def test_a_plan_is_a_line() -> None:
    """For the log: what goes nowhere is left out."""
    told = str(plan_drain(pending=10, due=4, grace=2.5, hand_backs=1, hand_back_seconds=1, journal=True))
    assert told == "of 10 messages within 2.5 s: send 4, hand back 2, spool 4, leave 0"
    assert str(plan_drain(pending=3, due=3, grace=math.inf)) == "of 3 messages: send 3, leave 0"


@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize("hands_back", [False, True])
@pytest.mark.parametrize("rate", [None, 40.0])
@pytest.mark.parametrize("grace", [0.5, 4.0, 30.0])
def test_what_happens_is_what_was_planned(
    monkeypatch: pytest.MonkeyPatch,
    conserved: Conserved,
    caplog: pytest.LogCaptureFixture,
    *,
    journal: bool,
    hands_back: bool,
    rate: float | None,
    grace: float,
) -> None:
    """Sends and hand-backs of 0.25 s each, on the virtual clock: the report is the plan, to the message."""

    async def take(*_: object) -> None:
        await trio.sleep(0.25)

    async def main() -> tuple[DrainReport, float]:
        limit = None if rate is None else RateLimit(rate, burst=1)
        async with open_delay_queue(
            take, capacity=2000, workers=20, limit=limit, journal=Disk() if journal else None
        ) as queue:
            queue.put_nowait(b"", delay=0.0)
            await trio.sleep(1.0)  # now it is known how long a send takes
            for number in range(400):
                queue.put_nowait(b"", delay=number // 8)
            await queue.flush()
            began = trio.current_time()
            with caplog.at_level(logging.INFO, "localdelay"):
                report = await queue.drain(grace, take if hands_back else None)
            took = trio.current_time() - began
        conserved(queue)
        return report, took

    pace = Pace()
    pace.install(monkeypatch)
    report, took = trio.run(main, clock=pace.clock)
    plan = report.plan
    assert f"draining, {plan}" in caplog.text
    assert (plan.pending, plan.spool == 0) == (400, not journal or plan.hand_back + plan.send == 400)
    slack = 30 if rate is not None or grace < 1 else 12  # what is being sent or handed back at the end
    assert abs(report.sent - plan.send) <= slack
    assert abs(report.handed_back - plan.hand_back) <= 2 * slack
    assert report.sent + report.handed_back + report.spooled + len(report.remaining) == 400
    assert (report.spooled == 0) is not (journal and report.sent + report.handed_back < 400)
    assert took <= grace + 1e-6
    assert abs(took - plan.seconds) < 0.6


async def test_hand_backs_keep_to_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    """At no time have more gone out than the limit allows; due sends are not held up by hand-backs."""
    limit = RateLimit(10.0, burst=1)
    times: list[float] = []
    late: list[float] = []

    async def send(message: Message) -> None:
        times.append(trio.current_time())
        late.append(trio.current_time() - message.execute_at)

    async def hand_back(_: Message, __: float) -> None:
        times.append(trio.current_time())

    async with open_delay_queue(send, capacity=100, workers=5, limit=limit) as queue:
        for number in range(5):
            queue.put_nowait(b"", delay=1.0 + number)
        for _ in range(50):
            queue.put_nowait(b"", delay=100.0)
        began = trio.current_time()
        report = await queue.drain(20.0, hand_back)
    assert (report.sent, report.handed_back) == (5, 50)
    assert report.plan.seconds == pytest.approx(5.4)
    assert trio.current_time() - began == pytest.approx(5.4)
    assert all(later - earlier > 0.1 - 1e-9 for earlier, later in pairwise(times))
    assert max(late) <= 0.1 + 1e-9
