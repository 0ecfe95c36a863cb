"""NATS servers that misbehave, or are none at all: fakes of the tests' own."""

from __future__ import annotations

import nats.errors
import pytest
import trio

from localdelay import DelayNotSupported, Message
from localdelay.brokers import open_broker
from tests.kit.servers.nats_fake import Received, fake_server

SUBJECT = "orders.due"
SOON = 60.0


def message(id: str) -> Message:
    return Message(id, b"payload", trio.current_time())


async def hang_up_after_info(stream: trio.SocketStream) -> None:
    await stream.send_all(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1000}\r\n')
    await stream.receive_some()
    await stream.aclose()


async def test_a_server_that_hangs_up_after_its_greeting() -> None:
    """Opening ends in time, with a ConnectionError of one line that says where."""
    async with fake_server(greet=hang_up_after_info) as at:
        with trio.fail_after(SOON), pytest.raises(ConnectionError) as raised:
            async with open_broker(f"nats://{at}/{SUBJECT}", connect_timeout=0.5):
                pass
    assert str(raised.value).startswith(f"no connection to NATS at {at}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("version", "works"),
    [("2.11.9", False), ("2.12.0", True), ("2.12.0-beta.1", True), ("3.0.0", True), ("dev", False)],
)
async def test_the_delay_is_the_servers(version: str, works: bool) -> None:
    """Before 2.12 the server would store a schedule like any message, and nobody would ever read it."""
    async with fake_server(version=version) as at:
        async with open_broker(f"nats://{at}/{SUBJECT}") as broker:
            assert broker.native_delay is works
            if works:
                await broker.publish_delayed(message("x"), 1.0)
            else:
                with pytest.raises(DelayNotSupported, match=r"2\.12"):
                    await broker.publish_delayed(message("x"), 1.0)


@pytest.mark.parametrize("answer", [b"OK", b"{}", b""])
async def test_an_answer_of_something_else_confirms_nothing(answer: bytes) -> None:
    """A service that listens to the same subject has stored nothing."""

    async def reply(received: Received) -> None:
        await received.answer(answer)

    async with fake_server(reply) as at:
        async with open_broker(f"nats://{at}/{SUBJECT}") as broker:
            with pytest.raises(nats.errors.Error, match="no stream"):
                await broker.send(message("x"))


async def test_a_late_or_second_answer_harms_nobody() -> None:
    """A send that timed out stays failed, and the next one gets its own answer."""
    held: list[Received] = []

    async def reply(received: Received) -> None:
        if not held:
            held.append(received)
            return
        await held[0].answer()
        await received.answer()
        await received.answer(b"{}")

    async with fake_server(reply) as at:
        async with open_broker(f"nats://{at}/{SUBJECT}", confirm_timeout=1.0) as broker:
            with pytest.raises(TimeoutError):
                await broker.send(message("late"))
            for _ in range(3):
                await broker.send(message("x"))


async def test_cut_off_in_the_midst_of_an_answer() -> None:
    """Half an answer before the end confirms nothing, and is forgotten on the next connection."""
    begun: list[Received] = []

    async def reply(received: Received) -> None:
        begun.append(received)
        if len(begun) == 1:
            await received.stream.send_all(b"MSG %b 1 23\r\n" % received.reply.encode() + b'{"stream":')
            await received.stream.aclose()
        else:
            await received.answer()

    async with fake_server(reply) as at:
        async with open_broker(f"nats://{at}/{SUBJECT}") as broker:
            with pytest.raises(ConnectionError, match="lost"):
                await broker.send(message("x"))
            with trio.fail_after(SOON):
                await broker.send(message("x"))
