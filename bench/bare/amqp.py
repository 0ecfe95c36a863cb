"""pika alone: one SelectConnection, publisher confirms, mandatory, persistent."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import unquote, urlsplit

import pika
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from bench.bare import Sent, in_tasks


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. AMQP has no batches: one is so many publishes without waiting, and all their confirms."""
    return _Run(url, payload, count, at_once, batch).run()


class _Run:
    def __init__(self, url: str, payload: bytes, count: int, at_once: int, batch: int) -> None:
        parts = urlsplit(url)
        self._queue = unquote(parts.path[1:])
        self._payload = payload
        self._left = count
        self._at_once = at_once
        self._batch = batch
        self._tag = self._confirmed = 0
        # By tag: how many of its publish are unconfirmed, and when that began.
        self._group_of: dict[int, list[float]] = {}
        self._times: list[float] = []
        self._begun = self._ended = 0.0
        self._connection = pika.SelectConnection(
            _parameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )

    def run(self) -> Sent:
        self._connection.ioloop.start()
        return Sent(self._ended - self._begun, self._times)

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=self._start)

    def _start(self, _: frame.Method) -> None:
        self._begun = time.perf_counter()
        for _ in range(self._at_once):
            self._publish()

    def _publish(self) -> None:
        size = min(self._batch, self._left)
        if not size:
            return
        self._left -= size
        group = [size, time.perf_counter()]
        for _ in range(size):
            self._tag += 1
            self._group_of[self._tag] = group
            properties = pika.BasicProperties(delivery_mode=2, message_id=str(self._tag))
            self._channel.basic_publish("", self._queue, self._payload, properties, mandatory=True)

    def _on_confirm(self, confirm: frame.Method) -> None:
        method = confirm.method
        assert isinstance(method, spec.Basic.Ack), "refused"
        tags = (
            range(self._confirmed + 1, method.delivery_tag + 1) if method.multiple else (method.delivery_tag,)
        )
        if method.multiple:
            self._confirmed = method.delivery_tag
        for tag in tags:
            group = self._group_of.pop(tag, None)
            if group is None:
                continue
            group[0] -= 1
            if not group[0]:
                self._times.append(time.perf_counter() - group[1])
                self._publish()
        if not self._group_of and not self._left:
            self._ended = time.perf_counter()
            self._connection.close()


def _parameters(url: str) -> pika.ConnectionParameters:
    parts = urlsplit(url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    credentials = pika.PlainCredentials(user, password)
    return pika.ConnectionParameters(parts.hostname, parts.port or 5672, credentials=credentials)


def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """An AsyncioConnection of pika's, with a future for each message."""
    return asyncio.run(_awaited(url, payload, count, at_once, batch))


async def _awaited(url: str, payload: bytes, count: int, at_once: int, batch: int) -> Sent:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Channel] = loop.create_future()
    closed: asyncio.Future[None] = loop.create_future()
    under_way: dict[int, asyncio.Future[None]] = {}
    tag = confirmed = 0

    def on_open(channel: Channel) -> None:
        channel.confirm_delivery(on_confirm, callback=lambda _: ready.set_result(channel))

    def on_confirm(confirm: frame.Method) -> None:
        nonlocal confirmed
        method = confirm.method
        assert isinstance(method, spec.Basic.Ack), "refused"
        last: int = method.delivery_tag
        for one in range(confirmed + 1, last + 1) if method.multiple else (last,):
            if (future := under_way.pop(one, None)) is not None:
                future.set_result(None)
        confirmed = last if method.multiple else confirmed

    connection = AsyncioConnection(
        _parameters(url),
        on_open_callback=lambda made: made.channel(on_open_callback=on_open),
        on_close_callback=lambda *_: closed.set_result(None),
    )
    channel = await ready
    queue = unquote(urlsplit(url).path[1:])

    def publish() -> asyncio.Future[None]:
        nonlocal tag
        tag += 1
        under_way[tag] = future = loop.create_future()
        properties = pika.BasicProperties(delivery_mode=2, message_id=str(tag))
        channel.basic_publish("", queue, payload, properties, mandatory=True)
        return future

    sent = await in_tasks(publish, count=count, at_once=at_once, batch=batch)
    connection.close()
    await closed
    return sent
