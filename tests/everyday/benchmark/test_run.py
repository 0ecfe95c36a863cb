"""The benchmark's run: on the virtual clock, with brokers that are made for it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, repeat
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.benchmark import run as runs
from localdelay.benchmark.load import Delays, number_in
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.result import BenchError, Distribution, Result, Settings, held_up_to
from localdelay.benchmark.round import Round
from localdelay.benchmark.run import Run, check
from localdelay.brokers import Broker
from localdelay.cli.bench import report
from localdelay.cli.output import laid_out
from localdelay.lateness import Latencies, LatencyRecorder, LatencySummary
from localdelay.signals import Stopped


def ignore(_: Round, __: Meter) -> None:
    """See nothing of how far it is."""


class OneByOne:
    """A broker whose sends take some seconds and fail as they are told to."""

    def __init__(self, seconds: float = 0.0, fail: Callable[[int], Exception | None] | None = None) -> None:
        self.seconds = seconds
        self.fail = fail or (lambda _: None)
        self.calls = 0
        self.got: list[tuple[float, Message]] = []

    async def send(self, message: Message) -> None:
        self.calls += 1
        began = trio.current_time()
        error = self.fail(self.calls)
        if error is not None:
            raise error
        await trio.sleep(self.seconds)
        self.got.append((began, message))


class InBatches(OneByOne):
    """One that takes batches, too."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    async def send_batch(self, messages: Sequence[Message]) -> None:
        self.batches.append([number_in(message.payload) for message in messages])
        await trio.sleep(0.1)
        if len(self.batches) == 2:
            raise PartialSendError({messages[-1].id: ConnectionError("not this one")})


def settings_of(rate: float = 10.0, delay: float = 0.0, **more: object) -> Settings:
    options = {"seconds": 2.0, "warmup": 0.0, "size": 8, **more}
    return Settings(rate=(rate, rate), delays=Delays((delay,)), **options)  # type: ignore[arg-type]


async def run(settings: Settings, broker: Broker | None = None) -> Result:
    one = Run(settings, ignore, broker)
    await one.go()
    return one.result()


async def test_an_exact_run(autojump_clock: trio.testing.MockClock) -> None:
    """On a clock that never lags everything is put, sent and recorded once, and nothing is late."""
    result = await run(settings_of(100.0, 1.5, seconds=3.0, size=500))
    assert (result.offered, result.put, result.sent, result.unsent) == (300, 300, 300, 0)
    assert (result.refused, result.dead, result.early, result.failures) == (0, 0, 0, 0)
    assert result.latency.count == result.queue_lateness.count == result.put_lateness.count == 300
    assert result.latency.max == pytest.approx(0.0, abs=1e-6)
    assert (result.held, result.stopped_by, result.failure) == (True, None, None)
    assert result.peak_pending == pytest.approx(150, abs=1)
    assert [interval.count for interval in result.intervals] == [100, 100, 100]
    assert result.seconds == pytest.approx(4.49, abs=0.02)
    assert result.measured_seconds == pytest.approx(2.99, abs=0.02)
    assert result.send_time.count == 0


async def test_a_slow_broker_is_not_forgiven(autojump_clock: trio.testing.MockClock) -> None:
    """Sends of 1.5 s at 1 message/s: each is half a second later than the one before, by its own time."""
    broker = OneByOne(1.5)
    result = await run(settings_of(1.0, seconds=4.0, workers=1), broker)
    together = Latencies.together(result.intervals)
    assert [round(seconds, 2) for seconds, _ in together.steps()] == [0, 0.5, 1, 1.5]
    assert result.send_time.count == 4
    assert result.send_time.max == pytest.approx(1.5)
    assert result.held is False
    assert len({message.payload for _, message in broker.got}) == 4


