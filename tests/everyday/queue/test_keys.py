"""Due sends by key: what waits for the broker or the limit of one key holds up no other key's."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import trio

from localdelay import (
    AdaptiveLimit,
    BatchPolicy,
    Message,
    ProbePolicy,
    RateLimit,
    RetryPolicy,
    Throttled,
    open_delay_queue,
)
from localdelay.listening import Event, SendingOpened, SendingShut
from localdelay.testing import RecordingSender
from tests.kit.probing import EXACT, STEADY, key

pytestmark = pytest.mark.usefixtures("no_jitter")


class Brokers:
    """One for each key, which is down until an instant; they keep what they were called with."""

    def __init__(self, *, duration: float = 0.0, error: type[Exception] = ConnectionError, **up_at: float):
        self.up_at = up_at
        self.duration = duration
        self.error = error
        self.calls: list[tuple[float, str, int]] = []
        """(when, payload, attempt)"""
        self.sent: list[tuple[float, str]] = []
        self.events: list[tuple[float, type[Event], Hashable]] = []
        self.out: Counter[str] = Counter()
        self.most_out: Counter[str] = Counter()

    async def __call__(self, message: Message) -> None:
        await self.batch([message])

    async def batch(self, messages: Sequence[Message]) -> None:
        (its_key,) = {key(message) for message in messages}
        names = " ".join(message.payload.decode() for message in messages)
        began = trio.current_time()
        self.calls.append((round(began, 3), names, messages[0].attempt))
        self.out[its_key] += 1
        self.most_out[its_key] = max(self.most_out[its_key], self.out[its_key])
        try:
            await trio.sleep(self.duration)
        finally:
            self.out[its_key] -= 1
        if began < self.up_at.get(its_key, 0.0):
            raise self.error
        self.sent.append((round(began, 3), names))

    def on_event(self, event: Event) -> None:
        if isinstance(event, SendingShut | SendingOpened):
            self.events.append((round(trio.current_time(), 3), type(event), event.key))

    def of(self, letter: str) -> list[tuple[float, str]]:
        return [(when, names) for when, names, _ in self.calls if names.startswith(letter)]


def put_all(queue: Any, names: str, delay: float = 1.0) -> None:
    """Messages that are due a thousandth of a second after each other."""
    for number, name in enumerate(names.split()):
        queue.put_nowait(name.encode(), delay=delay + number / 1000)


@pytest.mark.parametrize("cancellable", [False, True])
async def test_while_one_key_is_down_the_others_are_on_time(
    cancellable: bool, autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One at a time of that key is tried, as its first attempt still; the rest waits in due order."""
    brokers = Brokers(a=10.0)
    async with open_delay_queue(
        brokers,
        capacity=99,
        workers=1,
        retry=STEADY,
        probe=EXACT,
        key=key,
        listener=brokers,
        cancellable=cancellable,
    ) as queue:
        put_all(queue, "a0 a1 a2 a3 a4 a5")
        for second in range(1, 20):
            queue.put_nowait(b"b%d" % second, delay=second + 0.5)
        await trio.sleep(9)
        s = conserved(queue)
        assert (s.oldest_overdue, s.next_due_in) == (8.0, 0.0)
        assert (s.pending, s.sent, s.waiting, s.retrying) == (17, 8, 12, 5)
        assert [message.payload for message in queue.messages()][:4] == [b"a5", b"a2", b"a3", b"a4"]
        assert list(s.keys) == ["a", "b"]
        assert (s.keys["a"].due, s.keys["a"].is_shut, s.keys["a"].retry_in) == (4, True, pytest.approx(3.002))
        assert (s.keys["b"].due, s.keys["b"].is_shut, s.keys["b"].retry_in) == (0, False, 0.0)
    assert brokers.of("b") == [(second + 0.5, f"b{second}") for second in range(1, 20)]
    assert brokers.of("a") == [
        *[(1.0, "a0"), (1.001, "a1"), (1.002, "a2")],
        *[(2.002, "a2"), (4.002, "a3"), (8.002, "a4")],
        *[(12.002, "a5"), (12.002, "a2"), (12.002, "a3"), (12.002, "a4")],
        *[(101.0, "a0"), (101.001, "a1")],
    ]
    assert {attempt for _, names, attempt in brokers.calls if names in ("a2", "a3", "a4", "a5")} == {1}
    assert brokers.events == [(1.002, SendingShut, "a"), (12.002, SendingOpened, "a")]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("of one key fail one after the other" in line for line in warnings) == 1
    s = conserved(queue)
    assert (s.sent, s.failures, s.lateness.count) == (25, 6, 25)
    assert s.keys["a"].due == 0


