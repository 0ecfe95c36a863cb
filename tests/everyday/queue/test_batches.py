"""Sending in batches: what goes together, and what a failing batch does to its messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from localdelay import (
    AdaptiveLimit,
    BatchPolicy,
    Message,
    PartialSendError,
    RetryPolicy,
    Throttled,
    open_delay_queue,
)
from localdelay.breaker import THROTTLED
from localdelay.entry import Entry
from localdelay.keeping import Keeper
from localdelay.queue.batch import blame


class Batches:
    """A batch sender that takes `duration` seconds and keeps what it was given."""

    def __init__(
        self, duration: float = 0.0, fail: Callable[[Sequence[Message]], None] | None = None
    ) -> None:
        self.duration = duration
        self.fail = fail
        self.calls: list[tuple[float, list[bytes]]] = []

    async def __call__(self, messages: Sequence[Message]) -> None:
        for message in messages:
            assert trio.current_time() >= message.execute_at
        self.calls.append((trio.current_time(), [message.payload for message in messages]))
        if self.duration:
            await trio.sleep(self.duration)
        if self.fail is not None:
            self.fail(messages)


@pytest.mark.parametrize("cancellable", [True, False])
async def test_messages_that_enter_after_later_numbers_go_once(
    cancellable: bool, autojump_clock: Any, conserved: Any
) -> None:
    """Two of one execute-at, the later number first, beside others that are due: each is sent, and once."""
    sender = Batches()
    policy = BatchPolicy(max_messages=2)
    async with open_delay_queue(
        send_batch=sender, batch=policy, capacity=100, workers=1, cancellable=cancellable
    ) as queue:
        for number, due in ((1, 10.0), (2, 20.0), (7, 10.0), (5, 10.0)):
            assert queue._ledger.try_reserve(1)
            queue._pending.enter((due, number - 10**9, b"%d" % number), 1)
            queue._schedule.sort_in()
        await trio.sleep(30)
        assert conserved(queue).sent == 4
    assert [payload for _, batch in sender.calls for payload in batch] == [b"1", b"5", b"7", b"2"]


async def test_a_batch_has_at_most_so_many_bytes(autojump_clock: Any, conserved: Any) -> None:
    """Headers count; a message larger than the limit goes alone, and nothing overtakes it."""
    sender = Batches()
    policy = BatchPolicy(max_bytes=10)
    async with open_delay_queue(send_batch=sender, batch=policy, capacity=100, workers=1) as queue:
        for payload in (b"1234", b"12345", b"67", b"x" * 30, b"y" * 10, b"z"):
            queue.put_nowait(payload, delay=1)
        queue.put_nowait(b"abcd", delay=1, headers={"name": "value"})
    assert [call for _, call in sender.calls] == [
        [b"1234", b"12345"],
        [b"67"],
        [b"x" * 30],
        [b"y" * 10],
        [b"z"],
        [b"abcd"],
    ]
    assert conserved(queue).sent == 7


async def test_a_limit_that_begins_while_a_batch_waits_for_company_makes_it_no_larger(
    autojump_clock: Any, conserved: Any
) -> None:
    """It goes as it is: what has come meanwhile has to wait for the limit, in a batch of its own."""
    sender, limit = Batches(), AdaptiveLimit()
    policy = BatchPolicy(max_messages=3, max_wait=1.0)
    async with open_delay_queue(
        send_batch=sender, batch=policy, capacity=100, workers=2, limit=limit
    ) as queue:
        for payload in (b"a", b"b"):
            queue.put_nowait(payload, delay=1.0)
        for payload in (b"c", b"d", b"e"):
            queue.put_nowait(payload, delay=1.5)
        await trio.sleep(1.2)
        limit.record(THROTTLED, 0.0, None, 0.0, lately=100.0)  # as a fallback's call that is refused
        await trio.sleep(3)
    assert sender.calls == [(1.5, [b"a", b"b"]), (pytest.approx(1.53), [b"c", b"d", b"e"])]
    assert conserved(queue).sent == 5


async def test_waiting_for_company(autojump_clock: Any, conserved: Any) -> None:
    """A batch goes when its first message has waited `max_wait`, or at once when it is full."""
    sender = Batches()
    policy = BatchPolicy(max_messages=3, max_wait=1)
    async with open_delay_queue(send_batch=sender, batch=policy, capacity=100, workers=3) as queue:
        for delay in (1, 1.5, 2.5, 10, 10.2, 10.4, 10.6):
            queue.put_nowait(str(delay).encode(), delay=delay)
        await trio.sleep(1.25)
        s = conserved(queue)
        assert (s.sending, s.waiting) == (1, 6)
        queue.put_nowait(b"in time", delay=0.125)
        await trio.sleep(12)
    assert sender.calls == [
        (1.5, [b"1", b"in time", b"1.5"]),
        (3.5, [b"2.5"]),
        (10.4, [b"10", b"10.2", b"10.4"]),
        (11.6, [b"10.6"]),
    ]
    assert queue.statistics().lateness.max == 1


class Steps(trio.abc.Instrument):
    """Counts the turns of all tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_only_one_worker_waits_for_company(autojump_clock: Any, conserved: Any) -> None:
    """A worker whose send ends when the leader is about to wake may be the first to look: nobody spins."""
    instant = 2**-10  # exact in binary, and shorter than a worker's turn
    sender = Batches(duration=instant)
    steps = Steps()
    policy = BatchPolicy(max_messages=3, max_wait=5)
    async with open_delay_queue(send_batch=sender, batch=policy, capacity=1000, workers=2) as queue:
        trio.lowlevel.add_instrument(steps)
        for _ in range(40):
            for _ in range(3):
                queue.put_nowait(b"full", delay=1)
            queue.put_nowait(b"due when the send of the full batch ends", delay=1 + instant)
            await trio.sleep(2)
            queue.put_nowait(b"due at once", delay=0)
            await trio.sleep(14)
        trio.lowlevel.remove_instrument(steps)
    assert [len(call) for _, call in sender.calls] == [3, 2] * 40
    assert [when % 16 for when, _ in sender.calls] == [1, 6 + instant] * 40
    assert steps.count < 40 * 30, steps.count


