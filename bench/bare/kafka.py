"""confluent-kafka alone: one idempotent producer, acks=all, polled by the thread that produces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, Producer

from bench.bare import Sent, batch_of, in_tasks, on_asyncio


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. A batch is so many calls of `produce`: librdkafka itself puts together what it has."""
    producer, topic = _connected(url, payload)
    times: list[float] = []
    under_way = 0

    def ended() -> None:
        nonlocal under_way
        under_way -= 1

    def done(confirmed: Callable[[], None], error: KafkaError | None, _: object) -> None:
        assert error is None, error
        confirmed()

    begun = time.perf_counter()
    for _ in range(count // batch):
        while under_way >= at_once:
            producer.poll(1)
        under_way += 1
        report = partial(done, batch_of(batch, times, ended))
        for _ in range(batch):
            producer.produce(topic, payload, on_delivery=report)
        producer.poll(0)
    while under_way:
        producer.poll(1)
    return Sent(time.perf_counter() - begun, times)


@on_asyncio
async def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """As in confluent-kafka's own example: a thread polls, and hands each report to asyncio."""
    producer, topic = _connected(url, payload)
    loop = asyncio.get_running_loop()
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            producer.poll(0.1)

    def publish() -> asyncio.Future[None]:
        confirmed: asyncio.Future[None] = loop.create_future()

        def done(error: KafkaError | None, _: object) -> None:
            assert error is None, error
            loop.call_soon_threadsafe(confirmed.set_result, None)

        producer.produce(topic, payload, on_delivery=done)
        return confirmed

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        return await in_tasks(publish, count=count, at_once=at_once, batch=batch)
    finally:
        ended.set()
        thread.join()


def _connected(url: str, payload: bytes) -> tuple[Producer, str]:
    where = urlsplit(url)
    topic = where.path[1:]
    producer = Producer(
        {
            "bootstrap.servers": where.netloc,
            "acks": "all",
            "enable.idempotence": True,
            # The best of what was tried: more gathers more, but waits for whole milliseconds.
            "linger.ms": 0,
            "socket.nagle.disable": True,
        }
    )
    # The first waits for the connections and the producer's id.
    producer.produce(topic, payload)
    assert producer.flush(10) == 0
    return producer, topic