async def test_a_blocked_loop_counts_too(mock_clock: trio.testing.MockClock) -> None:
    """A send that blocks for a second makes the puts late, and what was put late is late, not on time."""
    mock_clock.autojump_threshold = 0

    def block(call: int) -> None:
        if call == 1:
            mock_clock.jump(1.0)

    result = await run(settings_of(10.0, 0.5, seconds=2.0), OneByOne(fail=block))
    assert result.put_lateness.max == pytest.approx(0.9, abs=0.11)
    assert result.latency.max == pytest.approx(1.0, abs=0.11)
    assert result.latency.max >= result.queue_lateness.max
    assert result.sent == 20


async def test_mixed_delays_are_each_met(autojump_clock: trio.testing.MockClock) -> None:
    """Each message waits for the delay that its number says, and nothing is late."""
    settings = Settings(
        rate=(50.0, 150.0), seconds=2.0, delays=Delays((0.1, 3.0), is_range=True), warmup=0.0, seed=11
    )
    broker = OneByOne()
    result = await run(settings, broker)
    assert result.latency.count == result.sent == 200
    assert result.latency.max == pytest.approx(0.0, abs=1e-6)
    assert (result.held, result.held_up_to) == (True, 150.0)
    table = settings.delays.table(11)
    start = min(when - table[number_in(message.payload)] for when, message in broker.got)
    for when, message in broker.got:
        number = number_in(message.payload)
        assert when == pytest.approx(start + settings.pace.offset(number) + table[number], abs=1e-6)


async def test_the_warm_up_is_sent_and_not_recorded(autojump_clock: trio.testing.MockClock) -> None:
    """Its messages reach the broker before the others, and are in none of the figures."""
    broker = OneByOne()
    result = await run(settings_of(10.0, 1.0, warmup=3.0), broker)
    assert len(broker.got) == 50
    assert (result.offered, result.sent, result.latency.count, result.queue_lateness.count) == (20,) * 4
    assert result.seconds == pytest.approx(2.9, abs=0.02)


async def test_batches_go_to_the_brokers_send_batch(autojump_clock: trio.testing.MockClock) -> None:
    """At most so many messages a send; what failed of one is sent again, and recorded once."""
    broker = InBatches()
    result = await run(settings_of(200.0, seconds=1.0, batch=30, workers=1), broker)
    assert max(map(len, broker.batches)) in range(15, 31)
    assert sum(map(len, broker.batches)) == 201
    assert (result.sent, result.failures, result.latency.count) == (200, 1, 200)
    assert result.failure == "ConnectionError: not this one"


async def test_a_broker_that_hangs_ends_the_run(autojump_clock: trio.testing.MockClock) -> None:
    """What is not sent in good time is unsent; the queue is bounded, and refuses the rest."""
    result = await run(settings_of(10.0, 1.0, seconds=60.0, workers=2), OneByOne(1e6))
    assert (result.sent, result.held) == (0, False)
    assert result.put == result.unsent == result.settings.capacity(None) == 112
    assert result.refused == 600 - 112


async def test_it_can_be_stopped(autojump_clock: trio.testing.MockClock) -> None:
    """A signal ends it at once, with what was recorded until then."""
    one = Run(settings_of(10.0, 1.0, seconds=60.0), ignore, OneByOne())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.go)
        await trio.sleep(3.05)
        one.stop(signal.SIGTERM)
        one.stop(signal.SIGINT)
    result = one.result()
    assert (result.stopped_by, result.held) == (signal.SIGTERM, None)
    assert (result.put, result.sent, result.unsent) == (31, 21, 10)
    assert result.latency.count == 21
    assert result.seconds == pytest.approx(3.05)


