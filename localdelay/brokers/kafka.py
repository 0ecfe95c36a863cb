"""Kafka, by confluent-kafka, which is librdkafka. Needs the extra `kafka`.

A message is confirmed by its delivery report: all in-sync replicas have it (acks=all). The producer is
idempotent, so that what librdkafka tries again by itself, over lost connections too, is there once; a message
that was not confirmed and is sent again by the queue may be there twice.

What travels with a message: its own headers, `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339), in UTF-8. It has no key, unless `open_kafka` is given a
function that makes one: what is sent at the same time then goes to one partition in whole batches, and each
time to another; and there is no order to keep, since what is tried again comes later anyway. Kafka keeps the
order within a partition.

While there is no connection, sends wait: librdkafka makes it again for as long as the block is open, within a
second or two after a broker is back. What is not confirmed within `confirm_timeout` is given up, up to a
second later.

- Throttled: librdkafka's queue is full (`queue.buffering.max.messages`, 100,000, and `.kbytes`, 1 GB); a
  quota or a policy refuses; there are too few in-sync replicas; a time-out of the cluster's or librdkafka's,
  which is what a quota on bytes comes to. The last leaves open whether the message was taken. `retry_after`
  is what is left of the time for which a broker has said that it holds this client back.
- Permanent: a message that is too large (`message.max.bytes`: 1,000,000 for librdkafka, about that by default
  for topics) or that the topic does not take; a topic that is not there any more or may not be written to.
- Librdkafka sends batches of up to 128 KiB here (`batch.size`), so that what the cluster refuses as too large
  is one message and no batch, unless a topic's `max.message.bytes` is below that: then make it smaller too.
- After a fatal error of the idempotent producer what is under way fails with it, and a new producer goes on.
- As a `KafkaException`, to be tried again: the rest.

Kafka has no delay of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import time
from typing import TypeAlias
from urllib.parse import quote, urlencode

import trio

from localdelay import arguments
from localdelay.brokers.address import Address, hide_secrets
from localdelay.brokers.kafka_client import Parcel
from localdelay.brokers.kafka_errors import classified
from localdelay.brokers.kafka_line import Line, Place
from localdelay.brokers.kafka_sending import Sending
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, rfc3339
from localdelay.errors import DelayNotSupported, PermanentSendError
from localdelay.message import Message
from localdelay.settling import caused_by

__all__ = ["KafkaBroker", "KeyOf", "classified", "open_address", "open_kafka", "settings_of"]

KeyOf: TypeAlias = Callable[[Message], bytes | str | None]

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
_SHORTEST = 0.001
_LONGEST = 86_400.0


class KafkaBroker:
    """A producer for one topic; `open_kafka` makes it."""

    native_delay = False

    def __init__(self, line: Line, key: KeyOf | None) -> None:
        self._line = line
        self._key = key

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once all in-sync replicas have it.

        Raises `Throttled` when there is a limit or a time-out in the way, `PermanentSendError` for what can
        never work, `ConnectionError` when it is closed, and a `KafkaException` for the rest.
        """
        sending = Sending()
        self._line.give(sending, self._parcels((message,), sending))
        await sending.of_one()

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now; returns once all in-sync replicas have each of them.

        Raises as `send` does, and `PartialSendError` where some failed.
        """
        messages = tuple(messages)
        if not messages:
            await trio.lowlevel.checkpoint()
            return
        sending = Sending(len(messages))
        self._line.give(sending, self._parcels(messages, sending))
        await sending.of_all(messages)

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Raises `DelayNotSupported`: Kafka has no delay of its own."""
        arguments.at_least("delay", delay, 0, "a number of seconds")
        raise DelayNotSupported("Kafka has no delay of its own")

    def _parcels(self, messages: Sequence[Message], sending: Sending) -> list[Parcel]:
        """What is to be sent; what can't be has failed."""
        ahead = time() - trio.current_time()
        key_of = self._key
        parcels: list[Parcel] = []
        for position, message in enumerate(messages):
            try:
                key = None if key_of is None else key_of(message)
                parcels.append((position, message.payload, key, kafka_headers(message, ahead)))
            except Exception as error:  # noqa: BLE001 (of what the caller gave: it is this message's alone)
                sending.settle(position, caused_by(classified(error), error))
        return parcels


