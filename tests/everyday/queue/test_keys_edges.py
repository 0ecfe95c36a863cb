"""Due sends by key where other things happen, too: pauses, journals, keys that are none, fallbacks."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest

from localdelay import (
    AdaptiveLimit,
    BatchPolicy,
    Fallback,
    Message,
    PermanentSendError,
    ProbePolicy,
    RateLimit,
    Route,
    Throttled,
    open_delay_queue,
)
from localdelay.journal.record import Record
from localdelay.keys import Keys
from localdelay.metrics import Collector
from localdelay.queue.ledger import Ledger
from localdelay.queue.pending import Pending
from localdelay.queue.schedule import Schedule
from localdelay.queue.valve import Pace
from localdelay.queue.valves import Valves
from localdelay.queue.wall import move_all, moved_entry
from localdelay.testing import RecordingSender
from tests.kit.journal_copies import EPOCH
from tests.kit.journals import Disk
from tests.kit.probing import EXACT, STEADY, key
from tests.simulation.clock import run

EXACT = attrs.evolve(EXACT, failures=2)
pytestmark = pytest.mark.usefixtures("no_jitter")


class Broker:
    """Is down for one key until an instant, and keeps what it was called with."""

    def __init__(self, down: str = "", up_at: float = 0.0) -> None:
        self.down = down
        self.up_at = up_at
        self.calls: list[tuple[float, str]] = []

    async def __call__(self, message: Message) -> None:
        now = trio.current_time()
        self.calls.append((round(now, 3), message.payload.decode()))
        if key(message) == self.down and now < self.up_at:
            raise ConnectionError


async def test_a_pause_gives_back_what_was_owed_for_each_key(autojump_clock: Any, conserved: Any) -> None:
    """Nothing is sent meanwhile; afterwards each goes when its limit has what it takes."""
    broker = Broker()
    limit = RateLimit(1.0, burst=1)
    async with open_delay_queue(broker, capacity=99, workers=2, limit=limit, key=key) as queue:
        for name in ("a0", "a1", "b0", "b1"):
            queue.put_nowait(name.encode(), delay=0.0)
        await trio.sleep(0.5)
        queue.pause()
        await trio.sleep(3.0)
        s = conserved(queue)
        assert (s.paused, s.waiting, len(broker.calls)) == (True, 2, 2)
        queue.resume()
        queue.resize(workers=1)
        await trio.sleep(0.1)
        queue.put_nowait(b"a2", delay=0.0)
    assert broker.calls == [(0.0, "a0"), (0.0, "b0"), (3.5, "a1"), (3.5, "b1"), (4.5, "a2")]


async def test_what_is_overdue_of_any_key_catches_up_at_one_pace(autojump_clock: Any, conserved: Any) -> None:
    """After an outage of one key; another one's messages are on time, whatever of the first has its place."""
    broker = Broker("a", up_at=10.0)
    probe = ProbePolicy(failures=1, wait_initial=10.5, wait_max=10.5)
    async with open_delay_queue(
        broker, capacity=999, workers=2, probe=probe, retry=STEADY, key=key, catch_up_rate=2.0
    ) as queue:
        for number in range(6):
            queue.put_nowait(b"a%d" % number, delay=1 + number / 100)
        for number in range(20):
            queue.put_nowait(b"b%d" % number, delay=number)
        await trio.sleep(50)
        conserved(queue)
    assert [call for call in broker.calls if call[1][0] == "b"] == [
        (number, f"b{number}") for number in range(20)
    ]
    assert [call for call in broker.calls if call[1][0] == "a"] == [
        *[(1.0, "a0"), (11.5, "a0")],
        *[(11.5 + number / 2, f"a{number + 1}") for number in range(5)],
    ]