async def test_each_key_that_is_down_has_one_probe(autojump_clock: Any, conserved: Any) -> None:
    """However many workers are idle, and however long a probe takes; no other key waits for it."""
    brokers = Brokers(duration=0.5, a=7.0, b=20.0)
    async with open_delay_queue(brokers, capacity=99, workers=9, retry=STEADY, probe=EXACT, key=key) as queue:
        put_all(queue, "a0 a1 a2 b0 b1 b2 a3 b3 a4 b4", delay=1.0)
        await trio.sleep(1.6)
        brokers.most_out.clear()
        await trio.sleep(5)
        conserved(queue)
        assert brokers.most_out == {"a": 1, "b": 1}
    # 1, 2 and 4 s after the last one has failed, which takes half a second.
    assert [when for when, _ in brokers.of("a")][5:8] == pytest.approx([2.502, 5.002, 9.502], abs=0.01)
    assert [when for when, _ in brokers.of("b")][5:8] == pytest.approx([2.505, 5.005, 9.505], abs=0.01)
    assert conserved(queue).sent == 10


async def test_a_key_that_is_limited_limits_no_other(autojump_clock: Any, conserved: Any) -> None:
    """Each has a copy of the limit, and its own turn of it."""
    sender = RecordingSender()
    limit = RateLimit(1.0, burst=1)
    async with open_delay_queue(sender, capacity=99, workers=2, limit=limit, key=key) as queue:
        put_all(queue, "a0 a1 a2 a3 b0 c0 c1", delay=1.0)
        await trio.sleep(1.5)
        s = conserved(queue)
        assert {its_key: one.due for its_key, one in s.keys.items()} == {"a": 3, "b": 0, "c": 1}
        assert (s.limit_rate, s.keys["a"].limit_rate) == (3.0, 1.0)
    times = [(round(when, 3), message.payload.decode()) for when, message in sender.sent]
    assert times == [
        (1.0, "a0"),
        (1.004, "b0"),
        (1.005, "c0"),
        (2.0, "a1"),
        (2.005, "c1"),
        (3.0, "a2"),
        (4.0, "a3"),
    ]
    assert limit.available == 1.0  # it is what they are copied from


async def test_the_rate_that_a_key_is_given_is_found(autojump_clock: Any, conserved: Any) -> None:
    """A broker that throttles one key is spared by what goes to that, and takes all else on time."""
    taken: list[float] = []
    refused: list[float] = []
    others: list[float] = []

    async def send(message: Message) -> None:
        now = trio.current_time()
        if key(message) != "a":
            others.append(now)
        elif len([when for when in taken[-99:] if when > now - 1.0]) >= 20:
            refused.append(now)
            raise Throttled
        else:
            taken.append(now)

    async with open_delay_queue(send, capacity=5_000, workers=4, key=key) as queue:
        for number in range(1_200):
            queue.put_nowait(b"a%d" % number, delay=number / 40)
            queue.put_nowait(b"b%d" % number, delay=number / 40)
        await trio.sleep(20)
        s = conserved(queue)
        assert s.keys["a"].limit_rate == s.limit_rate == pytest.approx(20, rel=0.2)
        assert s.keys["b"].limit_rate is None
    assert others == pytest.approx([number / 40 for number in range(1_200)])
    assert len(refused) < 0.1 * len(taken)
    assert conserved(queue).sent == 2_400


async def test_of_many_keys_the_one_that_was_used_least_recently_is_forgotten(
    autojump_clock: Any, conserved: Any
) -> None:
    """1,024 of them are remembered, and each message is sent on time."""
    sender = RecordingSender()
    async with open_delay_queue(
        sender, capacity=9_999, workers=2, key=lambda message: message.headers["tenant"]
    ) as queue:
        for number in range(1_100):
            queue.put_nowait(b"", delay=1.0 + number / 1000, headers={"tenant": str(number)})
        queue.put_nowait(b"", delay=2.05, headers={"tenant": "30"})
    assert sender.times == pytest.approx(sorted([1.0 + number / 1000 for number in range(1_100)] + [2.05]))
    keys = list(conserved(queue).keys)
    assert (
        keys == [*(str(number) for number in range(76, 1_051)), "30", *map(str, range(1_051, 1_100))][-1024:]
    )


