"""How a connection to NATS is lost, made again, and left; what becomes of the sends meanwhile.

Against real servers; test_nats_odd_servers.py has what real ones do not do.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
import pytest
import trio
import trio.testing

from localdelay import DelayNotSupported, Message, PartialSendError, PermanentSendError
from localdelay.brokers import Broker, ConnectionClosed, nats_line, open_broker
from localdelay.brokers.outbox import Gauges
from tests.kit.servers.nats import NatsServer, stream_of
from tests.kit.servers.process import free_port

SUBJECT = "orders.due"
SOON = 60.0
"""Seconds: what a busy machine may need, and no more than what hangs."""
AT_ONCE = 5.0
"""Seconds: long before `confirm_timeout`, which is 10, is over."""
LAME_DUCK = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "1ms"'
USER = "{user: user, password: one}"


@pytest.fixture
def own(start_server: Callable[[str], NatsServer]) -> Iterator[NatsServer]:
    """A server of the test's own, to be killed; there is a program for it, since another one runs."""
    start_server("nats")
    server = NatsServer(more=LAME_DUCK, users=USER, owner="user:one@", durable=False)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def opened(server: NatsServer, **options: object) -> AsyncIterator[tuple[Broker, str]]:
    """A broker, and the URL that it publishes to."""
    url = await in_thread(server.fresh)
    at = f"nats://user:one@{server.host}{urlsplit(url).path}"
    async with open_broker(at, **options) as broker:  # type: ignore[arg-type]
        yield broker, url


async def in_thread(work: Callable[[], object]) -> str:
    return str(await trio.to_thread.run_sync(work))


def message(id: str, payload: bytes = b"payload", **fields: object) -> Message:
    return Message(id, payload, trio.current_time(), **fields)  # type: ignore[arg-type]


def ids(server: NatsServer, url: str, count: int) -> list[str]:
    return [one.headers["Localdelay-Id"] for one in server.read(url, count)]


async def send_until_taken(broker: Broker, id: str) -> list[Exception]:
    """Send, as a queue does, until it is confirmed; the errors on the way."""
    errors: list[Exception] = []
    with trio.fail_after(SOON):
        while True:
            try:
                await broker.send(message(id))
            except Exception as error:  # noqa: BLE001 (to be looked at)
                errors.append(error)
                await trio.sleep(0.02)
            else:
                return errors


# Lost and made again.


async def test_what_is_under_way_fails_at_once_when_the_server_dies(own: NatsServer) -> None:
    """Each send raises a ConnectionError of its own, long before its time is over."""
    failed: list[BaseException] = []
    async with opened(own) as (broker, _):

        async def send(number: int) -> None:
            with pytest.raises(ConnectionError, match="lost") as raised:
                if number:
                    await broker.send(message(f"m{number}"))
                else:
                    await broker.send_batch([message("a"), message("b")])
            failed.append(raised.value)

        own.freeze()
        with trio.fail_after(AT_ONCE):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(send, number)
                await trio.testing.wait_all_tasks_blocked()
                own.kill()
    assert len({id(error) for error in failed}) == 10


async def test_sends_wait_for_the_connection(own: NatsServer) -> None:
    """While there is no server they wait; as soon as it is back, they go out, each once."""
    async with opened(own) as (broker, url):
        own.kill()
        await until_lost(broker)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(broker.send, message(f"m{number}"))
            nursery.start_soon(broker.send_batch, [message(f"b{number}") for number in range(100)])
            await trio.testing.wait_all_tasks_blocked(0.2)
            await in_thread(own.restart)
            with trio.fail_after(SOON):
                await broker.send(message("last"))
        expected = [f"m{number}" for number in range(100)] + [f"b{number}" for number in range(100)]
        assert sorted(ids(own, url, 201)) == sorted([*expected, "last"])


async def test_sends_do_not_wait_for_ever(own: NatsServer) -> None:
    """After confirm_timeout a send without a connection was not sent, says so, and is not sent later."""
    async with opened(own, confirm_timeout=0.3) as (broker, url):
        own.kill()
        await until_lost(broker)
        with trio.fail_after(SOON), pytest.raises(ConnectionError, match="no connection") as raised:
            await broker.send(message("given up"))
        assert raised.value.__cause__ is not None
        with trio.move_on_after(0.05):
            await broker.send(message("cancelled"))
        await in_thread(own.restart)
        await send_until_taken(broker, "last")
        assert set(ids(own, url, 1)) == {"last"}


