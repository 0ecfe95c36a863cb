"""A broker by its URL, as in `nats://host:4222/SUBJECT`. Its client is imported when it is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import trio

from localdelay.brokers import address
from localdelay.brokers.address import Address, Form, hide_secrets, of_redis
from localdelay.brokers.broker import Broker, in_a_line
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.publisher import open_publisher
from localdelay.limit import Limit

STDOUT = "stdout:"

_LOOK_TIMEOUT = 15.0


_OF_REDIS = of_redis(
    Form(
        "redis://host:6379/STREAM",
        r"[^\s\x00-\x1f\x7f]+",
        "db eviction max_length",
        named="the stream to add to",
    )
)
_OF_AMQP = r"[^\x00-\x1f\x7f]{1,200}", "delay_queue heartbeat vhost"
_FORMS: Mapping[str, Form] = {
    "kafka": Form("kafka://host:9092/TOPIC", r"[A-Za-z0-9._-]{1,249}", None, many_hosts=True),
    "amqp": Form("amqp://user:password@host:5672/QUEUE", *_OF_AMQP),
    "amqps": Form("amqps://user:password@host:5671/QUEUE", *_OF_AMQP),
    **_OF_REDIS,
    "beanstalkd": Form(
        "beanstalkd://host:11300/TUBE",
        r"[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}",
        "priority time_to_run",
        named="the tube to put into",
        authenticates=False,
    ),
    "nsq": Form(
        "nsq://host:4150/TOPIC",
        r"(?=.{1,64}\Z)[.a-zA-Z0-9_-]+(#ephemeral)?",
        "delay max_msg_size max_req_timeout tls",
    ),
    "rocketmq": Form("rocketmq://host:8081/TOPIC", r"[%a-zA-Z0-9_-]{1,127}", "delay_topic max_delay tls"),
    "nats": Form("nats://host:4222/SUBJECT", r"[^\s.*>]+(\.[^\s.*>]+)*", "inbox_prefix tls", many_hosts=True),
}
"""What a URL of each scheme looks like."""
_MODULES = {"amqps": "amqp", **dict.fromkeys(_OF_REDIS, "redis")}
"""The module that knows a scheme, and the extra that it needs, where they are not called like it."""
_CLIENTS = {
    "kafka": "confluent_kafka",
    "amqp": "pika",
    "redis": "coredis",
    "beanstalkd": "greenstalk",
    "rocketmq": "rocketmq grpc google",
    "nats": "nats",
}
"""The packages that an extra brings, by the names that they are imported by."""


@asynccontextmanager
async def open_broker(
    url: str,
    *,
    confirm_timeout: float | None = None,
    connect_timeout: float = 5.0,
    limit: Limit | None = None,
) -> AsyncIterator[Broker]:
    """Connect to the broker at `url`, for the length of an `async with` block.

    It has a host and what to publish to, as in `nats://[user:password@]host[:port]/SUBJECT`, after `amqp:`,
    `beanstalkd:`, `kafka:`, `nats:`, `nsq:`, `redis:`, `redis+cluster:`, `redis+sentinel:` or `rocketmq:`;
    and `stdout:`.
    `brokers/README.md` says what each carries, how it confirms, and what its options are. What is not
    confirmed within `confirm_timeout` seconds has failed: 10, or 15 with Kafka, unless it is given. A broker
    that lets less through without refusing anything (a quota of Kafka's) is reported to the `limit`, which
    should be that of the queue.
    Raises `ValueError` for a URL that `check_url` refuses, `ModuleNotFoundError` where the broker's extra
    is not installed, and `ConnectionError` where no broker answers. None of them shows a password.
    """
    where = _parse(url)
    if where is None:
        from localdelay.brokers.stdout import open_stdout

        async with open_stdout() as stdout:
            yield stdout
        return
    driver = _module(where.scheme).driver_at(where)
    connected = False
    try:
        async with open_publisher(
            driver, confirm_timeout=confirm_timeout, connect_timeout=connect_timeout, limit=limit
        ) as broker:
            connected = True
            yield broker
    except (ConnectionError, TimeoutError, ValueError) as error:
        if connected:
            raise
        kind = ValueError if isinstance(error, ValueError) else ConnectionError
        raise kind(hide_secrets(str(error), url)) from None


async def look_at(url: str) -> list[Finding]:
    """Look whether the broker at `url` is set up for this, on a connection of its own.

    Raises as `open_broker` does.
    """
    where = _parse(url)
    if where is None:
        raise ValueError(f"url must be a broker's: there is nothing to look at about {STDOUT}")
    broker = _module(where.scheme).driver_at(where).where  # it refuses options that are none, too
    look = import_module(f"localdelay.brokers.checks.{_MODULES.get(where.scheme, where.scheme)}").look
    try:
        with trio.fail_after(_LOOK_TIMEOUT):
            found: list[Finding] = await look(where)
            return found
    except trio.TooSlowError:
        raise ConnectionError(f"{broker}: no answer within {_LOOK_TIMEOUT:g} s") from None
    except Exception as error:  # noqa: BLE001 (whatever a client raises: it could not look)
        text = hide_secrets(in_a_line(error), url)
        if isinstance(error, ValueError) and not isinstance(error, OSError | UnicodeError):
            raise ValueError(text) from None
        raise ConnectionError(text if broker in text else f"no connection to {broker}: {text}") from None


def check_url(url: str) -> None:
    """Raise a `ValueError` unless this is the URL of a broker; it says what is wrong, and no password."""
    _parse(url)


def without_secrets(url: str) -> str:
    """A broker's URL, to be shown: without user, password and token. Raises as `check_url` does."""
    _parse(url)
    return address.without_secrets(url)


def _parse(url: str) -> Address | None:
    """Where the URL points to; None is standard output."""
    if url == STDOUT:
        return None
    hint = f"; did you mean {STDOUT}" if f"{url}:" == STDOUT else ""
    return address.parse(url, _FORMS, f", or be {STDOUT}{hint}")


def _module(scheme: str) -> Any:
    """The module that knows this scheme."""
    name = _MODULES.get(scheme, scheme)
    try:
        return import_module(f"localdelay.brokers.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _CLIENTS.get(name, "").split():
            raise
        fix = f"pip install 'localdelay[{name}]'"
        raise ModuleNotFoundError(f"{scheme}:// needs a client: {fix}", name=error.name) from error
