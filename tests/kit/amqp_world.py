"""What the tests of the RabbitMQ broker share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trio

from localdelay import Message, PartialSendError
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.wire import ID
from tests.kit.servers.amqp import RabbitServer

LIMIT = RabbitServer.too_large - 1


def queue_of(url: str) -> str:
    return unquote(urlsplit(url).path[1:])


@asynccontextmanager
async def opened(
    url: str, options: str = "", *, port: int | None = None, user: str = "", **limits: float
) -> AsyncIterator[Broker]:
    """The broker, at another port perhaps, and as another user than guest."""
    name, password = user.split(":") if user else ("guest", "guest")
    where = f"amqp://{name}:{password}@127.0.0.1:{port or urlsplit(url).port}/{urlsplit(url).path[1:]}"
    with trio.fail_after(100):
        async with open_broker(where + options, **limits) as broker:
            yield broker


def message(id: str, payload: bytes = b"payload", **fields: Any) -> Message:
    return Message(id, payload, trio.current_time(), **fields)


def messages(name: str, count: int, size: int = 100) -> list[Message]:
    return [message(f"{name}{number}", bytes(size)) for number in range(count)]


async def arrived(rabbit: RabbitServer, url: str, count: int, wait: float = 30.0) -> Counter[str]:
    received = await trio.to_thread.run_sync(rabbit.read, url, count, wait)
    return Counter(one.headers[ID] for one in received)


async def outcomes(broker: Broker, sent: list[Message]) -> dict[str, Exception | None]:
    """What becomes of each, all sent at once."""
    ended: dict[str, Exception | None] = {}

    async def send(one: Message) -> None:
        try:
            await broker.send(one)
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            ended[one.id] = error
        else:
            ended[one.id] = None

    async with trio.open_nursery() as nursery:
        for one in sent:
            nursery.start_soon(send, one)
    return ended


def failures_of(raised: PartialSendError) -> dict[str, Exception]:
    assert raised.failed is not None
    return dict(raised.failed)


@contextmanager
def user(rabbit: RabbitServer, *, configure: str = ".*", write: str = ".*") -> Iterator[str]:
    """A user of this name and password, with these permissions, which the test may change."""
    name = f"user{random.randrange(10**9)}"
    rabbit.call(f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{name}">>, <<"test">>)')
    permit(rabbit, name, configure=configure, write=write)
    try:
        yield name
    finally:
        rabbit.call(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>)')


def permit(rabbit: RabbitServer, name: str, *, configure: str = ".*", write: str = ".*") -> None:
    permissions = ", ".join(f'<<"{pattern}">>' for pattern in (configure, write, ".*"))
    rabbit.call(
        f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, {permissions}, <<"test">>)'
    )


async def send_until_confirmed(broker: Broker, id: str) -> int:
    """The number of sends that it took; all that failed failed by the connection."""
    for number in range(1, 1000):
        try:
            await broker.send(message(id))
        except (ConnectionError, TimeoutError):
            await trio.sleep(0.01)
        else:
            return number
    raise AssertionError("never confirmed")


async def refusal(
    *, port: int, host: str = "127.0.0.1", scheme: str = "amqp", password: str = "hunter2", options: str = ""
) -> str:
    """What an attempt to connect comes to, in one line without the password."""
    url = f"{scheme}://guest:{password}@{host}:{port}/orders{options}"
    with trio.fail_after(60), pytest.raises(ConnectionError) as refused:
        async with open_broker(url):
            pass
    told = str(refused.value)
    assert "hunter2" not in told
    assert "\n" not in told
    assert f"{host}:{port}" in told
    return told