def kafka_headers(message: Message, ahead: float) -> list[tuple[str, str | bytes | None]]:
    """What travels with a message; `ahead` is by how many seconds the wall clock is ahead of Trio's.

    All in UTF-8 already: confluent-kafka would end a text at a NUL.
    """
    headers: list[tuple[str, str | bytes | None]] = [
        (ID, message.id.encode()),
        _FIRST if message.attempt == 1 else (ATTEMPT, b"%d" % message.attempt),
        (EXECUTE_AT, rfc3339(message.execute_at + ahead).encode()),
    ]
    if message.headers:
        if any("\0" in name for name in message.headers):
            raise PermanentSendError("the name of a Kafka header can't have a NUL in it")
        headers += [(name, value.encode()) for name, value in message.headers.items() if name not in _OWN]
    return headers


def open_address(where: Address) -> AbstractAsyncContextManager[KafkaBroker]:
    """Connect to where a URL points to."""
    hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in where.hosts)
    return open_kafka(
        ",".join(hosts),
        topic=where.target,
        username=where.username,
        password=where.password,
        options=where.options,
    )


@asynccontextmanager
async def open_kafka(
    servers: str,
    *,
    topic: str,
    username: str | None = None,
    password: str | None = None,
    key: KeyOf | None = None,
    confirm_timeout: float = 15.0,
    open_timeout: float = 5.0,
    options: Mapping[str, str] | None = None,
) -> AsyncIterator[KafkaBroker]:
    """Make a producer for `topic`, for the length of an `async with` block.

    `servers` are the first brokers to ask, as in `host:9092,other:9092`. A username is one of SASL, PLAIN
    over TLS unless the options say otherwise. `key` makes a message's key. What is not confirmed within
    `confirm_timeout` seconds has failed; keep that below the queue's `send_timeout`, or what is still on
    its way is sent a second time. `options` are librdkafka's, by its names.
    Raises `ConnectionError` where no broker answers within `open_timeout` seconds, or the topic is not there
    and is not made for the asking; and `ValueError` for options that librdkafka does not take.
    """
    arguments.at_least("confirm_timeout", confirm_timeout, _SHORTEST, "a number of seconds")
    arguments.at_least("open_timeout", open_timeout, _SHORTEST, "a number of seconds")
    own = dict(options or {})
    settings = settings_of(servers, username, password, confirm_timeout, own)
    idempotent = str(settings["enable.idempotence"]).lower() == "true"
    line = Line(Place(servers, topic), settings, open_timeout=open_timeout, idempotent=idempotent)
    try:
        await line.open()
    except (ConnectionError, ValueError) as error:
        # librdkafka may quote what it does not take. As a URL, since that is what is known how to hide.
        user = "" if username is None else f"{quote(username)}@"
        user = user if password is None else f"{quote(username or '')}:{quote(password)}@"
        raise type(error)(hide_secrets(str(error), f"//{user}?{urlencode(own, quote_via=quote)}")) from None
    try:
        yield KafkaBroker(line, key)
    finally:
        await line.close()


def settings_of(
    servers: str,
    username: str | None,
    password: str | None,
    confirm_timeout: float,
    options: Mapping[str, str],
) -> dict[str, object]:
    """What to tell librdkafka; the options come last. Raises a `ValueError` for what can't work here."""
    for name, value in options.items():
        if name in _OURS or name.endswith("_cb"):
            raise ValueError(f"options can't have {name}: localdelay sets it, or can't work with it")
        if name in ("acks", "request.required.acks") and value.strip() == "0":
            raise ValueError(f"options can't have {name}=0: nothing would be confirmed")
        if name in _TIMEOUTS and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"options can't have {name}={value}: a message must end some time")
    sasl: dict[str, object] = {}
    if username is not None:
        sasl = {"security.protocol": "SASL_SSL", "sasl.username": username, "sasl.password": password or ""}
        if "sasl.mechanism" not in options:
            sasl["sasl.mechanisms"] = "PLAIN"
    return {
        "bootstrap.servers": servers,
        "client.id": "localdelay",
        "acks": "all",
        "enable.idempotence": True,
        "delivery.timeout.ms": round(min(confirm_timeout, _LONGEST) * 1000) or 1,
        "linger.ms": 0,
        "batch.size": 128 * 1024,
        "topic.metadata.propagation.max.ms": 5000,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        **sasl,
        **options,
    }
