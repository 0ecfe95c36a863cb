"""What is special about a real Kafka: topics that go, leaders that die, passwords, sizes, quotas."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
import trio

from localdelay import (
    AdaptiveLimit,
    DelayQueue,
    Message,
    PartialSendError,
    PermanentSendError,
    RetryPolicy,
    Statistics,
    Throttled,
    open_delay_queue,
)
from localdelay.brokers import open_broker
from localdelay.brokers.wire import ID
from tests.kit.servers.kafka import KafkaServer

SERVER = "kafka"

RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5)


@pytest.fixture
def three(server: KafkaServer, begin: Callable[[KafkaServer], KafkaServer]) -> KafkaServer:
    """A cluster; there is a program for it, since `server` runs."""
    return begin(KafkaServer(3))


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time())


async def arrived(server: KafkaServer, url: str, count: int, wait: float = 30.0) -> Counter[str]:
    received = await trio.to_thread.run_sync(lambda: server.read(url, count, wait))
    return Counter(one.headers[ID] for one in received)


async def in_thread(call: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(call)


async def test_a_topic_that_is_missing(server: KafkaServer) -> None:
    """The block is not entered, and the error names the topic."""
    with trio.fail_after(200), pytest.raises(ConnectionError, match=r"'nowhere'.*UNKNOWN_TOPIC_OR_PART"):
        async with open_broker(server.url("nowhere"), connect_timeout=60.0):
            pass


async def test_a_topic_that_is_deleted_in_mid_run(server: KafkaServer) -> None:
    """What is sent to it fails for good, or as not confirmed in time; none of it hangs."""
    url = server.fresh()
    options = "topic.metadata.propagation.max.ms=1000&topic.metadata.refresh.interval.ms=500"
    async with open_broker(f"{url}?{options}", confirm_timeout=10.0) as broker:
        await broker.send(message("first"))
        await in_thread(lambda: server.delete_topic(url))
        with trio.fail_after(100), pytest.raises(PermanentSendError, match=r"_UNKNOWN_|UNKNOWN_TOPIC"):
            while True:
                try:
                    await broker.send(message("on its way"))
                except TimeoutError:
                    continue
                await trio.sleep(0.1)


async def test_a_leader_that_is_killed(
    three: KafkaServer, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """Another node leads: 2,000 messages arrive, none is lost and none is there twice."""
    url = three.fresh()
    async with open_broker(url, confirm_timeout=40.0) as broker:
        with trio.fail_after(200):
            async with open_delay_queue(
                send=broker.send, capacity=3000, workers=50, retry=RETRY, send_timeout=60.0
            ) as queue:
                for number in range(2000):
                    queue.put_nowait(b"", delay=2.0 * number / 2000, id=f"m{number}")
                await trio.sleep(0.7)
                await in_thread(three.nodes[0].process.kill)
        assert conserved(queue).sent == 2000
    assert await arrived(three, url, 2000, 30.0) == Counter(f"m{number}" for number in range(2000))


async def test_given_up_while_the_broker_is_away_it_may_be_stored(server: KafkaServer) -> None:
    """What is not confirmed within `delivery.timeout.ms` is a TimeoutError that says what is wrong."""
    url = server.fresh()
    outcomes: Counter[str] = Counter()
    async with open_broker(f"{url}?delivery.timeout.ms=1500") as broker:
        await broker.send(message("first"))
        await in_thread(server.kill)
        try:
            begun = time.monotonic()
            with trio.fail_after(30), pytest.raises(TimeoutError, match=r"_MSG_TIMED_OUT.*refused"):
                await broker.send(message("away"))
            assert 1.0 < time.monotonic() - begun < 14.0  # confirm_timeout is 15
        finally:
            await in_thread(server.restart)

        async def send(number: int) -> None:
            try:
                await broker.send(message(f"m{number}"))
            except TimeoutError:
                outcomes[f"m{number}"] += 1

        with trio.fail_after(200):  # until it has found the broker again
            while True:
                try:
                    await broker.send(message("back"))
                    break
                except TimeoutError:
                    pass
        async with trio.open_nursery() as nursery:  # frozen in the midst of them: stored, and not confirmed
            for number in range(500):
                nursery.start_soon(send, number)
            await trio.sleep(0.002)
            server.freeze()
            await trio.sleep(3.5)
            server.thaw()
    found = await arrived(server, url, 502 - len(outcomes))
    print("given up", len(outcomes), "of them stored", sum(found[id] for id in outcomes))
    assert set(found) >= {"first", "back", *(f"m{number}" for number in range(500))} - set(outcomes)
    del found["back"]  # which may have been stored each time
    assert set(found.values()) == {1}


async def test_a_wrong_password(server: KafkaServer) -> None:
    """Its reason reaches the caller, soon, and the password is not in it; the right one is let in."""
    url = server.fresh()
    topic = url.rpartition("/")[2]
    with (
        trio.fail_after(60),
        pytest.raises(ConnectionError, match=r"_AUTHENTICATION.*[Aa]uthentication") as raised,
    ):
        async with open_broker(server.sasl_url(topic, "sesame")):
            pass
    assert "sesame" not in repr(raised.value)
    async with open_broker(server.sasl_url(topic)) as broker:
        await broker.send(message("m"))
    assert await arrived(server, url, 1) == Counter(["m"])


async def test_sizes(server: KafkaServer) -> None:
    """A batch too large of messages that are not arrives; what is too large alone is permanent."""
    url = server.fresh(max_message_bytes="1000")
    good = [f"m{number}" for number in range(200)]
    async with open_broker(url) as broker:
        with trio.fail_after(60):
            await broker.send_batch([message(id, bytes(100)) for id in good])
        with trio.fail_after(60), pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("large", bytes(2000)), message("b")])
        assert isinstance((raised.value.failed or {})["large"], PermanentSendError)
        assert set(raised.value.failed or {}) == {"large"}
        with pytest.raises(PermanentSendError, match="MSG_SIZE_TOO_LARGE"):
            await broker.send(message("by the client", bytes(2_000_000)))
    assert await arrived(server, url, 202) == Counter([*good, "a", "b"])


async def test_a_limit_hears_of_a_quota(
    server: KafkaServer, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """A produce quota refuses nothing: the limit hears of it all the same, and everything arrives."""
    url = server.fresh()
    limit = AdaptiveLimit()
    noise = random.Random(4)
    async with open_broker(url, limit=limit) as broker:
        await broker.send(message("first", noise.randbytes(1000)))
        async with open_delay_queue(
            send=broker.send, capacity=1000, workers=20, retry=RETRY, send_timeout=60.0
        ) as queue:
            quota = server.quota(5_000)
            await in_thread(quota.__enter__)
            try:
                for number in range(100):
                    queue.put_nowait(noise.randbytes(1000), delay=number / 50, id=f"m{number}")
                with trio.fail_after(60):
                    while not limit.wait:  # noqa: ASYNC110 (it tells nobody)
                        await trio.sleep(0.02)
            finally:
                await in_thread(lambda: quota.__exit__(None, None, None))
        assert conserved(queue).sent == 100
    found = await arrived(server, url, 101)
    assert set(found) == {"first", *(f"m{number}" for number in range(100))}


async def test_what_a_quota_holds_back_for_too_long_is_throttled(server: KafkaServer) -> None:
    """It says for how long the broker does not listen, as it said."""
    url = server.fresh()
    async with open_broker(url, confirm_timeout=2.0) as broker:
        quota = server.quota(10)
        await in_thread(quota.__enter__)
        try:
            with trio.fail_after(60), pytest.raises(Throttled, match="quota") as raised:
                while True:
                    await broker.send(message("m"))
            assert raised.value.retry_after is not None
            assert raised.value.retry_after > 0
        finally:
            await in_thread(lambda: quota.__exit__(None, None, None))
