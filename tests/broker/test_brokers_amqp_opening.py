"""Connecting to RabbitMQ: what can be wrong, and what is told of it."""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pika
import pika.exceptions
import pytest
import trio

from localdelay.brokers import open_broker
from localdelay.brokers.amqp_connection import Connection
from tests.kit.amqp_world import (
    LIMIT,
    arrived,
    message,
    messages,
    opened,
    outcomes,
    queue_of,
    refusal,
    send_until_confirmed,
    user,
)
from tests.kit.servers.amqp import RabbitServer
from tests.kit.servers.amqp_proxy import proxied
from tests.kit.servers.process import Server, free_port


@pytest.fixture
def rabbit(start_server: Callable[[str], Server]) -> RabbitServer:
    return cast(RabbitServer, start_server("amqp"))


@pytest.fixture
def url(rabbit: RabbitServer) -> str:
    return rabbit.fresh()


@asynccontextmanager
async def listener(handle: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_what_is_wrong_with_a_connection_is_one_line(rabbit: RabbitServer) -> None:
    """It says where and what, and no password, also where the broker just hangs up."""
    trusting = ssl.create_default_context(cafile=str(rabbit.certificate))
    assert "Login was refused" in await refusal(port=rabbit.port)
    unknown = await refusal(port=rabbit.port, password="guest", virtual_host="nowhere")
    assert "NOT_ALLOWED - vhost nowhere not found" in unknown
    assert "Connection refused" in await refusal(port=free_port())
    assert "not known" in await refusal(host="nowhere.invalid", port=5672)
    assert await refusal(host="x" * 100, port=5672)  # no host name at all
    assert await refusal(port=rabbit.tls_port, connect_timeout=1.0)
    assert "SSL" in await refusal(port=rabbit.port, tls=trusting)
    assert "certificate verify failed" in await refusal(
        port=rabbit.tls_port, tls=ssl.create_default_context()
    )


async def test_a_server_that_says_nothing_is_given_up(rabbit: RabbitServer) -> None:
    """After the connect timeout; and one that hangs up, at once."""

    async def hang_up(client: trio.SocketStream) -> None:
        await client.aclose()

    async def say_nothing(client: trio.SocketStream) -> None:
        async with client:
            await trio.sleep_forever()

    async def talk_nonsense(client: trio.SocketStream) -> None:
        async with client:
            await client.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

    async with listener(say_nothing) as port:
        assert "no answer within 0.3 s" in await refusal(port=port, connect_timeout=0.3)
    for rude in (hang_up, talk_nonsense):
        async with listener(rude) as port:
            assert await refusal(port=port)


async def test_it_tries_every_address_of_a_host(
    rabbit: RabbitServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses is not the end of it."""

    async def addresses(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "rabbit.test"
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.9", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", addresses)
    async with opened(url, host="rabbit.test") as broker:
        await broker.send(message("one"))
    assert await arrived(rabbit, url, 1) == Counter(["one"])


async def test_tls(rabbit: RabbitServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """amqps:// trusts what the system trusts; messages, large ones too, go through."""
    monkeypatch.setenv("SSL_CERT_FILE", str(rabbit.certificate))
    with trio.fail_after(20):
        async with open_broker(f"amqps://127.0.0.1:{rabbit.tls_port}/{queue_of(url)}") as broker:
            await broker.send_batch([message("large", bytes(LIMIT)), *messages("m", 500, 2000)])
            await broker.send(message("last"))
    assert len(await arrived(rabbit, url, 502)) == 502


async def test_pika_is_quiet_and_nothing_tells_a_secret(
    rabbit: RabbitServer, url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """All that goes wrong is debugging at most, in our own log, without a password."""
    caplog.set_level(logging.DEBUG)
    with user(rabbit) as name:
        await refusal(port=rabbit.port)
        await refusal(port=free_port())
        async with proxied(rabbit.port) as proxy:
            async with opened(url, port=proxy.port, username=name, password=name) as broker:
                await broker.send(message("one", b"hunter2"))
                proxy.reset()
                await send_until_confirmed(broker, "two")
                await outcomes(broker, [message("large", bytes(LIMIT + 1))])
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert {record.name.split(".")[0] for record in caplog.records} == {"localdelay", "pika"}
    assert "hunter2" not in caplog.text
    assert name not in caplog.text
    assert capfd.readouterr() == ("", "")


async def test_other_users_of_pika_hear_of_their_own_errors(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What pika logs outside of our connections is not touched."""
    async with opened(url):
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", free_port()))
    assert "ERROR" in {record.levelname for record in caplog.records if record.name.startswith("pika")}


async def test_a_fault_of_our_own_ends_the_connection_and_not_the_program(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What no task expects is logged, and whoever waits gets an error."""

    async def broken(_: Connection) -> None:
        raise RuntimeError("never seen before")

    monkeypatch.setattr(Connection, "_connect", broken)
    await refusal(port=rabbit.port)
    assert "this is a bug" in caplog.text
    assert "never seen before" in caplog.text
