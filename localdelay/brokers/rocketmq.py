"""RocketMQ 5, by its official client over the proxy's gRPC port. Needs the extra `rocketmq`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.rocketmq_client import (
    REQUEST_TIMEOUT,
    NoTopic,
    classified,
    client,
    producer_of,
    why_no_route,
)
from localdelay.brokers.wire import headers_of
from localdelay.errors import DelayNotSupported, PermanentSendError
from localdelay.message import Message

_DAY = 86_400
_NOT_SENT = "failed to connect"

# In seconds.
_LAST_ANSWER = 5 * REQUEST_TIMEOUT
_TOPIC_APPEARS = 2.0
_CLOSE_TIMEOUT = 1.0
_KNOCK = 0.1
_POLL = 0.02


class _Connection:
    """One producer of the client's, whose threads are its own."""

    def __init__(self, driver: _Driver, outbox: Outbox) -> None:
        self._driver = driver
        self._producer: Any = None
        self._outbox = outbox
        self._unanswered: set[Future[Any]] = set()
        self._gone = trio.CancelScope()
        self._reason: Exception = ConnectionError("it was given up")

    def start(self, where: Address, given_up: threading.Event) -> None:
        """Start a producer that knows the topics; in a thread. Where it is given up meanwhile it ends."""
        producer = producer_of(where)
        producer.startup()
        try:
            for topic in self._driver.topics:
                self._find(producer, topic, given_up)
            self._producer = producer
        finally:
            if given_up.is_set() or self._producer is None:
                self._producer, ends = None, producer
                ends.shutdown()

    def _find(self, producer: Any, topic: str, given_up: threading.Event) -> None:
        """Wait until the topic is there: a broker that has just begun takes a moment to show it."""
        until = time.monotonic() + _TOPIC_APPEARS
        while not given_up.is_set():
            try:
                producer.route_manager.retrieve_topic_route_data(topic)
            except Exception as error:
                if time.monotonic() > until:
                    why = why_no_route(producer, topic)
                    if isinstance(why, NoTopic):
                        command = self._driver.command(topic)
                        why = NoTopic(f"it shows no topic {topic!r}: {command}")
                    raise why from error
                given_up.wait(0.2)
            else:
                return

    async def lost(self) -> Exception:
        """Watch whether anybody listens: the client itself finds out by the next message only."""
        with self._gone:
            while True:
                try:
                    async with await self._driver.knock() as stream:
                        with suppress(OSError, trio.BrokenResourceError):
                            await stream.receive_some()  # it says nothing, and hangs up after a while
                except OSError as error:
                    return error
                await trio.sleep(_KNOCK)
        return self._reason

    def write(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            try:
                future = self._producer.send_async(parcel.content)
            except Exception as error:  # noqa: BLE001 (it is this message's: the connection has its own end)
                parcel.settle(self._driver.mended(error, parcel.content))
            else:
                self._unanswered.add(future)
                future.add_done_callback(partial(self._answered, parcel))

    def end(self) -> None:
        """Shut the producer down; in a thread.

        Not before it has its answers: a send that it tries again after its end asks for the topic's route on
        the one loop that all producers of this process have, and so waits there for ever, for itself.
        """
        until = time.monotonic() + _LAST_ANSWER
        while self._unanswered and time.monotonic() < until:
            time.sleep(_POLL)
        producer, self._producer = self._producer, None
        if producer is not None and not self._unanswered:
            producer.shutdown()

    async def recall(self, topic: str, handle: str) -> None:
        done = trio.Event()
        future = self._producer.recall_message_async(topic, handle)
        future.add_done_callback(lambda _: self._outbox.call_soon(done.set))
        await done.wait()
        future.result()

    def _answered(self, parcel: Parcel, future: Future[Any]) -> None:
        """In a thread of the client's."""
        self._unanswered.discard(future)
        error = future.exception()
        if error is None:
            parcel.handle = future.result().recall_handle
            self._outbox.settle_soon(parcel)
        elif isinstance(error, Exception):
            self._outbox.call_soon(self._failed, parcel, error)

    def _failed(self, parcel: Parcel, error: Exception) -> None:
        verdict = classified(error)
        if isinstance(verdict, ConnectionError):
            # Its channel would wait for up to 12 seconds before it looks again.
            self._reason = verdict
            self._gone.cancel()
            if _NOT_SENT in str(verdict) and not parcel.only_now:
                self._outbox.again((parcel,))
            return  # else the publisher says that it was lost
        parcel.settle(self._driver.mended(error, parcel.content))


class _Driver(Driver):
    native_delay = True
    verdict = staticmethod(classified)
    most_under_way = 128  # more slow it down: 2,600/s with 100, 1,300/s with 1,000

    def __init__(self, where: Address) -> None:
        self.where = f"RocketMQ at {where.place}"
        self._address = where
        self._topic = where.target
        self._delay_topic = where.options.get("delay_topic", where.target)
        self.topics = {self._topic: {"NORMAL"}}
        """What is sent to each topic."""
        self.topics.setdefault(self._delay_topic, set()).add("DELAY")
        self._max_delay = where.count("max_delay", _DAY)
        where.choice("tls", "on")  # what is none is refused before it connects

    def encode(self, message: Message, delay: float | None, now: float) -> Any:
        if delay is not None and delay > self._max_delay:
            most = f"{self._max_delay} s at most (?max_delay=)"
            raise DelayNotSupported(f"a delay of {delay:g} s; RocketMQ takes {most}")
        content = client.Message()
        content.topic = self._delay_topic if delay else self._topic
        content.body = message.payload
        content.keys = message.id
        for name, value in headers_of(message, now).items():
            content.add_property(name, value)
        if delay:
            content.delivery_timestamp = math.ceil(time.time() + delay)
        return content

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Connection]:
        # The client would wait, and say nothing of why nobody answers.
        async with await self.knock():
            pass
        given_up = threading.Event()
        connection = _Connection(self, outbox)
        start = partial(connection.start, self._address, given_up)
        try:
            await trio.to_thread.run_sync(start, abandon_on_cancel=True)
            yield connection
        finally:
            given_up.set()
            thread = threading.Thread(target=connection.end, name="localdelay-rocketmq", daemon=True)
            thread.start()
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(thread.join, _CLOSE_TIMEOUT)

    async def knock(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self._address.host, self._address.port)

    def mended(self, error: Exception, content: Any) -> Exception:
        """The error, with the command that makes the topic one that takes such messages."""
        if "message type" in str(error):
            return PermanentSendError(f"{error}: {self.command(content.topic)}")
        return error

    def command(self, topic: str) -> str:
        """What makes this topic one that takes what is sent to it."""
        kind, *others = self.topics[topic]
        kind = "MIXED" if others else kind
        return f"mqadmin updateTopic -n NAMESRV -c CLUSTER -t {topic} -a +message.type={kind}"

    async def cancel_delayed(self, connection: _Connection, id: str, handle: object) -> None:
        await connection.recall(self._delay_topic, str(handle))


driver_at = _Driver
