"""Kafka, by confluent-kafka, which is librdkafka. Needs the extra `kafka`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.kafka_errors import News, classified
from localdelay.brokers.kafka_producer import Connection
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, OWN, rfc3339, wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message

Headers: TypeAlias = list[tuple[str, bytes]]

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
_LONGEST = 86_400.0  # seconds


class _Driver(Driver):
    confirm_timeout = 15.0
    patience = 2.0  # librdkafka looks once a second
    most_under_way = 50_000
    most_bytes_under_way = 64 * 1024 * 1024
    no_delay = "Kafka has no delay of its own"

    def __init__(self, where: Address) -> None:
        self.where = f"Kafka at {where.place}"
        self._address = where
        self._news = News()
        milliseconds = next((where.options[name] for name in _TIMEOUTS if name in where.options), None)
        check_options(where.options)
        if milliseconds is not None:
            self.confirm_timeout = int(milliseconds) / 1000

    def encode(self, message: Message, delay: float | None, now: float) -> tuple[bytes, Headers]:
        return message.payload, kafka_headers(message, now)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[Connection]:
        settings = settings_of(self._address, self.confirm_timeout)
        connection = Connection(self._address.target, settings, self._news, self.slow_down, outbox)
        try:
            await connection.open()
            yield connection
        finally:
            await connection.close()

    def verdict(self, error: Exception) -> Exception:
        return classified(error, held_back=self._news.held_back_for, trouble=self._news.trouble)


def kafka_headers(message: Message, now: float) -> Headers:
    """What travels with a message, in UTF-8 already: confluent-kafka would end a text at a NUL."""
    if message.headers and any("\0" in name for name in message.headers):
        raise PermanentSendError("the name of a Kafka header can't have a NUL in it")
    due = rfc3339(wall_clock(message.execute_at, now))
    headers = [(ID, message.id.encode()), (ATTEMPT, b"%d" % message.attempt), (EXECUTE_AT, due.encode())]
    if message.headers:
        headers += [(name, value.encode()) for name, value in message.headers.items() if name not in OWN]
    return headers


def check_options(options: Mapping[str, str]) -> None:
    """Raise a `ValueError` for what can't work here."""
    for name, value in options.items():
        if name in _OURS or name.endswith("_cb"):
            raise ValueError(f"options can't have {name}: localdelay sets it, or can't work with it")
        if name in ("acks", "request.required.acks") and value.strip() == "0":
            raise ValueError(f"options can't have {name}=0: nothing would be confirmed")
        if name in _TIMEOUTS and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"options can't have {name}={value}: a message must end some time")


def settings_of(where: Address, confirm_timeout: float) -> dict[str, object]:
    """What to tell librdkafka; the URL's options have the last word."""
    sasl: dict[str, object] = {}
    if where.username is not None:
        sasl = {"security.protocol": "SASL_SSL", "sasl.username": where.username}
        sasl["sasl.password"] = where.password or ""
        if "sasl.mechanism" not in where.options:
            sasl["sasl.mechanisms"] = "PLAIN"
    return {
        "bootstrap.servers": where.place,
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


driver_at = _Driver
