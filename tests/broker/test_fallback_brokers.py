"""The degrade path on real brokers: each throttles for real, is spared, recovers, and takes messages back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import trio

from localdelay import BreakerState, Fallback, Message, RetryPolicy, Route, Throttled, open_delay_queue
from localdelay.brokers import Broker, open_broker
from localdelay.listening import Event, LimitBegan, LimitEnded
from tests.kit.servers.process import Received, Server

COUNT = 200
DELAY = 6.0
RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5)


class Heard:
    def __init__(self) -> None:
        self.changes: list[type[Event]] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, LimitBegan | LimitEnded):
            self.changes.append(type(event))


def at_once(broker: Broker) -> Callable[[Message, float], Awaitable[None]]:
    """A delayed publish of a broker without a delay: into a topic that somebody reads when it is due."""

    async def publish_delayed(message: Message, delay: float) -> None:
        await broker.send(message)

    return publish_delayed


async def until(done: Callable[[], object]) -> None:
    while not done():  # noqa: ASYNC110 (time passes on the server)
        await trio.sleep(0.02)


async def storm(
    broker: Broker,
    publish_delayed: Callable[[Message, float], Awaitable[object]],
    throttled: Callable[[], AbstractContextManager[None]],
    conserved: Any,
) -> int:
    """Publish through a broker that throttles, until it has taken messages back and takes publishes again.

    Returns how many publishes it took after the storm.
    """
    afters = 1
    heard = Heard()
    with trio.fail_after(200):
        async with open_delay_queue(broker.send, capacity=COUNT, workers=20, retry=RETRY) as queue:
            fallback = Fallback(publish_delayed, queue, hand_back=True, hand_back_after=0.5, listener=heard)
            limit = throttled()
            await trio.to_thread.run_sync(limit.__enter__)
            try:
                for number in range(COUNT):
                    await fallback.publish(b"m%d" % number, delay=DELAY)
                storming = fallback.statistics()
                assert storming.limit_rate is not None
                assert storming.breaker is BreakerState.CLOSED
                assert storming.local + storming.primary == COUNT
                assert storming.local >= COUNT - 20
                assert storming.calls_saved >= COUNT // 2
                assert conserved(queue).pending == storming.local
            finally:
                await trio.to_thread.run_sync(limit.__exit__, None, None, None)
            await until(lambda: not conserved(queue).pending or conserved(queue).sent)
            assert fallback.statistics().handed_back > 0
            await until(lambda: not conserved(queue).pending)
            while (await fallback.publish(b"after", delay=0.5)).route is not Route.PRIMARY:
                afters += 1
                await trio.sleep(0.1)  # the limit goes by the real clock
    assert heard.changes[0] is LimitBegan
    statistics = conserved(queue)
    assert statistics.pending == statistics.dead == 0
    assert statistics.handed_back == fallback.statistics().handed_back
    assert statistics.sent + statistics.handed_back + fallback.statistics().primary == COUNT + afters
    return afters


async def each_once(server: Server, url: str, afters: int) -> None:
    received: list[Received] = await trio.to_thread.run_sync(lambda: server.read(url, COUNT + afters))
    payloads = Counter(one.payload for one in received)
    assert payloads == Counter({b"after": afters} | {b"m%d" % number: 1 for number in range(COUNT)})


async def test_rabbitmq_with_full_delay_queues(start_server: Callable[[str], Server], conserved: Any) -> None:
    """max-length and reject-publish on the queues that delay: nacks."""
    server: Any = start_server("amqp")
    url = server.fresh()
    delay_queues = rf"localdelay[.]{urlsplit(url).path[1:]}[.].*"

    def throttled() -> AbstractContextManager[None]:
        full: AbstractContextManager[None] = server.policy(
            delay_queues, {"max-length": 0, "overflow": "reject-publish"}
        )
        return full

    async with open_broker(url) as broker:
        afters = await storm(broker, broker.publish_delayed, throttled, conserved)
    await each_once(server, url, afters)


async def test_nats_with_a_full_stream(start_server: Callable[[str], Server], conserved: Any) -> None:
    """The stream takes no more: 503. A consumer reads when it is due, for such a stream has no schedules."""
    server = start_server("nats")
    url = server.fresh()
    async with open_broker(url) as broker:
        afters = await storm(broker, at_once(broker), lambda: server.throttled(url), conserved)
    await each_once(server, url, afters)


async def test_nats_with_a_full_buffer(conserved: Any) -> None:
    """max_buffered_msgs: bursts are answered with 429, and scheduled messages come back."""
    from tests.kit.servers.nats import NatsServer

    server = NatsServer(jetstream="max_buffered_msgs: 20")
    try:
        await trio.to_thread.run_sync(server.start)
        url = server.fresh()
        refused = 0
        async with open_broker(url) as broker:
            with trio.fail_after(200):
                async with open_delay_queue(broker.send, capacity=5000, workers=10, retry=RETRY) as queue:
                    fallback = Fallback(broker.publish_delayed, queue, hand_back=True, hand_back_after=0.5)

                    async def publish(number: int) -> None:
                        nonlocal refused
                        receipt = await fallback.publish(b"m%d" % number, delay=DELAY)
                        refused += isinstance(receipt.reason, Throttled)

                    for burst in range(0, 2000, 500):
                        async with trio.open_nursery() as nursery:
                            for number in range(burst, burst + 500):
                                nursery.start_soon(publish, number)
                    await until(lambda: conserved(queue).handed_back >= min(refused, 50))
        assert refused
        received = await trio.to_thread.run_sync(lambda: server.read(url, 2000))
        assert Counter(one.payload for one in received) == Counter(b"m%d" % n for n in range(2000))
    finally:
        await trio.to_thread.run_sync(server.stop)


async def test_kafka_mock_that_refuses(start_server: Callable[[str], Server], conserved: Any) -> None:
    """THROTTLING_QUOTA_EXCEEDED: what a real broker does at a quota is in `test_kafka.py`."""
    server = start_server("kafka_mock_cluster")
    url = server.fresh()
    async with open_broker(url) as broker:
        afters = await storm(broker, at_once(broker), lambda: server.throttled(url), conserved)
    await each_once(server, url, afters)


async def test_beanstalkd_that_drains(start_server: Callable[[str], Server], conserved: Any) -> None:
    """Draining until it is started again."""
    server = start_server("beanstalkd")
    url = server.fresh()
    async with open_broker(url) as broker:
        afters = await storm(broker, broker.publish_delayed, lambda: server.throttled(url), conserved)
    await each_once(server, url, afters)
