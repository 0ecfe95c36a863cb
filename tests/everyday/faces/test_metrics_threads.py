"""Scrapes from other threads than the queue's, on the real clock: while it runs, hangs and has ended."""

from __future__ import annotations

import asyncio
import re
import threading
import urllib.request

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse_text

import localdelay
from localdelay import Message, Throttled, aio, threads
from localdelay.metrics import Collector, serve
from tests.kit.scraping import (
    QUEUE_LABELS,
    Primary,
    Samples,
    conserved,
    expected_of_fallback,
    expected_of_queue,
    on_trio,
    registry_of,
    samples_of,
    scrape,
    send,
    value,
)


def test_a_trio_queue_is_scraped_from_other_threads() -> None:
    """Over HTTP too, while its loop runs; and its last values stay readable when the loop has ended."""
    with on_trio() as (collector, stop):
        registry = registry_of(collector)
        with serve(collector, port=0) as port:
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=20) as response:
                served = samples_of(parse_text(response.read().decode()))
            with pytest.raises(OSError, match="in use"), serve(collector, port=port):
                pass
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=20)
        for samples in (served, scrape(registry)):
            conserved(samples, **QUEUE_LABELS)
            assert value(samples, "localdelay_up", **QUEUE_LABELS) == 1
            assert value(samples, "localdelay_closed", **QUEUE_LABELS) == 0
            assert value(samples, "localdelay_accepted_messages_total", **QUEUE_LABELS) == 1
            route = {**QUEUE_LABELS, "route": "primary"}
            assert value(samples, "localdelay_fallback_published_messages_total", **route) == 1
        stop()
        samples = scrape(registry)
        lasting = {key for key in samples if key[0] != "localdelay_breaker_state_seconds"}
        again = scrape(registry)
        assert all(again[key] == samples[key] for key in lasting)
    conserved(samples, **QUEUE_LABELS)
    assert value(samples, "localdelay_up", **QUEUE_LABELS) == 1
    assert value(samples, "localdelay_closed", **QUEUE_LABELS) == 1
    assert value(samples, "localdelay_sent_messages_total", **QUEUE_LABELS) == 1


def test_many_threads_may_scrape_at_once() -> None:
    """While a queue is in use: every scrape is of one instant."""
    scraped: list[Samples] = []

    def scrape_often(registry: CollectorRegistry) -> None:
        scraped.extend(scrape(registry) for _ in range(10))

    with threads.open_delay_queue(lambda message: None, capacity=10_000, workers=4) as queue:
        registry = registry_of(Collector(queue, timeout=1e10))  # more than a thread can wait
        scrapers = [threading.Thread(target=scrape_often, args=[registry], daemon=True) for _ in range(4)]
        for thread in scrapers:
            thread.start()
        for number in range(3000):
            queue.put(b"x", delay=number % 7 / 1000)
        for thread in scrapers:
            thread.join(60)
    assert len(scraped) == 40
    for samples in scraped:
        conserved(samples)
        assert value(samples, "localdelay_up") == 1
    assert value(scrape(registry), "localdelay_sent_messages_total") == 3000


def test_a_queue_of_threads_and_its_fallback() -> None:
    """The values are those of `statistics()`, while it runs and when it was left."""
    primary = Primary()
    with threads.open_delay_queue(lambda message: None, capacity=10, workers=2) as queue:
        fallback = threads.Fallback(primary.blocking, queue, breaker=None)
        registry = registry_of(Collector(queue, fallback, labels=QUEUE_LABELS, timeout=20.0))
        fallback.publish(b"1", delay=0.0)
        primary.error = Throttled
        fallback.publish(b"2", delay=0.0)
        samples = scrape(registry)
        assert value(samples, "localdelay_accepted_messages_total", **QUEUE_LABELS) == 1
        conserved(samples, **QUEUE_LABELS)
    samples = scrape(registry)
    expected = expected_of_queue(queue.statistics(), QUEUE_LABELS)
    expected |= expected_of_fallback(fallback.statistics(), QUEUE_LABELS)
    since = ("localdelay_breaker_state_seconds", frozenset(QUEUE_LABELS.items()))
    assert 0 <= samples.pop(since) <= expected.pop(since)
    assert samples == expected
    assert samples["localdelay_sent_messages_total", frozenset(QUEUE_LABELS.items())] == 1


