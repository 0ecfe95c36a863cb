"""NATS servers that misbehave, or are none at all: fakes of the tests' own."""

from __future__ import annotations

import random
from collections.abc import Callable

import nats.errors
import pytest
import trio

from localdelay import DelayNotSupported, Message
from localdelay.brokers import open_broker
from localdelay.brokers.outbox import Gauges
from tests.kit.servers.nats_fake import Received, fake_server
from tests.kit.servers.process import free_port

SUBJECT = "orders.due"
SOON = 60.0


def message(id: str) -> Message:
    return Message(id, b"payload", trio.current_time())


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def say_nothing(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def speak_http(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + bytes(100_000))


async def hang_up_after_info(stream: trio.SocketStream) -> None:
    await stream.send_all(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1000}\r\n')
    await stream.receive_some()
    await stream.aclose()


@pytest.mark.parametrize("greet", [hang_up, say_nothing, speak_http, hang_up_after_info])
async def test_what_is_no_server(greet: Callable[[trio.SocketStream], object]) -> None:
    """Opening ends in time, with a ConnectionError of one line that says where."""
    async with fake_server(greet=greet) as at:  # type: ignore[arg-type]
        with trio.fail_after(SOON), pytest.raises(ConnectionError) as raised:
            async with open_broker(f"nats://{at}/{SUBJECT}", connect_timeout=0.5):
                pass
    assert str(raised.value).startswith(f"no connection to NATS at {at}: ")
    assert "\n" not in str(raised.value)


async def test_nobody_listens() -> None:
    """It is said at once."""
    refused = pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+: .*refused|111")
    with trio.fail_after(30), refused:
        async with open_broker(f"nats://127.0.0.1:{free_port()}/{SUBJECT}", connect_timeout=60.0):
            pass


async def test_a_host_that_is_none() -> None:
    """A name that cannot even be looked up is a ConnectionError too."""
    with trio.fail_after(SOON), pytest.raises(ConnectionError, match="no connection to NATS at"):
        async with open_broker(f"nats://{'x' * 70}.invalid/{SUBJECT}", connect_timeout=2.0):
            pass


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


async def test_sends_that_are_cancelled_leave_nothing() -> None:
    """Ten thousand sends, cancelled whenever: nothing waits any more, and all others are confirmed."""
    seed = 7
    print("seed", seed)
    draw = random.Random(seed)
    most = 50
    confirmed: set[str] = set()
    waiting: list[Received] = []

    async def reply(received: Received) -> None:
        waiting.append(received)
        if len(waiting) >= draw.randrange(1, most + 1):
            draw.shuffle(waiting)
            for one in waiting:
                await one.answer()
            waiting.clear()

    async with fake_server(reply) as at:
        async with open_broker(f"nats://{at}/{SUBJECT}") as broker:

            async def send(worker: int) -> None:
                for number in range(200):
                    wait = draw.choice([0.0, 0.001, 0.01, 0.1, 1.0])
                    with trio.move_on_after(wait):
                        if number % 10:
                            await broker.send(message(f"{worker}-{number}"))
                        else:
                            await broker.send_batch([message(f"{worker}-{number}-{i}") for i in range(5)])
                        confirmed.add(f"{worker}-{number}")

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for worker in range(50):
                        nursery.start_soon(send, worker)
            most = 1
            with trio.fail_after(SOON):
                await broker.send(message("last"))
                while broker.gauges() != Gauges(0, 0, 0):  # type: ignore[attr-defined]  # noqa: ASYNC110
                    await trio.sleep(0.01)
    assert len(confirmed) > 100
