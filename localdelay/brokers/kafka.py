"""Kafka, by confluent-kafka, which is librdkafka. Needs the extra `kafka`.

A message is confirmed by its delivery report: all in-sync replicas have it (acks=all). The producer is
idempotent, so that what librdkafka tries again by itself, over lost connections too, is there once; a message
that was not confirmed and is sent again by the queue may be there twice.

What travels with a message: its own headers, `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339), in UTF-8. It has no key: what is sent at the same time goes to
one partition in whole batches, and each time to another.

While there is no connection, sends wait: librdkafka makes it again for as long as the block is open. What is
not confirmed within `delivery.timeout.ms` (15 s), is given up, up to a second later. What stands after the
`?` of the URL are librdkafka's options, by its names.

- Throttled: librdkafka's queue is full; a policy refuses; there are too few in-sync replicas. A produce quota
  refuses nothing: the broker stops listening for so long. What is given up meanwhile is throttled, with what
  is left of that as `retry_after`, and the limit that the broker was opened with is told at once.
- Permanent: a message that is too large (`message.max.bytes`: 1,000,000 for librdkafka, about that by default
  for topics) or that the topic does not take; a topic that is not there any more or may not be written to.
  What was refused in company is sent alone before it is judged: a batch may be too large of small messages.
- As a `TimeoutError`, with the last that librdkafka has said of its connections: what was given up. It may be
  stored all the same.
- As a `ConnectionError`: what was under way in a producer that can't go on; a new one is made.
- As a `KafkaException`, to be tried again: the rest.

Kafka has no delay of its own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import attrs
import trio
from confluent_kafka import KafkaError, KafkaException, Producer, ThrottleEvent

from localdelay.brokers.address import Address, hide_secrets, host_and_port
from localdelay.brokers.driver import Driver
from localdelay.brokers.kafka_errors import (
    ALL_DOWN,
    GIVEN_UP,
    INVALID,
    NO_LEADER,
    NOT_LET_IN,
    NOT_THERE,
    TOO_LARGE,
    classified,
    ends_producer,
    kafka_error,
    shown,
)
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, rfc3339, wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message

logger = logging.getLogger("localdelay.brokers.kafka")

Headers: TypeAlias = list[tuple[str, str | bytes | None]]

_OURS = frozenset(
    {
        "bootstrap.servers",
        "metadata.broker.list",
        "default.topic.config",
        "delivery.report.only.error",
        "dr_cb",
        "logger",
        "on_delivery",
        "transactional.id",
    }
)
_TIMEOUTS = ("delivery.timeout.ms", "message.timeout.ms")
_OWN = frozenset({ID, ATTEMPT, EXECUTE_AT})
_FIRST = (ATTEMPT, b"1")
_LONGEST = 86_400.0

# In seconds.
_POLL = 0.1
_QUESTION = 1.0
_FIRST_QUESTION = 0.3
_ALL_DOWN_AFTER = 1.0  # a name may have an address that nobody listens at beside one that works
_TOPIC_APPEARS = 2.0
_GIVE_UP_TIMEOUT = 1.0
_CLOSE_TIMEOUT = 2.5
_RECENT = 30.0


class _Connection:
    """One producer, and the thread that makes it, polls it and ends it."""

    def __init__(self, driver: _Driver, outbox: Outbox) -> None:
        self._driver = driver
        self._outbox = outbox
        self._call = trio.lowlevel.current_trio_token().run_sync_soon
        self._producer: Any = None
        self._reason: Exception | None = None
        self._closing = threading.Event()
        self._opened = trio.Event()
        self._gone = trio.Event()
        self._ended = trio.Event()
        self._all_down = self._not_let_in = False
        # A daemon: librdkafka may hang at its end, and the process must not.
        self._thread = threading.Thread(target=self._run, name="localdelay-kafka", daemon=True)

    async def open(self) -> None:
        self._thread.start()
        await self._opened.wait()
        if self._reason is not None:
            raise self._reason

    async def close(self) -> None:
        self._closing.set()
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await self._ended.wait()
            self._thread.join()

    async def lost(self) -> Exception:
        await self._gone.wait()
        return self._reason or ConnectionError("the producer has ended")

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Have them produced, unless librdkafka has none of its own any more for them to go to."""
        producer, topic, report = self._producer, self._driver.topic, self._report
        if producer is None or self._gone.is_set():
            raise ConnectionError("the producer has ended")
        produce = producer.produce
        for position, parcel in enumerate(parcels):
            payload, headers = parcel.content
            try:
                produce(topic, payload, on_delivery=partial(report, parcel), headers=headers)
            except KafkaException as error:
                if not self._ends(error.args[0]):
                    parcel.settle(error)
                    continue
                if position == 0:
                    raise ConnectionError(shown(error.args[0])) from error
                self._outbox.again(parcels[position:])
                return
            except Exception as error:  # noqa: BLE001 (such as its BufferError: it is this message's alone)
                parcel.settle(error)

    # From here on: in the thread.

    def _run(self) -> None:
        try:
            self._make()
            self._find_topic()
            self._tell(self._opened.set)
            while not self._closing.is_set():
                self._producer.poll(_POLL)
        except Exception as error:  # noqa: BLE001 (the publisher says it: what librdkafka can't get over, mostly)
            self._reason = self._reason or error
        self._tell(self._gone.set)
        self._tell(self._opened.set)
        if self._producer is not None:
            self._end()
        self._tell(self._ended.set)

    def _end(self) -> None:
        # Nobody else must hold the producer, or its threads and connections would stay: no local of a frame
        # that is in the traceback of a reason.
        producer, self._producer = self._producer, None
        producer.purge()
        until = time.monotonic() + _GIVE_UP_TIMEOUT
        while len(producer) and time.monotonic() < until:
            with suppress(KafkaException):
                producer.poll(_POLL)

    def _tell(self, function: Any) -> None:
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._call(function)

    def _make(self) -> None:
        """Make the producer. Raises `ValueError` for options that librdkafka does not take."""
        driver = self._driver
        callbacks = {"error_cb": self._note, "throttle_cb": self._held_back, "logger": _ToDebug()}
        try:
            self._producer = Producer({**driver.settings, **callbacks})
        except Exception as error:  # noqa: BLE001 (confluent-kafka checks some itself, each in its own way)
            carried = kafka_error(error)
            text = driver.without_secrets(str(error) if carried is None else carried.str())
            if carried is not None and carried.code() not in INVALID:
                raise ConnectionError(text) from None
            raise ValueError(f"options that librdkafka does not take: {text}") from None

    def _find_topic(self) -> None:
        """Wait until a broker knows the topic; it may take a moment until it has made it."""
        topic, question = self._driver.topic, _FIRST_QUESTION
        begun, answered = time.monotonic(), math.inf
        while not self._closing.is_set():
            try:
                found = self._producer.list_topics(topic, timeout=question).topics.get(topic)
            except KafkaException as error:
                self._producer.poll(0)  # its news say why
                all_down = self._all_down and time.monotonic() >= begun + _ALL_DOWN_AFTER
                if self._not_let_in or all_down:
                    raise ConnectionError(self._driver.trouble or "all brokers are down") from error
                question = _QUESTION
                continue
            fault = None if found is None else found.error
            if fault is None or fault.code() in NO_LEADER:
                return
            answered = min(answered, time.monotonic())
            if fault.code() not in NOT_THERE or time.monotonic() >= answered + _TOPIC_APPEARS:
                raise ConnectionError(f"topic {topic!r}: {shown(fault)}")
            self._closing.wait(_POLL)

    def _report(self, parcel: Parcel, error: KafkaError | None, _: object) -> None:
        if error is None:
            self._outbox.settle_soon(parcel)
        elif error.code() in GIVEN_UP:
            return  # it ends, and the publisher says why
        elif error.code() in TOO_LARGE and not parcel.alone:
            self._tell(partial(self._outbox.again, (parcel,), alone=True))
        else:
            self._outbox.settle_soon(parcel, KafkaException(error))
            self._ends(error)

    def _ends(self, error: KafkaError) -> bool:
        """Whether the producer can't go on; another one is then made."""
        ends = error.code() in GIVEN_UP or ends_producer(error)
        if ends:
            self._reason = self._reason or ConnectionError(shown(error))
            self._tell(self._gone.set)
        return ends

    def _held_back(self, event: ThrottleEvent) -> None:
        if self._driver.held_back(event):
            self._tell(partial(self._driver.slow_down, event.throttle_time))

    def _note(self, error: KafkaError) -> None:
        logger.debug("%s", error)
        if error.code() in ALL_DOWN:
            self._all_down = True
            return
        self._not_let_in = self._not_let_in or error.code() in NOT_LET_IN
        self._driver.note_trouble(shown(error))