def test_what_a_journal_brings_back_has_its_key(conserved: Any) -> None:
    """Overdue or not; and what may have ended the last process waits for the broker of its own key only."""
    disk = Disk()
    names = ["a0", "a1", "a2", "b0", "b1", "b2", "a suspect", "b suspect", "c suspect"]
    disk.rows = {
        number: Record(number, EPOCH - 5.0 + (9.0 if name == "b2" else 0.0), 1, name, None, name.encode())
        for number, name in enumerate(names, 1)
    }
    disk.sending = {7, 8, 9}
    broker = Broker("a", up_at=3.5)

    async def main() -> None:
        async with open_delay_queue(
            broker, capacity=9, workers=1, probe=EXACT, retry=STEADY, key=key, journal=disk
        ) as queue:
            await trio.sleep(0.5)
            assert conserved(queue).keys["a"].due == 2
        conserved(queue)

    run(main, lambda: EPOCH + trio.current_time())
    assert broker.calls == [
        *[(0.0, name) for name in ("a0", "a1", "b0", "b1", "b suspect", "c suspect")],
        *[(1.0, "a2"), (3.0, "a1"), (4.0, "b2"), (7.0, "a2"), (7.0, "a1"), (7.0, "a suspect"), (100.0, "a0")],
    ]


async def test_a_probe_that_is_given_up_makes_room_for_the_next(autojump_clock: Any, conserved: Any) -> None:
    """Refused for ever, or expired: though its dead-letter hook takes its time, somebody looks again."""
    calls: list[tuple[float, str]] = []
    dead: list[str] = []

    async def send(message: Message) -> None:
        calls.append((round(trio.current_time(), 3), message.payload.decode()))
        if message.payload == b"a2":
            raise PermanentSendError
        if trio.current_time() < 5:
            raise ConnectionError

    async def bury(message: Message, error: Exception) -> None:
        await trio.sleep(0.5)
        dead.append(message.payload.decode())

    async with open_delay_queue(
        send, capacity=9, workers=1, probe=EXACT, retry=STEADY, key=key, on_dead_letter=bury
    ) as queue:
        queue.put_nowait(b"a0", delay=0.0)
        queue.put_nowait(b"a1", delay=0.1)
        queue.put_nowait(b"a2", delay=0.2, id="for ever")
        queue.put_nowait(b"a3", delay=0.3, expires=0.5)
        queue.put_nowait(b"a4", delay=0.4)
        queue.put_nowait(b"a5", delay=50.0)
        await trio.sleep(20)
        conserved(queue)
    assert calls[:5] == [(0.0, "a0"), (0.1, "a1"), (1.1, "a1"), (3.1, "a2"), (4.1, "a4")]
    assert dead == ["a2", "a3"]
    assert conserved(queue).sent == 4


class Unspeakable(Exception):
    """What a stranger may raise."""

    def __repr__(self) -> str:
        raise KeyError


def unspeakable(_: Message) -> str:
    raise Unspeakable


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (lambda message: message.headers["tenant"], ValueError, "key must give a key .* KeyError"),
        (unspeakable, ValueError, "key must give a key .* Unspeakable"),
        (lambda message: [message.payload], TypeError, "key must give something hashable, not list"),
        (lambda message: ([],), TypeError, "key must give something hashable, not tuple"),
    ],
)
async def test_a_put_whose_message_has_no_key_raises(
    wrong: Any, error: type[Exception], told: str, autojump_clock: Any, conserved: Any
) -> None:
    """By whatever way it comes; it is not accepted, and nothing has ended."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=9, workers=1, key=wrong) as queue:
        with pytest.raises(error, match=told):
            await queue.put(b"", delay=0.0)
        with pytest.raises(error, match=told):
            queue.put_nowait(b"", delay=0.0, id="a")
        with pytest.raises(error, match=told):
            await queue.hold(Message("b", b"", 0.0))
        fallback = Fallback(Throttles(), queue)
        with pytest.raises((KeyError, TypeError, Unspeakable)):
            await fallback.publish(b"", delay=0.0)
        assert conserved(queue).accepted == 0


class Throttles:
    """A primary that takes so many calls, and throttles the rest."""

    def __init__(self, takes: int = 0) -> None:
        self.takes = takes
        self.calls: list[str] = []

    async def __call__(self, message: Message, delay: float) -> None:
        self.calls.append(message.payload.decode())
        if len(self.calls) > self.takes:
            raise Throttled


@pytest.mark.parametrize("wrong", [5, "tenant", RecordingSender().__call__])
async def test_what_can_be_no_key_function_is_named(wrong: Any) -> None:
    """At the opening, an async function, too."""
    with pytest.raises(TypeError, match="key must be"):
        async with open_delay_queue(RecordingSender(), capacity=1, workers=1, key=wrong):
            pass


async def test_a_key_that_is_gone_when_the_message_is_due_ends_no_worker(
    autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Such messages share a key, they are sent on time, and one line says so."""
    known = True

    def fickle(message: Message) -> object:
        if not known:
            raise LookupError(message.payload)
        return [] if not known else key(message)

    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=9, workers=1, key=fickle) as queue:
        for number in range(3):
            queue.put_nowait(b"%d" % number, delay=1.0 + number)
        known = False
        await trio.sleep(5)
        assert list(queue.statistics().keys) == [None]
    assert sender.times == [1.0, 2.0, 3.0]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [
        "key must give a key of each message: those of which it gives none share one now (LookupError)"
    ]
    conserved(queue)


