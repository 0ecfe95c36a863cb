"""What every broker must do, against a real one of each kind; what is special about one has its own file."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import pytest
import trio

from localdelay import (
    BatchPolicy,
    DelayNotSupported,
    DelayQueue,
    Message,
    PartialSendError,
    PermanentSendError,
    RetryPolicy,
    Statistics,
    Throttled,
    open_delay_queue,
)
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from tests.kit.servers.all import NAMES
from tests.kit.servers.process import Received, Server, free_port

MANY = 2000
FROZEN = 3.0
CLOCK_STEP = 0.002  # brokers stamp arrivals in whole milliseconds
RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5)


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest, start_server: Callable[[str], Server]) -> Server:
    return start_server(request.param)


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh()


def message(id: str, payload: bytes | None = None, delay: float = 0.0, **fields: object) -> Message:
    body = id.encode() if payload is None else payload
    return Message(id, body, trio.current_time() + delay, **fields)  # type: ignore[arg-type]


def ids(received: list[Received]) -> Counter[str]:
    """The ids, from the payloads: not every broker has headers. Those that there are must agree."""
    counted: Counter[str] = Counter()
    for one in received:
        id = one.payload.partition(b" ")[0].decode()
        assert one.headers.get(ID, id) == id
        counted[id] += 1
    return counted


def early(received: list[Received]) -> list[float]:
    """By how many seconds messages have arrived before their execute-at, where it travels with them."""
    dues = [(one, one.headers.get(EXECUTE_AT)) for one in received]
    by = [datetime.fromisoformat(due).timestamp() - one.at for one, due in dues if due is not None]
    return [seconds for seconds in by if seconds > CLOCK_STEP]


async def read(server: Server, url: str, count: int, wait: float = 60.0) -> list[Received]:
    return await trio.to_thread.run_sync(lambda: server.read(url, count, wait))


@pytest.fixture
def servers(start_server: Callable[[str], Server]) -> list[Server]:
    """All that are installed; of the others the tests of one broker tell."""
    found: list[Server] = []
    for name in NAMES:
        with suppress(pytest.skip.Exception):
            found.append(start_server(name))
    return found


async def at_once(scene: Callable[[Server, str], Awaitable[None]], servers: list[Server]) -> None:
    """Play a scene with each broker; they mostly wait, and so do it together."""

    async def play(server: Server) -> None:
        try:
            await scene(server, await trio.to_thread.run_sync(server.fresh))
        except BaseException as error:
            error.add_note(f"with {server.name}")
            raise

    assert servers
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(play, server)


@asynccontextmanager
async def queue_to(broker: Broker, *, batches: bool = False, workers: int = 50) -> AsyncIterator[DelayQueue]:
    """A queue that sends to this broker; leaving it has a time limit."""
    sender = (
        {"send_batch": broker.send_batch, "batch": BatchPolicy(max_messages=100)}
        if batches
        else {"send": broker.send}
    )
    with trio.fail_after(200):
        async with open_delay_queue(
            **sender,  # type: ignore[arg-type]
            capacity=10_000,
            workers=workers,
            retry=RETRY,
            send_timeout=60.0,
        ) as queue:
            yield queue


async def test_it_carries_payload_headers_and_id(server: Server, url: str) -> None:
    """Bytes arrive as they are, and the id, the attempt and execute-at with them where there are headers."""
    payload = random.Random(4).randbytes(500)
    async with open_broker(url) as broker:
        begun = time.time()
        sent = message("one", payload, -1.5, headers={"Trace": "ü 1"}, attempt=7)
        await broker.send(sent)
        ended = time.time()
        if server.takes_empty:
            await broker.send(message("none", b""))
        else:
            with pytest.raises(PermanentSendError):
                await broker.send(message("none", b""))
    received, *empty = await read(server, url, 1 + server.takes_empty)
    assert received.payload == payload
    assert [one.payload for one in empty] == [b""] * server.takes_empty
    if received.headers:
        headers = dict(received.headers)
        due = datetime.fromisoformat(headers.pop(EXECUTE_AT)).timestamp()
        assert headers == {ID: "one", ATTEMPT: "7", "Trace": "ü 1"}
        assert begun - 1.5 - CLOCK_STEP <= due <= ended - 1.5 + CLOCK_STEP


@pytest.mark.parametrize("batches", [False, True], ids=["send", "send_batch"])
async def test_mixed_delays_arrive_exactly_once(
    servers: list[Server], batches: bool, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """2,000 messages with delays of their own: each is there once, none early, and the ledger agrees."""
    seed = 20261121
    print("seed", seed)

    async def scene(server: Server, url: str) -> None:
        delays = random.Random(seed)
        async with open_broker(url) as broker, queue_to(broker, batches=batches) as queue:
            for number in range(MANY):
                queue.put_nowait(b"m%d " % number + bytes(500), delay=delays.uniform(0, 1.5), id=f"m{number}")
            conserved(queue)
        assert conserved(queue).sent == MANY
        received = await read(server, url, MANY)
        assert ids(received) == Counter(f"m{number}" for number in range(MANY))
        assert early(received) == []

    await at_once(scene, servers)


async def test_two_hundred_sends_at_once(server: Server, url: str) -> None:
    """Sends do not wait for one another."""
    async with open_broker(url) as broker:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(broker.send, message(f"m{number}"))
    assert ids(await read(server, url, 200)) == Counter(f"m{number}" for number in range(200))


async def test_a_message_that_is_too_large_can_never_work(server: Server, url: str) -> None:
    """It is a PermanentSendError, again and again, and the messages after it go through."""
    async with open_broker(url) as broker:
        for _ in range(2):
            with trio.fail_after(60), pytest.raises(PermanentSendError):
                await broker.send(message("large", bytes(server.too_large)))
        with trio.fail_after(60):
            await broker.send(message("small"))
    assert ids(await read(server, url, 1)) == Counter(["small"])


async def test_a_batch_names_what_failed(server: Server, url: str) -> None:
    """One message of three is too large: a PartialSendError names it, and the others have arrived once."""
    async with open_broker(url) as broker:
        await broker.send_batch([])
        # Twice: a broker that says by an error of the connection what was too large knows by then.
        for attempt in range(2):
            batch = [message("a"), message("large", bytes(server.too_large)), message("b")]
            with trio.fail_after(60), pytest.raises(PartialSendError) as raised:
                await broker.send_batch(batch)
            assert raised.value.failed is not None
            if attempt:
                assert set(raised.value.failed) == {"large"}
        assert isinstance(raised.value.failed["large"], PermanentSendError)
    arrived = ids(await read(server, url, 4))
    assert set(arrived) == {"a", "b"}


async def test_a_large_message_harms_no_other(
    server: Server, url: str, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """Among messages that are sent at the same time it alone becomes a dead letter; the others arrive."""
    async with open_broker(url) as broker, queue_to(broker) as queue:
        for number in range(100):
            queue.put_nowait(b"m%d" % number, delay=0.0)
        queue.put_nowait(bytes(server.too_large), delay=0.0)
        for number in range(100, 200):
            queue.put_nowait(b"m%d" % number, delay=0.0)
    statistics = conserved(queue)
    assert (statistics.sent, statistics.dead) == (200, 1)
    arrived = await read(server, url, 200)
    assert {one.payload for one in arrived} == {b"m%d" % number for number in range(200)}


async def test_native_delay_or_none(server: Server, url: str) -> None:
    """Where the broker has a delay of its own the message comes when it is over, and never before it."""
    async with open_broker(url) as broker:
        if not broker.native_delay:
            with pytest.raises(DelayNotSupported):
                await broker.publish_delayed(message("late"), 1.2)
            return
        begun = time.time()
        with trio.fail_after(60):
            await broker.publish_delayed(message("late", delay=1.0), 1.0)
            await broker.publish_delayed(message("now"), 0.0)
        looks = [await read(server, url, count) for count in (1, 2)]  # the first while it is delayed
    assert ids(looks[0])["now"] == 1
    assert ids(looks[1]) == Counter(["now", "late"])
    for look in looks:
        assert all(one.at - begun >= 1.0 - CLOCK_STEP for one in look if one.payload == b"late")
        assert early(look) == []
    for delay in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="delay"):
            await broker.publish_delayed(message("never"), delay)


async def test_killed_and_restarted_nothing_is_lost(
    servers: list[Server], conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """2,000 messages fall due, in the midst of which the broker dies and comes back."""

    async def scene(server: Server, url: str) -> None:
        async with open_broker(url) as broker, queue_to(broker) as queue:
            for number in range(MANY // 2):
                queue.put_nowait(b"m%d" % number, delay=0.8 * number / MANY, id=f"m{number}")
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(server.kill)
            for number in range(MANY // 2, MANY):
                queue.put_nowait(b"m%d" % number, delay=0.8 * number / MANY, id=f"m{number}")
            await trio.sleep(0.3)
            assert conserved(queue).pending >= MANY // 2
            await trio.to_thread.run_sync(server.restart)
        assert conserved(queue).sent == MANY
        arrived = ids(await read(server, url, MANY))
        assert set(arrived) == {f"m{number}" for number in range(MANY)}
        duplicates = arrived.total() - MANY
        print(server.name, "duplicates", duplicates)
        assert duplicates <= 50  # what was in flight: one message a worker

    await at_once(scene, servers)


async def test_throttling_is_recognised(
    server: Server, url: str, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """At its limit: Throttled, caused by the client's own; when that is over the messages go through."""
    async with open_broker(url, confirm_timeout=5.0) as broker:
        with server.throttled(url):
            with trio.fail_after(200), pytest.raises(Throttled) as raised:
                for number in range(1000):  # some let a few pass first
                    if server.throttles_delayed:
                        await broker.publish_delayed(message(f"before{number}"), 5.0)
                    else:
                        await broker.send(message(f"before{number}"))
            assert raised.value.__cause__ is not None
            if not server.throttles_delayed:
                with trio.fail_after(200), pytest.raises((Throttled, PartialSendError)):
                    for batch in range(100):
                        await broker.send_batch([message(f"batch{batch}-{number}") for number in range(100)])
        async with queue_to(broker) as queue:
            for number in range(100):
                queue.put_nowait(b"m%d" % number, delay=0.0, id=f"m{number}")
        assert conserved(queue).sent == 100
    arrived = set(ids(await read(server, url, 100)))
    assert arrived >= {f"m{number}" for number in range(100)}


