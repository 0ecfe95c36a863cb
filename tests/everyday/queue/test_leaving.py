"""Leaving the block: by its end, by an exception, by a cancellation."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

import pytest
import trio

from localdelay import Fallback, Message, open_delay_queue
from localdelay.queue.workers import Workers
from localdelay.testing import RecordingSender, ThrottledPrimary


class Interrupt(BaseException):
    """Like KeyboardInterrupt: not an Exception, and not Trio's."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


async def test_leaving_waits_until_all_is_sent(autojump_clock: Any, conserved: Any, caplog: Any) -> None:
    """The normal end of the block sends every message at its own time, and says what it waits for."""
    sender = RecordingSender(duration=2)
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        for delay in (100, 3, 50):
            queue.put_nowait(b"1234", delay=delay)
    assert trio.current_time() == 102
    assert sender.times == [3, 50, 100]
    assert conserved(queue).sent == 3
    lines = warnings(caplog)
    for line in lines:
        assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}, or longer", line)
        assert "`drain(grace=SECONDS)`" in line
    said = [re.findall(r"sends of (\d messages?) \((\d+ B)\): (\d+ s), ", line) for line in lines]
    three = [[("3 messages", "12 B", "100 s")]]
    two = [[("2 messages", "8 B", f"{left} s")] for left in (92, 82, 72, 62, 52)]
    one = [[("1 message", "4 B", f"{left} s")] for left in (42, 32, 22, 12)]
    assert said == [*three, *two, *one, [("1 message", "4 B", "2 s")]]


async def test_leaving_says_nothing_of_a_moment(autojump_clock: Any, caplog: Any) -> None:
    """What is sent within half a second costs nobody anything; where sends take longer it is said."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=0.4)
    assert warnings(caplog) == []
    async with open_delay_queue(RecordingSender(duration=9), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=0)
    assert trio.current_time() == 9.4
    [line] = warnings(caplog)
    assert "waits for the sends of 1 message (0 B)" in line


async def test_leaving_for_long_is_said_less_and_less(autojump_clock: Any, caplog: Any) -> None:
    """For two minutes every 10 s, and then less often: a day takes no thousands of lines."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=86_400)
    assert 13 < len(warnings(caplog)) < 120


async def test_a_drain_with_a_grace_says_nothing_of_it(autojump_clock: Any, caplog: Any) -> None:
    """It has an end, and a plan that is logged at INFO."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=50)
        await queue.drain(grace=100)
    assert trio.current_time() == 50
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        Interrupt("mine"),
        ExceptionGroup("mine", [OSError()]),
        BaseExceptionGroup("mine", [Interrupt()]),
    ],
    ids=repr,
)
async def test_the_blocks_own_exception_comes_out_as_it_is(
    error: BaseException, autojump_clock: Any, conserved: Any, caplog: Any
) -> None:
    """Not wrapped, not replaced, without a made-up context; what was pending is there and warned of once."""
    with pytest.raises(type(error)) as caught:
        async with open_delay_queue(RecordingSender(duration=9), capacity=10, workers=1) as queue:
            queue.put_nowait(b"123", delay=1)
            queue.put_nowait(b"4567", delay=100)
            await trio.sleep(2)
            assert conserved(queue).sending == 1
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert trio.current_time() == 2
    s = conserved(queue)
    assert (s.pending, s.waiting, s.sending, s.closed) == (2, 2, 0, True)
    assert [m.payload for m in queue.messages()] == [b"123", b"4567"]
    [line] = warnings(caplog)
    assert "2 messages (7 B)" in line
    assert "test_leaving.py" in "".join(traceback.format_exception(error))


async def test_an_exception_with_nothing_pending_warns_of_nothing(autojump_clock: Any, caplog: Any) -> None:
    """There is no warning where nothing is lost."""
    with pytest.raises(ZeroDivisionError):
        async with open_delay_queue(RecordingSender(), capacity=10, workers=1):
            raise ZeroDivisionError
    assert warnings(caplog) == []


async def test_a_cancellation_while_leaving(autojump_clock: Any, conserved: Any, caplog: Any) -> None:
    """The wait at the end of the block can be cancelled, too; nothing is lost by it."""
    with trio.move_on_after(5) as scope:
        async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
            queue.put_nowait(b"", delay=1)
            queue.put_nowait(b"", delay=100)
    assert scope.cancelled_caught
    s = conserved(queue)
    assert (s.sent, s.pending) == (1, 1)
    assert ["waits for the sends of 2" in warnings(caplog)[0], *warnings(caplog)[1:]] == [
        True,
        "the queue was left with 1 message (0 B) pending, lost with this process: `journal=PATH` keeps them",
    ]


@pytest.mark.parametrize("grouped", [False, True])
async def test_both_come_out_when_both_raise(grouped: bool, autojump_clock: Any) -> None:
    """What a block raises when a send's interrupt cancels it is not lost, also beside the cancellation."""

    async def send(message: Message) -> None:
        raise Interrupt

    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_delay_queue(send, capacity=10, workers=1) as queue:
            queue.put_nowait(b"", delay=1)
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                own = ZeroDivisionError()
                raise (BaseExceptionGroup("both", [cancelled, own]) if grouped else own) from None
    assert caught.group_contains(Interrupt)
    assert caught.group_contains(ZeroDivisionError)
    assert not caught.group_contains(trio.Cancelled)


def test_statistics_can_be_read_after_the_run() -> None:
    """What the queue did can still be asked when Trio has ended."""

    async def main() -> Any:
        with trio.move_on_after(1):
            async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
                queue.put_nowait(b"", delay=5)
                await trio.sleep_forever()
        return queue

    queue = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert queue.statistics().next_due_in == 4
    assert len(queue.messages()) == 1


async def test_leaving_reckons_with_what_a_limit_lets_go(autojump_clock: Any, caplog: Any) -> None:
    """One send a second is tried, however little was found: after one refusal 2 s are 2 s, and not 10."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        await Fallback(ThrottledPrimary(limit=0), queue).publish(b"1234", delay=2.0)
        assert queue.statistics().limit_rate == 0.1
    assert sender.times == [2.0]
    said = [line for line in warnings(caplog) if "waits for" in line]
    assert [re.findall(r"\(4 B\): (\d+ s), ", line) for line in said] == [["2 s"]]


async def test_that_nothing_is_left_is_found_out_once(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by each worker, who looks at all others for it: of ten thousand that would take seconds."""
    looks: list[int] = []
    busy = Workers.busy.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Workers, "busy", property(lambda self: looks.append(1) or busy(self)))
    async with open_delay_queue(RecordingSender(), capacity=10, workers=100) as queue:
        queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
    assert len(looks) <= 3
