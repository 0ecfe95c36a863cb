"""When what may have ended the last process has its turn: beside a limit, a broker that is down, a drain."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from localdelay import DelayQueue, Message, ProbePolicy, RateLimit, open_delay_queue
from localdelay.entry import Entry
from localdelay.queue.schedule import Schedule
from localdelay.testing import RecordingSender
from tests.kit.probing import STEADY


def suspect(number: int, due: float = 0.0, attempt: int = 2) -> Entry:
    """As a journal brings it back."""
    return due, number - 2**62, (b"suspect", None, f"s{number}", attempt, 0, due, True, None, None)


def take_in(queue: DelayQueue, *entries: Entry) -> None:
    queue._pending.enter_suspects(entries, trio.current_time())


class Patience(trio.abc.Instrument):
    """Cancels a scope after so many steps of any task: what spins would hold up a virtual clock for ever."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.scope.cancel()


async def test_a_drain_while_one_waits_for_the_limit_sleeps(autojump_clock: Any, conserved: Any) -> None:
    """A drain with a grace sends none of them: what the limit owes one is nothing to wake for then."""
    sender, patience = RecordingSender(), Patience(100)
    limit = RateLimit(1.0, burst=1)
    async with open_delay_queue(sender, capacity=9, workers=2, limit=limit) as queue:
        queue.put_nowait(b"first", delay=0)
        await trio.sleep(0.1)
        take_in(queue, suspect(1))
        queue.put_nowait(b"last", delay=50)
        await trio.sleep(0.1)  # it waits for the limit, until 1.0
        trio.lowlevel.add_instrument(patience)
        with patience.scope:
            report = await queue.drain(60)
        trio.lowlevel.remove_instrument(patience)
        assert not patience.scope.cancelled_caught
    assert list(zip(sender.times, sender.payloads, strict=True)) == [(0.0, b"first"), (50.1, b"last")]
    assert [message.id for message in report.remaining] == ["s1"]
    assert conserved(queue).pending == 1


@pytest.mark.usefixtures("no_jitter")
async def test_one_that_is_tried_while_the_broker_is_down_lets_the_next_wait(
    autojump_clock: Any, conserved: Any
) -> None:
    """It is the probe where nothing else is due, and the wait after it grows as after any other."""
    times: list[float] = []

    async def send(message: Message) -> None:
        times.append(trio.current_time())
        if trio.current_time() < 20:
            raise ConnectionError

    probe = ProbePolicy(failures=2, wait_initial=1.0, wait_max=8.0)
    async with open_delay_queue(send, capacity=9, workers=3, probe=probe, retry=STEADY) as queue:
        others = [queue.put_nowait(b"", delay=0.0) for _ in range(2)]
        await trio.sleep(0.5)
        assert [queue.cancel(message.id) for message in others] == [True, True]
        take_in(queue, suspect(1), suspect(2))
        await trio.sleep(19)
        assert times == [0, 0, 1, 3, 7, 15]
    assert conserved(queue).sent == 2


def test_the_oldest_is_known_after_one_was_cancelled() -> None:
    """Whatever order the rest is in."""
    schedule = Schedule(indexed=True)
    dues = [1.0, 9.0, 2.0, 10.0, 11.0, 3.0, 4.0]
    for number, due in enumerate(dues):
        schedule.set_aside(suspect(number, due, attempt=20 - number))
    schedule.lend(suspect(0)[1])
    schedule.forget(suspect(0)[1])
    assert schedule.aside_in_turn()[0] == suspect(6, 4.0, attempt=14)
    assert schedule.oldest() == 2.0
    left = dues[1:]
    while (entry := next(iter(schedule.aside_in_turn()), None)) is not None:
        assert schedule.oldest() == min(left)
        schedule.take_aside(entry)
        left.remove(entry[0])