async def test_a_pause_lets_others_send_what_waits_for_company(autojump_clock: Any, conserved: Any) -> None:
    """A keeper that takes back what is paused has the messages of a gathering batch at once."""

    class TakesBack(Keeper):
        def failed(self, entry: Entry, again: Entry) -> bool:
            return False

    policy = BatchPolicy(max_wait=50)
    async with open_delay_queue(send_batch=Batches(), batch=policy, capacity=100, workers=2) as queue:
        queue._pending.keeper = TakesBack(lambda: (0, 0))
        for delay in (1, 2):
            queue.put_nowait(b"", delay=delay)
        await trio.sleep(3)
        assert conserved(queue).sending == 2
        queue.pause()
        await trio.sleep(1)
        assert conserved(queue).pending == 0


async def test_a_drain_waits_for_no_company(autojump_clock: Any, conserved: Any) -> None:
    """What comes due within the grace is sent when it is due, however long a batch might wait for more."""
    sender = Batches()
    policy = BatchPolicy(max_wait=10)
    async with open_delay_queue(send_batch=sender, batch=policy, capacity=100, workers=2) as queue:
        queue.put_nowait(b"gathering", delay=0)
        queue.put_nowait(b"due in the grace", delay=3)
        await trio.sleep(1)
        assert conserved(queue).sending == 1
        report = await queue.drain(grace=5)
    assert sender.calls == [(1, [b"gathering"]), (3, [b"due in the grace"])]
    assert (report.sent, report.remaining) == (2, [])


async def test_a_partial_failure_retries_the_failed_ones_alone(autojump_clock: Any, conserved: Any) -> None:
    """What the broker took is sent; a poisoned message is tried again alone and holds up no other."""

    def fail(messages: Sequence[Message]) -> None:
        failed: dict[str, Exception] = {m.id: OSError() for m in messages if m.payload.startswith(b"bad")}
        if failed:
            raise PartialSendError(failed)

    dead: list[tuple[float, bytes, int]] = []

    async def hook(message: Message, error: Exception) -> None:
        assert isinstance(error, OSError)
        dead.append((trio.current_time(), message.payload, message.attempt))

    retry = RetryPolicy(attempts=3, wait_initial=1, wait_jitter=0)
    sender = Batches(fail=fail)
    async with open_delay_queue(
        send_batch=sender, capacity=100, workers=1, retry=retry, on_dead_letter=hook
    ) as queue:
        for payload in (b"good 1", b"bad 1", b"good 2", b"bad 2"):
            queue.put_nowait(payload, delay=1)
        queue.put_nowait(b"good 3", delay=2)
        await trio.sleep(1.5)
        s = conserved(queue)
        assert (s.sent, s.retrying, s.failures) == (2, 2, 2)
    assert sender.calls == [
        (1, [b"good 1", b"bad 1", b"good 2", b"bad 2"]),
        (2, [b"bad 1"]),
        (2, [b"bad 2"]),
        (2, [b"good 3"]),
        (4, [b"bad 1"]),
        (4, [b"bad 2"]),
    ]
    assert sorted(dead) == [(4, b"bad 1", 3), (4, b"bad 2", 3)]
    s = conserved(queue)
    assert (s.sent, s.dead) == (3, 2)


@pytest.mark.parametrize("error", [OSError, Throttled])
async def test_an_outage_does_not_turn_into_single_sends(
    error: type[Exception], autojump_clock: Any, conserved: Any
) -> None:
    """A batch that failed as a whole is tried again as a batch."""
    down = 2

    def fail(messages: Sequence[Message]) -> None:
        nonlocal down
        if down:
            down -= 1
            raise error

    sender = Batches(fail=fail)
    retry = RetryPolicy(wait_initial=1)  # with jitter: all of a batch wait equally long
    async with open_delay_queue(send_batch=sender, capacity=100, workers=4, retry=retry) as queue:
        for i in range(50):
            queue.put_nowait(b"%d" % i, delay=1)
    assert [len(call) for _, call in sender.calls] == [50, 50, 50]
    s = conserved(queue)
    assert (s.sent, s.failures, s.throttled) == (50, 100, 100 if error is Throttled else 0)


async def test_a_batch_sender_that_is_no_coroutine_function_is_called_once(
    autojump_clock: Any, conserved: Any
) -> None:
    """It may well have sent: its messages are not given to it again. Nobody can tell before, of a lambda."""
    calls: list[int] = []
    send: Any = lambda messages: calls.append(len(messages))  # noqa: E731 (a `def` is refused)
    async with open_delay_queue(send_batch=send, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
        queue.put_nowait(b"", delay=1)
    assert calls == [2]
    assert conserved(queue).dead == 2


def test_blame() -> None:
    """Only a `PartialSendError` about messages of the batch blames some of them; none is not all."""
    error = OSError()
    assert blame(error, ["a"]) is None
    assert blame(PartialSendError({"a": error}), ["a", "b"]) == {"a": error}
    assert blame(PartialSendError({"a": error, "x": error}), ["a", "b"]) is None
    assert blame(PartialSendError({}), ["a", "b"]) == {}