async def test_a_fallback_has_the_keys_of_its_queue(autojump_clock: Any, conserved: Any) -> None:
    """What its primary refuses of one key slows that key's due sends, which come first, and no other's."""
    sender = RecordingSender()
    primary = Throttles(takes=1)
    async with open_delay_queue(
        sender, capacity=99, workers=2, limit=RateLimit(1.0, burst=2), key=key
    ) as queue:
        fallback = Fallback(primary, queue)
        routes = [(await fallback.publish(name, delay=0.0)).route for name in (b"a0", b"a1", b"a2", b"b0")]
        assert routes == [Route.PRIMARY, Route.LOCAL, Route.LOCAL, Route.LOCAL]
        assert primary.calls == ["a0", "a1", "b0"]  # and not `a2`, whose limit was reached
        assert list(fallback.statistics().keys) == ["a", "b"]
        gate = fallback._router.gates.of(Message("x", b"a", 0.0))
        assert gate._limit is queue.core.keys.limits.of("a")  # type: ignore[union-attr]
        await trio.sleep(0.5)
        assert (await fallback.publish(b"a3", delay=60.0)).route is Route.LOCAL
        assert primary.calls[3:] == []  # `a2` waits for the next token, and comes first
        await trio.sleep(5)
    assert [(when, message.payload) for when, message in sender.sent] == [
        *[(0.0, b"b0"), (1.0, b"a1"), (2.0, b"a2"), (60.5, b"a3")]
    ]
    conserved(queue)


async def test_a_fallback_with_another_key_shares_nothing(autojump_clock: Any) -> None:
    """Nor does one with another limit; one that was given the very same of both does."""
    limit = AdaptiveLimit()
    other = lambda message: message.id  # noqa: E731
    async with open_delay_queue(RecordingSender(), capacity=9, workers=1, limit=limit, key=key) as queue:
        its_own = queue.core.keys.limits.of("a")  # type: ignore[union-attr]
        message = Message("a", b"a", 0.0)
        for options, shared in (
            ({}, True),
            ({"key": key}, True),
            ({"limit": limit}, True),
            ({"limit": limit, "key": key}, True),
            ({"key": other}, False),
            ({"limit": AdaptiveLimit()}, False),
            ({"limit": None}, False),
        ):
            gate = Fallback(Throttles(), queue, **options)._router.gates.of(message)  # type: ignore[arg-type]
            assert (gate._limit is its_own) is shared, options


async def test_metrics_are_of_all_keys_together(autojump_clock: Any) -> None:
    """However many keys there are, there are no more series; the rate is that of all that are limited."""
    registry = CollectorRegistry()
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=999, workers=1, limit=RateLimit(2.0), key=key) as queue:
        registry.register(Collector(queue))
        before = generate_latest(registry).count(b"\n")
        for number in range(50):
            queue.put_nowait(bytes([65 + number]), delay=0.0)
        await trio.sleep(1)
        after = generate_latest(registry)
    assert b"localdelay_limit_rate 100.0" in after
    assert after.count(b"\n") == before