async def test_what_waits_for_a_key_that_is_forgotten_is_sent(autojump_clock: Any, conserved: Any) -> None:
    """It begins anew: they are tried, wait again while its broker is still down, and then go."""
    brokers = Brokers(**{"-": 30.0})
    probe = ProbePolicy(failures=2, wait_initial=1000.0, wait_max=1000.0)
    async with open_delay_queue(
        brokers,
        capacity=9_999,
        workers=1,
        retry=STEADY,
        probe=probe,
        key=lambda message: message.payload[:1] if message.payload[:1] == b"-" else message.payload,
    ) as queue:
        put_all(queue, "-0 -1 -2 -3 -4 -5")
        await trio.sleep(10)
        assert len(brokers.of("-")) == 2
        assert (queue.statistics().keys[b"-"].due, conserved(queue).waiting) == (5, 4)
        for number in range(1024):
            queue.put_nowait(b"n%d" % number, delay=5 + number / 1000)
        await trio.sleep(15)
        assert len(brokers.of("-")) == 4  # it was found out again at once
        assert b"-" in queue.statistics().keys
        await trio.sleep(10)
        for number in range(1024):
            queue.put_nowait(b"n%d" % number, delay=5 + number / 1000)
        await trio.sleep(10)
        assert {names for when, names in brokers.sent if when < 42} >= {"-2", "-3", "-4", "-5"}
    assert conserved(queue).sent == 6 + 2 * 1024


@pytest.mark.parametrize("max_wait", [0.0, 2.0])
async def test_more_keys_may_be_down_than_are_remembered(
    max_wait: float, autojump_clock: Any, conserved: Any
) -> None:
    """Nothing hangs, nothing is lost, and nothing is done without end at one instant."""
    calls = Counter[bool]()

    async def send_batch(messages: Sequence[Message]) -> None:
        is_down = trio.current_time() < 10
        calls[is_down] += 1
        await trio.sleep(0.1)
        if is_down:
            raise ConnectionError

    probe = ProbePolicy(failures=1, wait_initial=4.0, wait_max=4.0)
    batch = BatchPolicy(max_messages=2, max_wait=max_wait)
    retry = RetryPolicy(wait_initial=1.0, wait_max=1.0, wait_jitter=0)
    async with open_delay_queue(
        send_batch=send_batch,
        batch=batch,
        capacity=9_999,
        workers=50,
        retry=retry,
        probe=probe,
        limit=AdaptiveLimit(),
        key=lambda message: message.payload,
    ) as queue:
        for number in range(2_400):
            queue.put_nowait(b"%d" % (number % 1_200), delay=1.0)
        await trio.sleep(8)
        conserved(queue)
    assert calls[True] < 50 / 0.1 * 10
    assert conserved(queue).sent == 2_400


@pytest.mark.parametrize("cancellable", [False, True])
async def test_what_waits_in_a_line_is_cancelled_and_moved_as_any_other(
    cancellable: bool, autojump_clock: Any, conserved: Any
) -> None:
    """Out of the midst of it, the first of it, and all of it."""
    brokers = Brokers(a=9.0, c=999.0)
    async with open_delay_queue(
        brokers, capacity=999, workers=2, retry=STEADY, probe=EXACT, key=key, cancellable=cancellable
    ) as queue:
        put_all(queue, "a0 a1 a2 a3 a4 a5 a6 a7 c0 c1 c2 c3 c4")
        await trio.sleep(1.5)
        ids = {message.payload.decode(): message.id for message in queue.messages()}
        assert queue.is_pending(ids["a3"])
        if not cancellable:
            queue.core.pending.schedule.mix()
            await queue.drain(0.0)
            assert len(conserved(queue).keys) == 2
            return
        for name in ("a2", "a4", "c2", "c3", "c4", "c0", "c1"):
            assert queue.cancel(ids[name])
            conserved(queue)
        assert queue.reschedule(ids["a5"], delay=0.0)  # among what is due it is the last now
        assert queue.reschedule(ids["a6"], delay=90.0)
        assert not queue.cancel(ids["a4"])
        assert queue.statistics().keys["a"].due == 2
        for number in range(300):  # until what is dead is swept
            assert queue.cancel(queue.put_nowait(b"b%d" % number, delay=50.0).id)
        await trio.sleep(9.5)
        conserved(queue)
    assert brokers.of("a")[3:] == [
        *[(2.002, "a3"), (4.002, "a7"), (8.002, "a5")],
        *[(12.002, name) for name in ("a3", "a7", "a5")],
        *[(91.5, "a6"), (101.0, "a0"), (101.001, "a1")],
    ]
    assert len(brokers.of("c")) == 3
    assert conserved(queue).cancelled == 307