class _Driver(Driver):
    confirm_timeout = 15.0
    patience = 2.0  # librdkafka looks once a second
    most_under_way = 50_000
    most_bytes_under_way = 64 * 1024 * 1024
    no_delay = "Kafka has no delay of its own"

    def __init__(self, where: Address) -> None:
        hosts = ",".join(host_and_port(host, port) for host, port in where.hosts)
        self.where = f"Kafka at {hosts}"
        self.topic = where.target
        self._address = where
        self._hosts = hosts
        self.settings: dict[str, object] = {}
        self._trouble = ""
        self._trouble_at = self._held_back_until = -math.inf
        milliseconds = next((where.options[name] for name in _TIMEOUTS if name in where.options), None)
        check_options(where.options)
        if milliseconds is not None:
            self.confirm_timeout = int(milliseconds) / 1000

    @property
    def trouble(self) -> str:
        """The latest that librdkafka has said of its connections, where that is not long ago."""
        return self._trouble if time.monotonic() - self._trouble_at < _RECENT else ""

    def note_trouble(self, text: str) -> None:
        self._trouble, self._trouble_at = text, time.monotonic()

    def held_back(self, event: ThrottleEvent) -> bool:
        """A broker does not listen to this client for so long. Whether that is news."""
        now = time.monotonic()
        told = now < self._held_back_until  # the same is said with each answer
        self._held_back_until = now + event.throttle_time
        return event.throttle_time > 0 and not told

    def without_secrets(self, text: str) -> str:
        """What librdkafka says; it may quote what it does not take."""
        where = self._address
        user = quote(where.username or "") + ("" if where.password is None else f":{quote(where.password)}")
        like = f"//{user}@?{urlencode(where.options, quote_via=quote)}"
        return hide_secrets(" ".join(text.split()), like)

    def encode(self, message: Message, delay: float | None) -> tuple[bytes, Headers]:
        return message.payload, kafka_headers(message)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Connection]:
        self.settings = settings_of(self._hosts, self._address, self.confirm_timeout)
        connection = _Connection(self, outbox)
        try:
            await connection.open()
            yield connection
        finally:
            await connection.close()

    def verdict(self, error: Exception) -> Exception:
        left = max(0.0, self._held_back_until - time.monotonic())
        return classified(error, held_back=left, trouble=self.trouble)


