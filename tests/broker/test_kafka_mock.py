"""Kafka's driver against librdkafka's mock cluster, which fails as it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import trio
from confluent_kafka import KafkaError, KafkaException

from localdelay import (
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
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from tests.kit.servers.kafka_mock_cluster import INIT_PRODUCER_ID, PRODUCE, MockKafka
from tests.kit.servers.process import free_port

SERVER = "kafka_mock_cluster"

THROTTLED = ["THROTTLING_QUOTA_EXCEEDED", "NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS_AFTER_APPEND"]
PERMANENT = [
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT",
    "UNSUPPORTED_COMPRESSION_TYPE",
    "TOPIC_EXCEPTION",
    "CLUSTER_AUTHORIZATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",  # the last: librdkafka then takes the topic for gone
]
RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5)
TRANSPORT = -195


def message(id: str, payload: bytes | None = None, **fields: object) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time(), **fields)  # type: ignore[arg-type]


def code(name: str) -> int:
    found: int = getattr(KafkaError, name)
    return found


async def arrived(server: MockKafka, url: str, count: int) -> Counter[str]:
    received = await trio.to_thread.run_sync(lambda: server.read(url, count))
    return Counter(one.headers[ID] for one in received)


async def test_a_refusing_cluster_throttles(server: MockKafka) -> None:
    """What librdkafka does not try again, or not as often as that, is Throttled, with its cause."""
    url = server.fresh()
    async with open_broker(f"{url}?retries=1") as broker:
        for name in THROTTLED:
            with server.failing(PRODUCE, [code(name)] * 20):
                with trio.fail_after(60), pytest.raises(Throttled, match=name) as raised:
                    await broker.send(message("refused"))
                cause = raised.value.__cause__
                assert isinstance(cause, KafkaException)
                assert cause.args[0].code() == code(name)
                with trio.fail_after(60), pytest.raises(Throttled, match=name):
                    await broker.send_batch([message("a"), message("b")])
            with trio.fail_after(60):
                await broker.send(message(name))
    assert set(await arrived(server, url, len(THROTTLED))) >= set(THROTTLED)


async def test_a_hesitating_cluster_is_waited_for(server: MockKafka) -> None:
    """A few refusals that may pass librdkafka gets over by itself, and each message is there once."""
    url = server.fresh()
    # In one request, however slow this is: of two on a connection that is cut the other one may be written by
    # then. It is sent again, and the mock knows no sequence numbers, by which a cluster would drop it.
    async with open_broker(f"{url}?retry.backoff.max.ms=200&linger.ms=500") as broker:
        codes = [code("NOT_ENOUGH_REPLICAS"), code("REQUEST_TIMED_OUT"), TRANSPORT, TRANSPORT]
        with server.failing(PRODUCE, codes), trio.fail_after(60):
            await broker.send_batch([message(f"m{number}") for number in range(100)])
    assert await arrived(server, url, 100) == Counter(f"m{number}" for number in range(100))


async def test_no_room_in_the_client_throttles(server: MockKafka) -> None:
    """More messages than librdkafka may hold are refused at once, with its BufferError; the others arrive."""
    url = server.fresh()
    async with open_broker(f"{url}?queue.buffering.max.messages=10") as broker:
        await broker.send(message("first"))
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message(f"m{number}") for number in range(12)])
    failed = raised.value.failed or {}
    assert {"m10", "m11"} <= set(failed) <= {"m9", "m10", "m11"}  # the first may still count
    assert all(isinstance(error, Throttled) for error in failed.values())
    assert all(isinstance(error.__cause__, BufferError) for error in failed.values())
    sent = {"first", *(f"m{number}" for number in range(12))} - set(failed)
    assert await arrived(server, url, len(sent)) == Counter(sent)


async def test_a_cluster_that_never_takes_it_is_permanent(server: MockKafka) -> None:
    """A refusal for good comes at once, and the messages after it go through."""
    async with open_broker(server.fresh()) as broker:
        for name in PERMANENT:
            with trio.fail_after(60):
                await broker.send(message("fine"))
            with server.failing(PRODUCE, [code(name)]):
                with trio.fail_after(60), pytest.raises(PermanentSendError, match=name) as raised:
                    await broker.send(message("refused"))
            assert isinstance(raised.value.__cause__, KafkaException)


async def test_what_is_too_large_in_company_is_tried_alone(server: MockKafka) -> None:
    """Each message of a batch that is too large is sent again alone; what is refused alone, too, fails."""
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("first"))
        with server.failing(PRODUCE, [code("MSG_SIZE_TOO_LARGE")]), trio.fail_after(60):
            await broker.send_batch([message(f"m{number}") for number in range(20)])
        with server.failing(PRODUCE, [code("RECORD_LIST_TOO_LARGE")] * 2):
            with trio.fail_after(60), pytest.raises(PermanentSendError, match="RECORD_LIST_TOO_LARGE"):
                await broker.send(message("large"))
    sent = ["first", *(f"m{number}" for number in range(20))]
    assert await arrived(server, url, 21) == Counter(sent)


@pytest.mark.parametrize("name", ["OUT_OF_ORDER_SEQUENCE_NUMBER", "INVALID_PRODUCER_EPOCH"])
async def test_after_a_fatal_error_a_new_producer_goes_on(
    server: MockKafka, name: str, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """What does not fit ends the idempotent producer; what was under way fails, no more."""
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("first"))
        with server.failing(PRODUCE, [code(name)]):
            with trio.fail_after(60), pytest.raises((ConnectionError, KafkaException), match=name):
                await broker.send(message("lost count"))
        with trio.fail_after(60):
            async with open_delay_queue(send=broker.send, capacity=1000, workers=50, retry=RETRY) as queue:
                for number in range(500):
                    queue.put_nowait(b"", delay=number / 500, id=f"m{number}")
                await trio.sleep(0.5)
                server.do("push_errors", PRODUCE, [code(name)])
        assert conserved(queue).sent == 500
    found = await arrived(server, url, 501)
    assert set(found) >= {"first", *(f"m{number}" for number in range(500))}
    print("duplicates", found.total() - len(found))


async def test_not_let_in_as_a_producer(server: MockKafka) -> None:
    """Sends are refused with the reason, or already the opening is, until it is let in."""
    url = server.fresh()
    refusals: list[str] = []
    is_sent = False
    with server.failing(INIT_PRODUCER_ID, [code("CLUSTER_AUTHORIZATION_FAILED")] * 2), trio.fail_after(90):
        while not is_sent:
            try:
                async with open_broker(url) as broker:
                    while not is_sent:
                        try:
                            await broker.send(message("last"))
                            is_sent = True
                        except ConnectionError as error:
                            refusals.append(str(error))
            except ConnectionError as error:  # on a slow machine it is known before the first send
                refusals.append(str(error))
    assert refusals
    assert "uthorization" in refusals[0]
    assert "last" in await arrived(server, url, 1)


async def test_headers_are_bytes_for_bytes(server: MockKafka) -> None:
    """NULs, blanks, line breaks and other alphabets arrive; a header of the caller's can't take our names."""
    headers = {"a": "x\0y", "": "empty", "Grüße": "🙂\n ", "none": "", ID: "mine"}
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("id\0 ü", b"a\0b", headers=headers, attempt=12))
        for wrong in ({"a\0b": "x"}, {"a": "\udc80"}):
            with pytest.raises(PermanentSendError):
                await broker.send(message("wrong", headers=wrong))
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("\udc80", b""), message("b")])
    assert set(raised.value.failed or {}) == {"\udc80"}
    first, *others = await trio.to_thread.run_sync(lambda: server.read(url, 3))
    assert [one.headers[ID] for one in others] == ["a", "b"]
    assert first.payload == b"a\0b"
    found = dict(first.headers)
    assert found.pop(EXECUTE_AT)
    assert found == {**headers, ID: "id\0 ü", ATTEMPT: "12"}


async def test_one_of_several_hosts_is_enough(server: MockKafka) -> None:
    """Where the first does not listen, the next is asked; what librdkafka is told to do is done."""
    url = server.fresh()
    topic = url.rpartition("/")[2]
    options = "enable.idempotence=false&acks=1&compression.type=gzip"
    with trio.fail_after(60):
        async with open_broker(f"kafka://127.0.0.1:{free_port()},{server.hosts}/{topic}?{options}") as broker:
            await broker.send_batch([message(f"m{number}", bytes(1000)) for number in range(50)])
    assert await arrived(server, url, 50) == Counter(f"m{number}" for number in range(50))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://nowhere.invalid:9092/orders", "nowhere.invalid"),
        ("kafka://me:hunter2@{closed}/orders", "refused"),
        ("kafka://{hosts}/orders?security.protocol=SSL", "SSL"),
        ("kafka://me:hunter2@{hosts}/orders?security.protocol=SASL_PLAINTEXT", "_AUTHENTICATION"),
    ],
)
async def test_no_connection_is_one_line(
    server: MockKafka, url: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says where and why, soon; no password, and nothing of librdkafka's on standard error."""
    where = url.format(closed=f"127.0.0.1:{free_port()}", hosts=server.hosts)
    with trio.fail_after(60), pytest.raises(ConnectionError, match=says) as refused:
        async with open_broker(where):
            pass
    assert "hunter2" not in repr(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


async def test_a_topic_that_it_does_not_show_is_no_connection(server: MockKafka) -> None:
    """Once the cluster has said so; where it makes topics for the asking, it is there a moment later."""
    for topic, name in (("nowhere", "UNKNOWN_TOPIC_OR_PART"), ("forbidden", "TOPIC_AUTHORIZATION_FAILED")):
        server.do("topic_error", topic, code(name))
        with trio.fail_after(60), pytest.raises(ConnectionError, match=rf"'{topic}'.*{name}"):
            async with open_broker(server.url(topic)):
                pass
    async with open_broker(server.url("brand-new")) as broker:
        await broker.send(message("m"))
    assert await arrived(server, server.url("brand-new"), 1) == Counter(["m"])