@pytest.mark.parametrize("indexed", [False, True])
def test_what_stands_in_line_moves_with_the_wall_clock(indexed: bool) -> None:
    """And is in line again, or waits, as it is due then; it is counted once all the while."""
    schedule = Schedule(indexed=indexed)
    pending = Pending(schedule, Ledger(99, None))
    for number in range(6):
        at = 1e6 + number if number % 2 else None
        pending.ledger.reserve(1)
        pending.enter((float(number), number, (b"a", None, None, 1, 0, float(number), False, None, at)), 1)
    line, due = schedule.line("a"), schedule.due(3.0, 99)
    schedule.sort_out(due)
    for entry in due:
        line.stand(entry)
    assert schedule.near() == (6, 5.0)
    assert (len(line.slots), schedule.waiting, schedule.next_due(), len(schedule.entries())) == (4, 6, 0.0, 6)
    if indexed:
        assert pending.cancel(2)
    assert move_all(pending, partial(moved_entry, wall=1e6 - 50.0, now=3.0, before=1e6)) == 3
    left = [(number, due) for due, number, _ in schedule.entries()]
    assert left == [(0, 0.0), *([] if indexed else [(2, 2.0)]), (4, 4.0), (1, 54.0), (3, 56.0), (5, 58.0)]
    assert schedule.waiting == len(left)


async def test_tokens_that_come_back_go_to_the_limit_of_each_key(autojump_clock: Any) -> None:
    """Of what was given to threads or tasks, and has not begun, there may be several keys."""
    keys = Keys(key, RateLimit(1e-6, burst=2))
    valve = Valves(keys, None, Pace(None), None, Schedule(indexed=False))
    a, b = keys.limits.of("a"), keys.limits.of("b")
    assert isinstance(a, RateLimit)
    assert isinstance(b, RateLimit)
    assert a.try_acquire(2)
    assert b.try_acquire(2)
    valve.give_back([(0.0, number, name) for number, name in enumerate((b"a", b"b", b"a"))])
    assert (a.available, b.available) == (2.0, 1.0)


async def test_what_waits_for_its_hand_back_is_shown_in_due_order(autojump_clock: Any) -> None:
    """Whenever that may be: it is due when it was."""
    order: list[list[bytes]] = []

    async def hand_back(message: Message, remaining: float) -> None:
        await trio.lowlevel.checkpoint()

    limit = RateLimit(1.0, burst=1)
    async with open_delay_queue(Broker(), capacity=99, workers=1, limit=limit, key=key) as queue:
        for number in range(5):
            queue.put_nowait(b"a%d" % number, delay=90.0 - number)
        queue.put_nowait(b"b", delay=1.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.drain, 9.0, hand_back)
            for _ in range(3):
                await trio.sleep(0.3)
                order.append([message.payload for message in queue.messages()])
    assert order == [[b"b", b"a3", b"a2", b"a1", b"a0"]] * 3


async def test_a_queue_in_redis_has_no_keys() -> None:
    """It says so."""
    from localdelay.redis_plan import open_redis_delay_queue

    options: dict[str, Any] = {"key": key}
    with pytest.raises(TypeError, match="key is for a queue in memory"):
        async with open_redis_delay_queue(RecordingSender(), url="redis://x/q", workers=1, **options):
            pass


async def test_a_batch_that_waits_for_company_goes_at_once_when_the_queue_ends(autojump_clock: Any) -> None:
    """Nothing more can come."""
    batches: list[tuple[float, int]] = []

    async def send_batch(messages: Any) -> None:
        batches.append((trio.current_time(), len(messages)))

    batch = BatchPolicy(max_messages=9, max_wait=5.0)
    async with open_delay_queue(send_batch=send_batch, batch=batch, capacity=9, workers=1, key=key) as queue:
        for name in (b"a0", b"a1", b"b0"):
            queue.put_nowait(name, delay=1.0)
        await trio.sleep(2.0)
    assert batches == [(2.0, 2), (2.0, 1)]


async def test_what_ends_the_queue_out_of_a_key_function_loses_nothing(autojump_clock: Any) -> None:
    """All that was due is still there to be looked at: it was in the order until the keys were known."""
    asked: list[bytes] = []

    def leaving(message: Message) -> str:
        asked.append(message.payload)
        if len(asked) == 9:
            raise SystemExit
        return "a"

    with pytest.raises(SystemExit):
        async with open_delay_queue(RecordingSender(), capacity=9, workers=1, key=leaving) as queue:
            for _ in range(6):
                queue.put_nowait(b"", delay=1.0)
            await trio.sleep(2)
    assert len(queue.messages()) == queue.statistics().pending == 6