@pytest.mark.parametrize("after", [0.0, 1.0, 2.5])
async def test_stopped_before_anything_was_due(after: float, autojump_clock: trio.testing.MockClock) -> None:
    """In the warm-up, or before the first message is due, there is nothing to report."""
    one = Run(settings_of(10.0, 1.0, warmup=2.0), ignore, OneByOne())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.go)
        await trio.sleep(after)
        one.stop(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        one.result()
    assert stopped.value.signum == signal.SIGINT


async def test_progress_is_shown_as_it_goes(autojump_clock: trio.testing.MockClock) -> None:
    """Several times a second: the time, the counts, and the p99 once a second is over."""
    elapsed: list[float] = []
    sent = 0

    def watch(one: Round, meter: Meter) -> None:
        nonlocal sent
        elapsed.append(one.elapsed)
        sent = meter.sent
        assert one.pending == one.put - sent
        if not 1.95 < one.elapsed < 2.15:
            assert (meter.p99 is None) == (one.elapsed < 2)

    await Run(settings_of(10.0, 1.0, seconds=3.0, warmup=1.0), watch, OneByOne()).go()
    assert len(elapsed) == pytest.approx(39, abs=1)
    assert elapsed[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert sent == pytest.approx(29, abs=1)


async def test_failed_sends_are_counted_and_named(autojump_clock: trio.testing.MockClock) -> None:
    """What is retried is recorded once; what is given up is not held; the last error is what is told."""
    errors = {2: PermanentSendError("no"), 3: ConnectionError("lost"), 9: Throttled("429", retry_after=0.2)}
    broker = OneByOne(fail=errors.get)
    result = await run(settings_of(), broker)
    assert (result.sent, result.dead, result.latency.count, broker.calls) == (19, 1, 20, 22)
    assert (result.failures, result.throttled, result.failure) == (3, 1, "Throttled: 429")
    assert result.latency.max == pytest.approx(0.0, abs=1e-6)
    assert result.held is False


async def test_a_run_that_can_not_go_on_ends_soon(mock_clock: trio.testing.MockClock) -> None:
    """Three seconds of nothing but errors are enough, and so is a load that falls behind for good."""
    mock_clock.autojump_threshold = 0
    began = trio.current_time()
    broker = OneByOne(fail=lambda _: ConnectionError("no stream"))
    with pytest.raises(BenchError, match="no send succeeds: ConnectionError: no stream"):
        await run(settings_of(seconds=600.0, warmup=2.0), broker)
    assert trio.current_time() - began < 6
    slow = OneByOne(fail=lambda _: mock_clock.jump(0.5))
    result = await run(settings_of(10_000.0, seconds=4.0), slow)
    assert (result.put < result.offered, result.held) == (True, False)


async def test_memory_is_told_where_many_wait(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The growth at the peak is shared by those that wait then; not where few do, or the warm-up was full."""
    monkeypatch.setattr(runs, "_FEW_PENDING", 1_500)
    grown: Iterator[int | None] = iter(())
    monkeypatch.setattr(runs, "resident_bytes", lambda: next(grown))

    async def told(load: Settings, sizes: Iterable[int | None], broker: Broker | None = None) -> float | None:
        nonlocal grown
        grown = iter(sizes)
        return (await run(load, broker)).resident_bytes_per_pending

    many = settings_of(4_000.0, 2.0, seconds=1.0)
    assert await told(many, chain([1_000_000], repeat(9_000_000))) == pytest.approx(2_000, rel=0.11)
    assert await told(many, repeat(None)) is None
    assert await told(settings_of(100.0, 1.0), repeat(1_000_000)) is None
    full = settings_of(4_000.0, 1.0, seconds=0.5, warmup=0.5, workers=1)
    assert await told(full, count(0, 10**6), OneByOne(0.005)) is None


def test_what_can_not_be_run_here_is_refused() -> None:
    """A load that needs more memory than there is does not begin, and neither does one to nowhere."""
    with pytest.raises(ValueError, match=r"delay is too long for this rate and size: 8,640,000,000 messages"):
        check(Settings(rate=(1e5, 1e5), seconds=86_400.0, delays=Delays((86_400.0,))))
    with pytest.raises(ValueError, match="to must begin with one of"):
        check(Settings(to="mqtt://here/topic"))
    for wrong in ({"rate": (math.nan, 1.0)}, {"seconds": math.inf}, {"size": 10**9}, {"batch": 10**7}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            Settings(**wrong)  # type: ignore[arg-type]


def test_capacity_has_room_for_what_waits_and_for_a_backlog() -> None:
    """The highest rate for the longest delay and ten seconds more, the whole load at most, and the memory."""
    settings = Settings(rate=(10.0, 100.0), seconds=1_000.0, delays=Delays((1.0, 5.0)), size=800)
    assert (settings.expected_pending, settings.expected_bytes) == (501, 501_000)
    assert [settings.capacity(there) for there in (None, 10**12, 1_000_000)] == [1_502, 1_502, 750]
    assert Settings(rate=(10.0, 10.0), seconds=3.0).capacity(None) == 30


def latencies(*seconds: float) -> Latencies:
    recorder = LatencyRecorder()
    for value in seconds:
        recorder.record(value)
    return recorder.take()


def test_a_distribution_of_what_was_recorded() -> None:
    """Count, percentiles to p99.99 and the maximum; of nothing, None and no zeros."""
    found = Distribution.of(latencies(*[0.001] * 9_999, 0.5))
    assert found == Distribution(10_000, 0.001, 0.001, 0.001, 0.001, 0.001, 0.5)
    assert Distribution.of(Latencies()) == Distribution.of_summary(LatencySummary()) == Distribution(0)
    summary = LatencySummary(3, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert Distribution.of_summary(summary) == Distribution(3, 0.1, 0.2, 0.3, 0.4, None, 0.5)


def test_how_far_a_ramp_was_held() -> None:
    """Up to the end of the last second before the first with a p99 of 10 ms; for an even load, None."""
    fine, bad = latencies(0.001), latencies(0.02)
    ramp = Settings(rate=(0.5, 100.5), seconds=10.0)
    assert held_up_to(ramp, [fine] * 10) == 100.5
    assert held_up_to(ramp, [fine, fine, Latencies(), bad, fine]) == 30.5
    assert held_up_to(ramp, [bad, fine]) == 0.0
    assert held_up_to(Settings(), [fine]) is None


async def test_the_report_says_why_a_rate_was_not_held(autojump_clock: trio.testing.MockClock) -> None:
    """Too late, not sent, early, failed, given up: each has its words, at most 80 columns wide."""
    url = "nats://user:hunter2@a-rather-long-host-name.example.org:4222/orders.due"
    fine = attrs.evolve(await run(settings_of()), resident_bytes_per_pending=612.4)
    late = Distribution(1_000, *[0.1] * 6)
    changes: list[tuple[dict[str, Any], str]] = [
        ({}, "Held: p99 is under 10 ms, and all was put and sent in time."),
        ({}, "Memory 612 bytes a pending message, payload included"),
        ({"resident_bytes_per_pending": None, "cpu_us_per_message": None}, "Too few messages to tell"),
        ({"cpu_us_per_message": None}, "Memory 612 bytes"),
        ({"held": False, "latency": late}, "Not held: p99 is not under 10 ms."),
        ({"held": False, "put_lateness": late}, "The puts were late themselves"),
        ({"held": False, "sent": 19}, "Not held: 1 messages were not sent in time."),
        ({"held": False, "early": 1}, "sends began early, which must not happen"),
        ({"held": False, "held_up_to": 63_210.0}, "Held up to about 63,000 messages/s."),
        ({"refused": 40, "unsent": 60}, "60 unsent, 0 early, 40 refused by a full queue"),
        ({"dead": 5, "failures": 7, "throttled": 3}, "5 given up, 7 failed sends (3 throttled)"),
        ({"failure": "ConnectionError: lost"}, "The last failed send: ConnectionError: lost"),
        ({"send_time": late}, "send time"),
        ({"failure": "x" * 999, "settings": Settings(to=url, delays=Delays((0.1, 86_400.0)))}, "nats://***@"),
    ]
    for change, words in changes:
        printed = list(
            laid_out(report(attrs.evolve(fine, **change), [("a name too long for its column", late)]))
        )
        assert words in " ".join(printed).replace("  ", " ")
        assert max(map(len, printed)) <= 80
        assert "hunter2" not in str(printed)
