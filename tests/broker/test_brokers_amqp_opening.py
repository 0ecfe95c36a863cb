"""Connecting to RabbitMQ: what can be wrong, and what is told of it."""

from __future__ import annotations

import logging

import pika
import pika.exceptions
import pytest
import trio

from localdelay.brokers import open_broker
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
from tests.kit.servers.network import network_to
from tests.kit.servers.process import free_port

SERVER = "amqp"


async def test_what_is_wrong_with_a_connection_is_one_line(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says where and what, and no password, also where the broker just hangs up."""
    assert "Login was refused" in await refusal(port=rabbit.port)
    unknown = await refusal(port=rabbit.port, password="guest", options="?vhost=nowhere")
    assert "NOT_ALLOWED - vhost nowhere not found" in unknown
    assert "Connection refused" in await refusal(port=free_port())
    assert await refusal(host="x" * 100, port=5672)  # no host name at all
    assert await refusal(port=rabbit.tls_port)
    assert "certificate verify failed" in await refusal(port=rabbit.tls_port, scheme="amqps")
    monkeypatch.setenv("SSL_CERT_FILE", str(rabbit.certificate))
    assert "SSL" in await refusal(port=rabbit.port, scheme="amqps")


async def test_tls(rabbit: RabbitServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """amqps:// trusts what the system trusts; messages, large ones too, go through."""
    monkeypatch.setenv("SSL_CERT_FILE", str(rabbit.certificate))
    with trio.fail_after(100):
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
        async with network_to(rabbit.port) as network:
            async with opened(url, port=network.port, user=f"{name}:{name}") as broker:
                await broker.send(message("one", b"hunter2"))
                network.reset()
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