async def test_a_drain_sends_what_may_go_and_leaves_the_rest(autojump_clock: Any, conserved: Any) -> None:
    """In its time; what lies beyond it is handed back as the limit of each key allows, in whatever order."""
    brokers = Brokers(a=99.0)
    back: list[tuple[float, str]] = []

    async def hand_back(message: Message, remaining: float) -> None:
        back.append((trio.current_time(), message.payload.decode()))

    limit = RateLimit(1.1, burst=3)  # not 1.0: no probe and no hand-back are due in one instant
    async with open_delay_queue(
        brokers, capacity=99, workers=2, retry=STEADY, probe=EXACT, key=key, limit=limit
    ) as queue:
        put_all(queue, "a0 a1 a2 a3 b1")
        put_all(queue, "a4 b2 b3 b4 b5 c1 c2", delay=50.0)
        await trio.sleep(2)
        report = await queue.drain(4.5, hand_back)
        assert trio.current_time() == 6.5
        assert (report.sent, report.handed_back) == (0, 9)
        assert [message.payload for message in report.remaining] == [b"a2", b"a3"]
    assert [(round(when, 3), name) for when, name in back] == [
        *[(2.0, name) for name in ("a4", "b2", "b3", "b4", "c1", "c2")],
        (2.909, "b5"),
        *[(3.727, "a1"), (4.636, "a0")],  # whose next sends were beyond it; a probe of theirs came first
    ]
    conserved(queue)


async def test_leaving_waits_for_a_key_that_is_down(autojump_clock: Any, conserved: Any) -> None:
    """Until all of it is sent; what was cancelled of it meanwhile is not waited for."""
    brokers = Brokers(a=10.0, b=9999.0)
    async with open_delay_queue(brokers, capacity=99, workers=2, retry=STEADY, probe=EXACT, key=key) as queue:
        put_all(queue, "a0 a1 a2 a3 b0 b1 b2 b3 b4")
        await trio.sleep(50)
        for message in queue.messages():
            if key(message) == "b":
                queue.cancel(message.id)
        left = trio.current_time()
    assert (left, round(trio.current_time(), 3)) == (50.0, 101.001)
    assert conserved(queue).sent == 4


async def test_a_batch_is_of_one_key_and_waits_for_company_of_its_own(
    autojump_clock: Any, conserved: Any
) -> None:
    """Until it is full or its first message must go; meanwhile other keys' go when it is their time."""
    brokers = Brokers()
    batch = BatchPolicy(max_messages=3, max_wait=1.0)
    async with open_delay_queue(
        send_batch=brokers.batch, batch=batch, capacity=99, workers=3, key=key
    ) as queue:
        for name, due in (("a0", 1.0), ("b0", 1.1), ("a1", 1.2), ("b1", 1.3), ("c0", 1.5), ("b2", 1.6)):
            queue.put_nowait(name.encode(), delay=due)
        await trio.sleep(1.4)
        assert conserved(queue).sending == 0
        await trio.sleep(2)
        queue.put_nowait(b"d0", delay=0.0)
        await trio.sleep(0.5)
    assert brokers.sent == [(1.6, "b0 b1 b2"), (2.0, "a0 a1"), (2.5, "c0"), (3.9, "d0")]


async def test_a_batch_sender_probes_with_one_message(autojump_clock: Any, conserved: Any) -> None:
    """And goes on with full batches of that key; the others' were full all the while."""
    brokers = Brokers(a=4.0)
    batch = BatchPolicy(max_messages=2)
    async with open_delay_queue(
        send_batch=brokers.batch, batch=batch, capacity=99, workers=1, retry=STEADY, probe=EXACT, key=key
    ) as queue:
        for name in ("a0", "a1", "a2", "b0", "a3", "a4", "b1", "a5", "a6", "b2", "a7"):
            queue.put_nowait(name.encode(), delay=1.0)
        await trio.sleep(20)
    calls = [(when, names) for when, names, _ in brokers.calls]
    assert (
        calls
        == [
            *[(1.0, "a0 a1"), (1.0, "a2 a3"), (1.0, "b0 b1"), (1.0, "a4 a5"), (1.0, "b2")],
            *[(2.0, "a6"), (4.0, "a7"), (4.0, "a4 a5"), (4.0, "a6")],
            *[(101.0, "a0 a1"), (101.0, "a2 a3")],
        ]
        or Counter(names for _, names in calls)["b0 b1"] == 1
    )
    assert [when for when, names in calls if names.startswith("b")] == [1.0, 1.0]
    assert conserved(queue).sent == 11