async def test_frozen_for_three_seconds(
    servers: list[Server], conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """Sends wait or time out while it stands still, and go on; nothing is lost, and nothing comes early."""
    count = 500

    async def scene(server: Server, url: str) -> None:
        async with open_broker(url) as broker, queue_to(broker) as queue:
            for number in range(count // 2):
                queue.put_nowait(b"m%d" % number, delay=2.0 * number / count, id=f"m{number}")
            await trio.sleep(0.5)
            await trio.to_thread.run_sync(server.freeze)
            try:
                for number in range(count // 2, count):
                    queue.put_nowait(b"m%d" % number, delay=2.0 * number / count, id=f"m{number}")
                await trio.sleep(FROZEN)
                assert conserved(queue).pending >= count // 2
            finally:
                server.thaw()
        assert conserved(queue).sent == count
        received = await read(server, url, count)
        assert set(ids(received)) == {f"m{number}" for number in range(count)}
        assert early(received) == []

    await at_once(scene, servers)


async def test_a_cancelled_send_leaves_the_broker_usable(server: Server, url: str) -> None:
    """Cancelled at once, or while they are under way, sends end; those after them are confirmed."""
    async with open_broker(url) as broker:
        for wait in (0.0, 0.0, 0.001, 0.003):
            with trio.move_on_after(wait):
                await broker.send_batch([message(f"batch{wait}-{number}") for number in range(50)])
            with trio.move_on_after(wait):
                await broker.send(message(f"single{wait}"))
        with trio.fail_after(100):
            await broker.send(message("last"))
    assert "last" in ids(await read(server, url, 1))


async def test_sends_under_way_end_with_the_block(server: Server, url: str) -> None:
    """Leaving the block while a frozen broker keeps sends waiting ends them, and does not hang."""
    ended: list[str] = []

    async def send(broker: Broker, number: int) -> None:
        try:
            await broker.send(message(f"m{number}"))
        except Exception as error:  # noqa: BLE001 (whatever the client says)
            ended.append(type(error).__name__)
        else:
            ended.append("confirmed")

    try:
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                async with open_broker(url) as broker:
                    await trio.to_thread.run_sync(server.freeze)
                    for number in range(10):
                        nursery.start_soon(send, broker, number)
                    await trio.sleep(0.2)
                    assert not ended
    finally:
        server.thaw()
    assert len(ended) == 10


async def test_used_after_its_block_it_fails_at_once(server: Server, url: str) -> None:
    """A broker that was closed raises an error, and neither hangs nor sends."""
    async with open_broker(url) as broker:
        await broker.send(message("in time"))
    with trio.fail_after(20):
        for _ in range(2):
            with pytest.raises(Exception, match="closed"):
                await broker.send(message("late"))
            with pytest.raises(Exception, match="closed"):
                await broker.send_batch([message("late")])


async def test_an_error_of_the_block_comes_out_as_it_is(server: Server, url: str) -> None:
    """What the caller's own block raises is neither wrapped nor renamed, and a cancellation is Trio's."""
    for own in (ConnectionError("user of the block"), ExceptionGroup("mine", [ValueError(), KeyError()])):
        with pytest.raises(type(own)) as raised:
            async with open_broker(url):
                raise own
        assert raised.value is own
        assert raised.value.__cause__ is None
    with trio.CancelScope() as scope:
        async with open_broker(url):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("name", NAMES)
async def test_where_nobody_listens_the_error_is_one_line(name: str) -> None:
    """A ConnectionError within seconds, that says where and shows no password."""
    user = "" if name == "beanstalkd" else "user:hunter2@"
    with trio.fail_after(100), pytest.raises(ConnectionError) as refused:
        async with open_broker(f"{name}://{user}127.0.0.1:{free_port()}/orders"):
            pass
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)
