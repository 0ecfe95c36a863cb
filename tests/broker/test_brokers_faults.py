"""What every broker must do when its connection or its server fails, against a real one of each kind."""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import trio

from localdelay import Message, PartialSendError, Throttled
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.outbox import Gauges
from tests.kit.servers.all import NAMES
from tests.kit.servers.network import listening
from tests.kit.servers.process import Received, Server, free_port

SECRET = "hunter2"
GIVEN_UP = (TimeoutError, ConnectionError, Throttled)
"""What a send may come to while its server is away; what a client's own errors are besides is named below."""


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest, start_server: Callable[[str], Server]) -> Server:
    return start_server(request.param)


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh()


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time())


async def bodies(server: Server, url: str, count: int, wait: float = 60.0) -> list[bytes]:
    def read() -> list[Received]:
        return server.read(url, count, wait)

    return [one.payload for one in await trio.to_thread.run_sync(read)]


async def everything(server: Server, url: str, at_least: int) -> set[bytes]:
    """All that has arrived, also what nobody has waited for."""
    found = await bodies(server, url, at_least)
    while len(more := await bodies(server, url, len(found) + 1, 0.5)) > len(found):
        found = more
    return set(found)


async def in_thread(call: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(call)


def at(url: str, port: int) -> str:
    """The URL with another port."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


async def test_a_batch_keeps_its_order(server: Server, url: str) -> None:
    """What is in one batch, much more than sockets hold, and in one after it, arrives in that order."""
    expected = [b"%d " % number + bytes(60_000 if number % 20 == 0 else 100) for number in range(1000)]
    async with open_broker(url, confirm_timeout=60.0) as broker:
        await broker.send_batch([message(f"{n}", body) for n, body in enumerate(expected[:600])])
        await broker.send_batch([message(f"{n}", body) for n, body in enumerate(expected[600:])])
    arrived = await bodies(server, url, 1000)
    assert arrived == expected if server.keeps_order else sorted(arrived) == sorted(expected)


async def test_while_a_server_is_away(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Who may wait hears nothing of it: the connection is made again without a send that pays for it.

    Who may not hears of it in time, in one line that says where, and none of that is sent later. It is news
    for nobody else: what is logged is for debugging at most, and a payload is never in it.
    """
    caplog.set_level(logging.DEBUG)
    limit = 1.5
    waits, hurries = [await trio.to_thread.run_sync(server.fresh) for _ in range(2)]
    async with (
        open_broker(waits, confirm_timeout=200.0) as patient,
        open_broker(hurries, confirm_timeout=limit) as broker,
        trio.open_nursery() as nursery,
    ):
        await patient.send(message("before"))
        await _until_taken(broker, message("before", SECRET.encode()))
        await in_thread(server.kill)
        try:
            await trio.sleep(0.3)
            nursery.start_soon(patient.send, message("meanwhile"))
            begun = trio.current_time()
            with pytest.raises(GIVEN_UP) as raised:
                await broker.send(message("lost", SECRET.encode()))
            with pytest.raises((*GIVEN_UP, PartialSendError)):
                await broker.send_batch([message("a"), message("b")])
            assert 1.5 * limit < trio.current_time() - begun < 30
            with trio.move_on_after(0.1):
                await broker.send(message("cancelled"))
        finally:
            await in_thread(server.restart)
        await _until_taken(broker, message("last"))
    async with open_broker(waits, confirm_timeout=200.0) as patient:
        await patient.send(message("after"))
    assert "\n" not in str(raised.value)
    assert SECRET not in caplog.text + repr(raised.value)  # before it is read: others may log what they read
    loud = [record for record in caplog.records if record.levelno > logging.INFO]
    # RocketMQ's client leaves a heartbeat that fails, one every ten seconds, to the futures it waits with.
    loud = [record for record in loud if "heartbeat_callback" not in (record.exc_text or "")]
    assert not loud, loud[0].getMessage()
    assert await bodies(server, waits, 3) == [b"before", b"meanwhile", b"after"]
    # A server that has just begun may answer too late, so that what it has is sent to it again.
    assert set(await bodies(server, hurries, 2)) == {SECRET.encode(), b"last"}


async def _until_taken(broker: Broker, one: Message) -> None:
    """Send until it is confirmed: a server that is back may refuse for a moment."""
    with trio.fail_after(200):
        while True:
            try:
                await broker.send(one)
            except GIVEN_UP:
                await trio.sleep(0.1)
            else:
                return


async def test_killed_again_and_again(server: Server, url: str) -> None:
    """Sends, some cancelled, while the server dies, and dies again: what was confirmed is there."""
    seed = 20261121
    print("seed", seed)
    rng = random.Random(seed)
    confirmed: set[bytes] = set()
    begun: set[bytes] = set()
    numbers = iter(range(1_000_000))
    stopping = False

    async def publish() -> None:
        while not stopping:
            batch = [message(f"{next(numbers)}") for _ in range(rng.choice((1, 1, 1, 10)))]
            begun.update(one.payload for one in batch)
            failed: set[str] = set()
            with trio.move_on_after(rng.choice((0.0, 0.001, 0.01, 10.0))) as scope:
                try:
                    await (broker.send(batch[0]) if len(batch) == 1 else broker.send_batch(batch))
                except PartialSendError as error:
                    failed = set(error.failed or ())
                except Exception:  # noqa: BLE001 (whatever the client says of a server that is dying)
                    failed = {one.id for one in batch}
            if not scope.cancelled_caught:
                confirmed.update(one.payload for one in batch if one.id not in failed)
            await trio.sleep(0.03)  # a test that writes less has less to read back

    async with open_broker(url) as broker:
        with trio.fail_after(300):  # a JVM takes its time to start
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(publish)
                for _ in range(2):
                    await trio.sleep(rng.uniform(0.1, 0.4))
                    await in_thread(server.kill)
                    await in_thread(server.restart)
                back = len(confirmed)
                while len(confirmed) < back + 30:  # noqa: ASYNC110 (clients come back in their own time)
                    await trio.sleep(0.05)
                stopping = True
    print(server.name, "confirmed", len(confirmed), "begun", len(begun))
    arrived = await everything(server, url, len(confirmed))
    assert confirmed <= arrived <= begun


async def test_frozen_for_longer_than_the_time_limit(server: Server, url: str) -> None:
    """Sends fail within it, hold nothing, and when the server goes on they are confirmed again."""
    ended: list[Exception] = []

    async def send(number: int) -> None:
        try:
            await broker.send(message(f"{number}"))
        except Exception as error:  # noqa: BLE001 (looked at below)
            ended.append(error)

    async with open_broker(url, confirm_timeout=1.0) as broker:
        await _until_taken(broker, message("before"))
        await in_thread(server.freeze)
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for number in range(10):
                        nursery.start_soon(send, number)
        finally:
            server.thaw()
        assert len(ended) == 10
        assert all(isinstance(error, GIVEN_UP) for error in ended), ended
        await _until_taken(broker, message("last"))
    assert {b"before", b"last"} <= set(await bodies(server, url, 2))


async def test_sends_with_random_cancellations(server: Server, url: str) -> None:
    """Thousands, alone and in batches, many cut off: what was confirmed is there, and nothing unasked for."""
    seed = 20261121
    print("seed", seed)
    rng = random.Random(seed)
    confirmed: set[bytes] = set()
    begun: set[bytes] = set()

    async def publish(worker: int) -> None:
        for number in range(40):
            batch = [message(f"{worker}-{number}-{i}") for i in range(rng.choice((1, 1, 5)))]
            begun.update(one.payload for one in batch)
            with trio.move_on_after(rng.choice((0.0, 0.0005, 0.002, 60.0))) as scope:
                await (broker.send(batch[0]) if len(batch) == 1 else broker.send_batch(batch))
            if not scope.cancelled_caught:
                confirmed.update(one.payload for one in batch)

    async with open_broker(url) as broker:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for worker in range(40):
                    nursery.start_soon(publish, worker)
            await broker.send(message("last"))
            while broker.gauges() != Gauges(0, 0, 0):  # type: ignore[attr-defined]  # noqa: ASYNC110 (what was cut off is forgotten)
                await trio.sleep(0.01)
    arrived = await everything(server, url, len(confirmed) + 1)
    assert confirmed | {b"last"} <= arrived <= begun | {b"last"}


def left_open() -> Counter[str]:
    gc.collect()  # what an earlier test has left for it is not this one's
    files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    tasks = trio.lowlevel.current_statistics().tasks_living
    # Trio keeps its idle worker threads for a while.
    threads = (thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio"))
    return Counter({"files": files, "tasks": tasks}) + Counter(threads)


async def test_nothing_is_left_open(server: Server, url: str) -> None:
    """Neither descriptors nor tasks nor threads, however the block ends or is not entered."""
    async with open_broker(url) as broker:
        await broker.send(message("first"))  # what a client makes once for good
    with pytest.raises(ConnectionError):
        async with open_broker(at(url, free_port()), connect_timeout=2.0):
            pass
    before = left_open()
    async with open_broker(url) as broker:
        await broker.send(message("one"))
    with trio.move_on_after(0.3):
        async with open_broker(url):
            await trio.sleep_forever()
    try:
        async with open_broker(url, connect_timeout=2.0):
            server.freeze()
    finally:
        server.thaw()
    with pytest.raises(ConnectionError):
        async with open_broker(at(url, free_port()), connect_timeout=2.0):
            pass
    with trio.move_on_after(20):  # a client may end what it has in its own time
        while left_open() - before:  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.02)
    assert not left_open() - before


@pytest.mark.parametrize("host", ["nowhere.invalid", f"{'x' * 70}.invalid"], ids=["unknown", "no name"])
async def test_where_there_is_no_such_host(server: Server, url: str, host: str) -> None:
    """The error says so in one line, also of what cannot even be looked up."""
    with trio.fail_after(60), pytest.raises(ConnectionError, match=host) as raised:
        async with open_broker(url.replace("127.0.0.1", host), connect_timeout=3.0):
            pass
    assert "\n" not in str(raised.value)


async def test_somebody_who_is_no_such_broker(server: Server, url: str) -> None:
    """Whatever it says, or does not say, is a ConnectionError of one line within the time limit."""
    said = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\x00" * 500, b"x" * 50_000, b"", None)
    async with trio.open_nursery() as nursery:
        for says in said:
            nursery.start_soon(_is_no_such_broker, url, says)


async def _is_no_such_broker(url: str, says: bytes | None) -> None:
    """One that says this, or hangs up."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            if says is None:
                return
            await stream.send_all(says)
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    async with listening(serve) as port:
        with trio.fail_after(60), pytest.raises(ConnectionError) as raised:
            async with open_broker(at(url, port), connect_timeout=1.0):
                pass
    assert "127.0.0.1" in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_an_option_that_it_does_not_know_is_named(server: Server, url: str) -> None:
    """A ValueError, before anything is connected."""
    with pytest.raises(ValueError, match="nonsense"):
        async with open_broker(f"{at(url, free_port())}?nonsense=1"):
            pass