def test_a_scrape_on_the_queue_s_own_loop() -> None:
    """An async send that scrapes is answered, and does not wait for itself."""
    found: list[float] = []
    registry = CollectorRegistry()

    async def look(message: Message) -> None:
        found.append(value(scrape(registry), "localdelay_sending_messages"))

    with threads.open_delay_queue(look, capacity=10, workers=2) as queue:
        registry.register(Collector(queue, timeout=3600.0))
        queue.put(b"", delay=0.0)
    assert found == [1.0]


def test_a_queue_of_asyncio_and_its_fallback() -> None:
    """On the loop and off it, while it runs and when it was left."""

    async def send_nothing(message: Message) -> None:
        pass

    async def main() -> None:
        primary = Primary()
        async with aio.open_delay_queue(send_nothing, capacity=10, workers=2) as queue:
            fallback = aio.Fallback(primary, queue)
            registry = registry_of(Collector(queue, fallback, timeout=20.0))
            await fallback.publish(b"1", delay=1.0)
            primary.error = Throttled
            await fallback.publish(b"2", delay=0.0)
            for samples in (scrape(registry), await asyncio.to_thread(scrape, registry)):
                conserved(samples)
                assert value(samples, "localdelay_up") == 1
                assert value(samples, "localdelay_accepted_messages_total") == 1
                reason = value(samples, "localdelay_fallback_degraded_messages_total", reason="throttled")
                assert reason == 1
        samples = scrape(registry)
        for key, number in expected_of_queue(await queue.statistics(), {}).items():
            assert samples[key] == number
        assert value(samples, "localdelay_fallback_published_messages_total", route="local") == 1

    asyncio.run(main())


def test_a_loop_that_hangs_is_not_waited_for() -> None:
    """It is reported as not up, by no other figure, and beside a queue that answers; until it goes on."""
    go_on = threading.Event()
    entered = threading.Event()

    async def hang(message: Message) -> None:
        entered.set()
        go_on.wait(20)

    with (
        threads.open_delay_queue(hang, capacity=10, workers=1) as stuck,
        threads.open_delay_queue(lambda message: None, capacity=10, workers=1) as fine,
    ):
        fallback = threads.Fallback(Primary().blocking, stuck)
        collector = Collector(stuck, fallback, labels={"queue": "stuck"}, timeout=0.2)
        collector.add(fine, labels={"queue": "fine"})
        registry = registry_of(collector)
        stuck.put(b"", delay=0.0)
        assert entered.wait(20)
        begun: list[object] = []
        begin = stuck.remote.begin
        stuck.remote.begin = lambda act: begun.append(act) or begin(act)  # type: ignore[func-returns-value,method-assign]  # counted
        for _ in range(3):
            samples = scrape(registry)
            assert value(samples, "localdelay_up", queue="stuck") == 0
            of_stuck = {name for name, labels in samples if ("queue", "stuck") in labels}
            assert of_stuck
            assert all(re.match("localdelay_(up|fallback_|breaker_)", name) for name in of_stuck)
            assert value(samples, "localdelay_up", queue="fine") == 1
            conserved(samples, queue="fine")
        assert len(begun) <= 1  # scrapes that nobody answers do not pile up
        go_on.set()
        stuck.statistics()
        assert value(scrape(registry), "localdelay_up", queue="stuck") == 1


def test_a_trio_loop_that_hangs_is_not_waited_for() -> None:
    """As with a queue in a thread of its own; its fallback, which has the loop's clock, is silent too."""
    go_on = threading.Event()
    with on_trio(go_on) as (collector, _):
        collector._timeout = 0.2
        registry = registry_of(collector)
        assert value(scrape(registry), "localdelay_up", **QUEUE_LABELS) == 0
        go_on.set()
        collector._timeout = 20.0
        assert value(scrape(registry), "localdelay_up", **QUEUE_LABELS) == 1


def test_a_loop_that_ended_without_its_queue() -> None:
    """A queue that has no clock any more is not up, and no error of the scrape."""
    made: list[Collector] = []

    async def main() -> None:
        async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:
            made.append(Collector(queue))
        queue._ended_at = None  # as if its block had not been left

    trio.run(main)
    for samples in (scrape(registry_of(made[0])), scrape(registry_of(made[0]))):
        assert samples == {("localdelay_up", frozenset()): 0.0}
