"""The official client alone: one producer, `send_async`, as many under way as asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from bench.bare import Sent, batch_of, in_tasks, on_asyncio
from localdelay.brokers.rocketmq_client import client


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. It has no batches: one is so many calls."""
    producer, message = _connected(url, payload)
    room = threading.Semaphore(at_once)
    times: list[float] = []

    def done(confirmed: Callable[[], None], future: Future[Any]) -> None:
        future.result()
        confirmed()

    begun = time.perf_counter()
    for _ in range(count // batch):
        room.acquire()
        report = partial(done, batch_of(batch, times, room.release))
        for _ in range(batch):
            producer.send_async(message()).add_done_callback(report)
    for _ in range(at_once):
        room.acquire()
    seconds = time.perf_counter() - begun
    producer.shutdown()
    return Sent(seconds, times)


@on_asyncio
async def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """The same on asyncio, which waits for the client's futures."""
    producer, message = _connected(url, payload)

    async def publish() -> None:
        await asyncio.wrap_future(producer.send_async(message()))

    sent = await in_tasks(publish, count=count, at_once=at_once, batch=batch)
    producer.shutdown()
    return sent


def _connected(url: str, payload: bytes) -> tuple[Any, Callable[[], Any]]:
    where = urlsplit(url)
    configuration = client.ClientConfiguration(where.netloc, client.Credentials())
    producer = client.Producer(configuration, (where.path[1:],))
    producer.startup()

    def message() -> Any:
        made = client.Message()
        made.topic, made.body = where.path[1:], payload
        return made

    producer.send(message())  # the first waits for the connection
    return producer, message
