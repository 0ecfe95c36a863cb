"""pika alone: one connection, publisher confirms, mandatory, persistent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from bench.bare import Sent, batch_of, in_tasks, on_asyncio


class _Confirms:
    """A connection of this kind, on which something is called when a message is confirmed."""

    def __init__(
        self,
        kind: type[Any],
        url: str,
        payload: bytes,
        ready: Callable[[], object],
        closed: Callable[..., object],
    ) -> None:
        parts = urlsplit(url)
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        credentials = pika.PlainCredentials(user, password)
        self._queue = unquote(parts.path[1:])
        self._payload = payload
        self._ready = ready
        self._tag = self._confirmed = 0
        self._under_way: dict[int, Callable[[], object]] = {}
        self.connection = kind(
            pika.ConnectionParameters(parts.hostname, parts.port or 5672, credentials=credentials),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_close_callback=closed,
        )

    def publish(self, confirmed: Callable[[], object]) -> None:
        self._tag += 1
        self._under_way[self._tag] = confirmed
        properties = pika.BasicProperties(delivery_mode=2, message_id=str(self._tag))
        self._channel.basic_publish("", self._queue, self._payload, properties, mandatory=True)

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._ready())

    def _on_confirm(self, confirm: frame.Method) -> None:
        method = confirm.method
        assert isinstance(method, spec.Basic.Ack), "refused"
        last: int = method.delivery_tag
        for tag in range(self._confirmed + 1, last + 1) if method.multiple else (last,):
            if (confirmed := self._under_way.pop(tag, None)) is not None:
                confirmed()
        if method.multiple:
            self._confirmed = last


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. AMQP has no batches: one is so many publishes without waiting, and all their confirms."""
    times: list[float] = []
    turns = iter(range(count // batch))
    begun = ended = 0.0

    def publish() -> None:
        nonlocal ended
        if next(turns, None) is not None:
            confirmed = batch_of(batch, times, publish)
            for _ in range(batch):
                confirms.publish(confirmed)
        elif len(times) == count // batch:
            ended = time.perf_counter()
            confirms.connection.close()

    def begin() -> None:
        nonlocal begun
        begun = time.perf_counter()
        for _ in range(min(at_once, count // batch)):
            publish()

    def closed(connection: Any, _: object) -> None:
        connection.ioloop.stop()

    confirms = _Confirms(pika.SelectConnection, url, payload, begin, closed)
    confirms.connection.ioloop.start()
    return Sent(ended - begun, times)


@on_asyncio
async def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """An AsyncioConnection of pika's, with a future for each message."""
    ready, closed = asyncio.Event(), asyncio.Event()
    confirms = _Confirms(AsyncioConnection, url, payload, ready.set, lambda *_: closed.set())
    await ready.wait()
    loop = asyncio.get_running_loop()

    def publish() -> asyncio.Future[None]:
        confirmed: asyncio.Future[None] = loop.create_future()
        confirms.publish(lambda: confirmed.set_result(None))
        return confirmed

    sent = await in_tasks(publish, count=count, at_once=at_once, batch=batch)
    confirms.connection.close()
    await closed.wait()
    return sent