async def test_a_delayed_publish_does_not_wait_for_the_connection(own: NatsServer) -> None:
    """Its caller may have another way: it fails at once, also where it waits already."""
    async with opened(own) as (broker, _):
        own.freeze()
        for number in range(3):  # so much that the rest has to wait
            with trio.move_on_after(0.1):
                await broker.send_batch([message(f"{number}", bytes(1_000_000)) for _ in range(10)])
        with trio.fail_after(AT_ONCE):
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    with pytest.raises(ConnectionError, match="no connection"):
                        await broker.publish_delayed(message("waits"), 1.0)

                nursery.start_soon(publish)
                await trio.testing.wait_all_tasks_blocked()
                own.kill()
            with pytest.raises(ConnectionError, match="no connection"):
                await broker.publish_delayed(message("late"), 1.0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGKILL])
async def test_however_the_server_ends(own: NatsServer, how: signal.Signals) -> None:
    """Gracefully, in lame duck mode, or killed: the connection is made again when it is back."""
    async with opened(own) as (broker, url):
        await broker.send(message("before"))
        own.signal(how)
        await until_lost(broker)
        own.kill()
        await in_thread(own.restart)
        await send_until_taken(broker, "after")
        assert set(ids(own, url, 2)) == {"before", "after"}


async def test_again_and_again(own: NatsServer) -> None:
    """Six times killed and restarted, with sends all the time: all that was confirmed is there."""
    seed = 5
    print("seed", seed)
    pauses = random.Random(seed)
    confirmed: list[str] = []
    async with opened(own) as (broker, url):

        async def send(worker: int) -> None:
            for number in range(10_000):
                id = f"{worker}-{number}"
                await send_until_taken(broker, id)
                confirmed.append(id)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for worker in range(20):
                nursery.start_soon(send, worker)
            for _ in range(6):
                await trio.sleep(pauses.uniform(0.02, 0.2))
                own.kill()
                await trio.sleep(pauses.uniform(0.0, 0.2))
                await in_thread(own.restart)
            back = len(confirmed)
            with trio.fail_after(SOON):
                while len(confirmed) < back + 100:  # noqa: ASYNC110 (each worker finds it by itself)
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert set(ids(own, url, len(confirmed))) >= set(confirmed)


async def test_a_server_that_says_why_it_hangs_up(own: NatsServer) -> None:
    """A user who is thrown out comes in again as soon as he may: nats-py alone would have ended for good."""
    async with opened(own) as (broker, _):
        await broker.send(message("before"))
        own.users = USER.replace("one", "two")
        await in_thread(own.reload)
        await until_lost(broker)
        with trio.fail_after(SOON):
            while True:
                with pytest.raises(ConnectionError, match="no connection") as raised:
                    await broker.publish_delayed(message("late"), 1.0)
                if "Authorization Violation" in str(raised.value):
                    break
                await trio.sleep(0.01)
        own.users = USER
        await in_thread(own.reload)
        with trio.fail_after(SOON):
            await broker.send(message("after"))


