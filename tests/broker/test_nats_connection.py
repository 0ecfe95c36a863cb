"""How a connection to NATS is lost, made again, and left; what becomes of the sends meanwhile.

Against real servers; test_nats_odd_servers.py has what real ones do not do.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
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
SERVER = "nats"


@pytest.fixture
def own(server: NatsServer, begin: Callable[[NatsServer], NatsServer]) -> NatsServer:
    """A server of the test's own, to be killed; there is a program for it, since another one runs."""
    return begin(NatsServer(more=LAME_DUCK, users=USER, owner="user:one@", durable=False))


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