def kafka_headers(message: Message) -> Headers:
    """What travels with a message, in UTF-8 already: confluent-kafka would end a text at a NUL."""
    headers: Headers = [
        (ID, message.id.encode()),
        _FIRST if message.attempt == 1 else (ATTEMPT, b"%d" % message.attempt),
        (EXECUTE_AT, rfc3339(wall_clock(message.execute_at)).encode()),
    ]
    if message.headers:
        if any("\0" in name for name in message.headers):
            raise PermanentSendError("the name of a Kafka header can't have a NUL in it")
        headers += [(name, value.encode()) for name, value in message.headers.items() if name not in _OWN]
    return headers


def driver_at(where: Address) -> Driver:
    """A driver for where a URL points to. Raises `ValueError` for options that can't work here."""
    return _Driver(where)


def check_options(options: Mapping[str, str]) -> None:
    """Raise a `ValueError` for what can't work here."""
    for name, value in options.items():
        if name in _OURS or name.endswith("_cb"):
            raise ValueError(f"options can't have {name}: localdelay sets it, or can't work with it")
        if name in ("acks", "request.required.acks") and value.strip() == "0":
            raise ValueError(f"options can't have {name}=0: nothing would be confirmed")
        if name in _TIMEOUTS and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"options can't have {name}={value}: a message must end some time")


def settings_of(hosts: str, where: Address, confirm_timeout: float) -> dict[str, object]:
    """What to tell librdkafka; the URL's options have the last word."""
    sasl: dict[str, object] = {}
    if where.username is not None:
        sasl = {"security.protocol": "SASL_SSL", "sasl.username": where.username}
        sasl["sasl.password"] = where.password or ""
        if "sasl.mechanism" not in where.options:
            sasl["sasl.mechanisms"] = "PLAIN"
    return {
        "bootstrap.servers": hosts,
        "client.id": "localdelay",
        "acks": "all",
        "enable.idempotence": True,
        "delivery.timeout.ms": round(min(confirm_timeout, _LONGEST) * 1000) or 1,
        "linger.ms": 0,
        "topic.metadata.propagation.max.ms": 5000,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        **sasl,
        **where.options,
    }


@attrs.frozen
class _ToDebug:
    """Stands where librdkafka wants a logger: what it gets over by itself is no news to anybody else."""

    def log(self, _: int, line: object, *values: Any) -> None:
        logger.debug(line, *values)