async def test_streams_may_come_back_after_their_server(
    own: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream in memory is gone when the server is back: that is permanent only when some time is over."""
    monkeypatch.setattr(nats_line, "_STREAMS_BACK_WITHIN", 2.0)
    await in_thread(lambda: own.make_stream(SUBJECT, storage="memory"))
    async with open_broker(f"nats://user:one@{own.host}/{SUBJECT}") as broker:
        await broker.send(message("before"))
        own.kill()
        await until_lost(broker)
        await in_thread(own.restart)
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await broker.send(message("after"))
        await trio.sleep(2.0)
        monkeypatch.setattr(nats_line, "_LOOKUP_HOLDS", 0.2)
        with pytest.raises(PermanentSendError, match="no stream holds"):
            await broker.send(message("after"))
        await in_thread(lambda: own.make_stream(SUBJECT, storage="memory"))
        await trio.sleep(0.3)
        await broker.send(message("after"))


async def test_a_server_that_stops_answering_is_left(
    own: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that answers no ping is dropped, though much waits to be written to it, and made anew."""
    monkeypatch.setattr(nats_line, "_PING_EVERY", 0.1)
    async with opened(own, connect_timeout=0.5) as (broker, url):
        own.freeze()
        with trio.fail_after(AT_ONCE):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    with pytest.raises(ConnectionError, match="lost: stale connection"):
                        await broker.send(message("under way"))

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                with trio.move_on_after(0.1):
                    await broker.send_batch([message("large", bytes(1_000_000)) for _ in range(20)])
        await trio.sleep(1.0)  # nor do new ones get an answer
        monkeypatch.undo()
        own.thaw()
        await send_until_taken(broker, "after")
        assert "after" in ids(own, url, 1)


async def test_frozen_sends_time_out_and_hold_little(own: NatsServer) -> None:
    """What is not written is not sent when nobody waits for it any more; nothing piles up."""
    async with opened(own, confirm_timeout=0.2) as (broker, url):
        own.freeze()
        try:
            for attempt in range(10):
                with pytest.raises((TimeoutError, PartialSendError, ConnectionError)):
                    await broker.send_batch([message(f"{attempt}", bytes(1_000_000)) for _ in range(20)])
            assert broker.gauges() == Gauges(0, 0, 0)  # type: ignore[attr-defined]
        finally:
            own.thaw()
        await send_until_taken(broker, "last")
        arrived = ids(own, url, 2)
        assert "last" in arrived
        assert len(arrived) < 20


async def until_lost(broker: Broker) -> None:
    with trio.fail_after(SOON), suppress(ConnectionError):
        while True:
            with suppress(DelayNotSupported):  # which it says only where there is a connection
                await broker.cancel_delayed("x", None)
            await trio.sleep(0.005)


# Left.


async def test_leaving_takes_no_time_though_the_server_is_frozen(own: NatsServer) -> None:
    """What is under way is told, and nothing is waited for."""
    failed: list[str] = []
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(ConnectionClosed):
                    await broker.send_batch([message("x", bytes(1_000_000)) for _ in range(10)])
                failed.append("closed")

            async with opened(own) as (broker, _):
                own.freeze()
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked(0.1)
                left = trio.current_time()
            assert trio.current_time() - left < AT_ONCE
            own.thaw()
    assert failed == ["closed"]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_nothing_is_left_behind(own: NatsServer, capfd: pytest.CaptureFixture[str]) -> None:
    """After the block there is no socket and no thread more than before, and nothing was printed."""
    gc.collect()  # what earlier tests have left is not counted
    threads = threading.active_count()
    files = open_files()
    for end in ("", "kill", "freeze", "cancel"):
        with trio.CancelScope() as scope:
            async with open_broker(f"nats://user:one@{own.host}/{SUBJECT}") as broker:
                with pytest.raises(PermanentSendError):
                    await broker.send(message("x"))
                if end == "kill":
                    own.kill()
                    await until_lost(broker)
                    await trio.sleep(0.3)
                elif end == "freeze":
                    own.freeze()
                elif end == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
        if end == "kill":
            own.restart()
        elif end == "freeze":
            own.thaw()
        gc.collect()
        assert open_files() <= files, end
    assert threading.active_count() <= threads
    assert capfd.readouterr() == ("", "")


async def test_the_blocks_own_exceptions_come_out_as_they_are(own: NatsServer) -> None:
    """An error, a group of the caller's, and a cancellation."""
    for raised in (LookupError("mine"), ExceptionGroup("mine", [ValueError(), KeyError()])):
        with pytest.raises(type(raised)) as caught:
            async with opened(own):
                raise raised
        assert caught.value is raised
        assert caught.value.__cause__ is None
    with trio.CancelScope() as scope:
        async with opened(own):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


# Several servers.


@pytest.fixture
def cluster(start_server: Callable[[str], NatsServer]) -> Iterator[list[NatsServer]]:
    """Three servers that know one another."""
    start_server("nats")
    for attempt in range(3):
        servers = cluster_of(3)
        try:
            for server in servers:
                server.start()
        except RuntimeError:  # a port was taken in the meantime
            for server in servers:
                server.stop()
            assert attempt < 2
        else:
            break
    yield servers
    for server in servers:
        server.stop()


def cluster_of(count: int) -> list[NatsServer]:
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    route = 'server_name: n{}\ncluster {{ name: test, listen: "127.0.0.1:{}", routes: [{}] }}'
    return [
        NatsServer(more=route.format(number, port, routes), durable=False)
        for number, port in enumerate(ports)
    ]


async def test_a_cluster(cluster: list[NatsServer]) -> None:
    """Another server takes over the connection; a stream whose server is away is no stream that is not."""
    place = await make_stream(cluster)
    other, _ = (server for server in cluster if server is not place)
    async with open_broker(f"nats://{other.host}/{SUBJECT}", confirm_timeout=1.0) as broker:
        await broker.send(message("before"))
        await in_thread(place.kill)
        with trio.fail_after(SOON):
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                while True:
                    with suppress(TimeoutError):  # nobody has noticed yet
                        await broker.send(message("away"))
        await in_thread(place.restart)
        errors = await send_until_taken(broker, "after")
        assert not any(isinstance(error, PermanentSendError) for error in errors)
        await in_thread(other.kill)
        await send_until_taken(broker, "taken over")


async def make_stream(cluster: list[NatsServer]) -> NatsServer:
    """Make a stream as soon as the cluster has agreed on a leader; the server that the stream is on."""
    with trio.fail_after(100):
        while True:
            with suppress(AssertionError, nats.errors.Error):
                await in_thread(lambda: cluster[0].ask("INFO", timeout=0.3))
                break
            await trio.sleep(0.05)
    await in_thread(lambda: cluster[0].make_stream(SUBJECT))
    info = await trio.to_thread.run_sync(lambda: cluster[0].ask(f"STREAM.INFO.{stream_of(SUBJECT)}"))
    return cluster[int(info["cluster"]["leader"].removeprefix("n"))]
