"""What is special about Kafka, against librdkafka's mock cluster; what every broker must do is elsewhere."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from confluent_kafka import KafkaError, KafkaException, ThrottleEvent
from trio.lowlevel import Abort, RaiseCancelT

from localdelay import (
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
from localdelay.brokers import kafka_line, kafka_sending, open_broker
from localdelay.brokers.kafka import KafkaBroker, classified, kafka_headers, open_kafka, settings_of
from localdelay.brokers.kafka_client import Client
from localdelay.brokers.kafka_errors import ends_producer
from localdelay.brokers.kafka_sending import Sending
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from tests.kit.servers.kafka_mock_cluster import INIT_PRODUCER_ID, PRODUCE, MockKafka
from tests.kit.servers.process import Server, free_port

THROTTLED = [
    "THROTTLING_QUOTA_EXCEEDED",
    "NOT_ENOUGH_REPLICAS",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "REQUEST_TIMED_OUT",
    "POLICY_VIOLATION",
]
THROTTLED_LOCALLY = ["_MSG_TIMED_OUT", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "_QUEUE_FULL", "_ISR_INSUFF"]
PERMANENT = [
    "MSG_SIZE_TOO_LARGE",
    "RECORD_LIST_TOO_LARGE",
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT",
    "UNSUPPORTED_COMPRESSION_TYPE",
    "TOPIC_EXCEPTION",
    "CLUSTER_AUTHORIZATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",  # the last: librdkafka then takes the topic for gone
]
PERMANENT_LOCALLY = ["UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "_INVALID_ARG"]
NEITHER = ["_TRANSPORT", "_ALL_BROKERS_DOWN", "NOT_LEADER_FOR_PARTITION", "KAFKA_STORAGE_ERROR", "UNKNOWN"]
RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5)
UNKNOWN_TOPIC = 3
TRANSPORT = -195


@pytest.fixture
def server(start_server: Callable[[str], Server]) -> MockKafka:
    found = start_server("kafka_mock_cluster")
    assert isinstance(found, MockKafka)
    return found


@pytest.fixture
def own_server() -> Iterator[MockKafka]:
    """For tests that leave nothing of it."""
    own = MockKafka(brokers=3)
    try:
        own.start()
        yield own
    finally:
        own.stop()


def message(id: str, payload: bytes | None = None, **fields: object) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time(), **fields)  # type: ignore[arg-type]


def exception(name: str) -> KafkaException:
    return KafkaException(KafkaError(getattr(KafkaError, name)))


def code(name: str) -> int:
    found: int = getattr(KafkaError, name)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Threads and brokers tell nobody when they are done."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def arrived(server: MockKafka, url: str, count: int, wait: float = 10.0) -> Counter[str]:
    received = await trio.to_thread.run_sync(lambda: server.read(url, count, wait))
    return Counter(one.headers[ID] for one in received)


# What errors mean.


@pytest.mark.parametrize("name", THROTTLED + THROTTLED_LOCALLY)
def test_limits_are_throttling(name: str) -> None:
    """By code, since `retriable` says nothing."""
    error = exception(name)
    assert not error.args[0].retriable()
    failure = classified(error)
    assert isinstance(failure, Throttled)
    assert name in str(failure)
    assert failure.retry_after is None


@pytest.mark.parametrize("name", PERMANENT + PERMANENT_LOCALLY)
def test_what_can_never_work_is_permanent(name: str) -> None:
    """The message, the topic, or the access to it."""
    failure = classified(exception(name))
    assert isinstance(failure, PermanentSendError)
    assert name in str(failure)


@pytest.mark.parametrize("name", NEITHER)
def test_the_rest_stays_as_it_is(name: str) -> None:
    """As the client raises it: it may pass."""
    error = exception(name)
    assert classified(error) is error


def test_other_exceptions_are_classified() -> None:
    """A full queue is a BufferError; text that is no Unicode is permanent; strangers stay as they are."""
    assert isinstance(classified(BufferError("Local: Queue full")), Throttled)
    try:
        "\udc80".encode()
    except UnicodeEncodeError as error:
        assert isinstance(classified(error), PermanentSendError)
    for error in (RuntimeError("x"), KafkaException(), KafkaException("text")):
        assert classified(error) is error


def test_throttling_says_when_to_come_back_and_what_else_is_known() -> None:
    """`retry_after` is the cluster's word; a time-out quotes the latest trouble, another limit does not."""
    failure = classified(exception("_MSG_TIMED_OUT"), retry_after=1.5, trouble="nobody listens")
    assert isinstance(failure, Throttled)
    assert failure.retry_after == 1.5
    assert "nobody listens" in str(failure)
    assert "nobody listens" not in str(classified(exception("POLICY_VIOLATION"), trouble="nobody listens"))


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (KafkaError(KafkaError._TRANSPORT, "x", fatal=True), True),
        (KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER), True),
        (KafkaError(KafkaError.INVALID_PRODUCER_EPOCH), True),
        (KafkaError(KafkaError._MSG_TIMED_OUT), False),
        (KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), False),
    ],
)
def test_what_ends_a_producer(error: KafkaError, ends: bool) -> None:
    """A fatal error, or one that says that it has lost count."""
    assert ends_producer(error) == ends


# Throttling for real.


async def test_a_refusing_cluster_throttles(server: MockKafka) -> None:
    """What librdkafka does not try again, or not as often as that, is Throttled, with its cause."""
    url = server.fresh()
    async with open_broker(f"{url}?retries=1") as broker:
        for name in THROTTLED:
            with server.failing(PRODUCE, [code(name)] * 20):
                with trio.fail_after(10), pytest.raises(Throttled, match=name) as raised:
                    await broker.send(message("refused"))
                cause = raised.value.__cause__
                assert isinstance(cause, KafkaException)
                assert cause.args[0].code() == code(name)
                with trio.fail_after(10), pytest.raises(Throttled, match=name):
                    await broker.send_batch([message("a"), message("b")])
            with trio.fail_after(10):
                await broker.send(message(name))
    assert set(await arrived(server, url, len(THROTTLED))) >= set(THROTTLED)


async def test_a_hesitating_cluster_is_waited_for(server: MockKafka) -> None:
    """A few refusals that may pass librdkafka gets over by itself, and the message is there once."""
    url = server.fresh()
    async with open_broker(f"{url}?retry.backoff.max.ms=200") as broker:
        codes = [code("NOT_ENOUGH_REPLICAS"), code("REQUEST_TIMED_OUT"), TRANSPORT, TRANSPORT]
        with server.failing(PRODUCE, codes), trio.fail_after(14):
            await broker.send_batch([message(f"m{number}") for number in range(100)])
    assert await arrived(server, url, 100) == Counter(f"m{number}" for number in range(100))


async def test_no_room_in_the_client_throttles(server: MockKafka) -> None:
    """More messages than librdkafka may hold are refused at once, with its BufferError; the others arrive."""
    url = server.fresh()
    async with open_broker(f"{url}?queue.buffering.max.messages=10") as broker:
        await broker.send(message("first"))
        await trio.to_thread.run_sync(server.freeze)
        try:
            failures: list[Exception] = []

            async def send(number: int) -> None:
                try:
                    await broker.send(message(f"m{number}"))
                except Throttled as error:
                    failures.append(error)

            async def send_batch() -> None:
                with pytest.raises(PartialSendError) as raised:
                    await broker.send_batch([message(f"b{number}") for number in range(5)])
                failures.extend((raised.value.failed or {}).values())

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(8):
                        nursery.start_soon(send, number)
                    await trio.sleep(0.1)
                    assert not failures
                    nursery.start_soon(send_batch)
                    await trio.sleep(0.1)
                    await send(8)
                    await trio.to_thread.run_sync(server.thaw)
        finally:
            await trio.to_thread.run_sync(server.thaw)
    assert len(failures) == 4
    assert all(isinstance(error, Throttled) for error in failures)
    assert all(isinstance(error.__cause__, BufferError) for error in failures)
    assert await arrived(server, url, 11) == Counter(
        ["first", *(f"m{number}" for number in range(8)), "b0", "b1"]
    )


@pytest.mark.parametrize("how", ["down", "frozen"])
async def test_what_is_not_confirmed_in_time_throttles(server: MockKafka, how: str) -> None:
    """While nobody answers, a send ends within the time-out and a second; afterwards all is well again."""
    url = server.fresh()
    async with open_broker(f"{url}?delivery.timeout.ms=1000") as broker:
        await broker.send(message("first"))
        await trio.to_thread.run_sync(server.kill if how == "down" else server.freeze)
        try:
            begun = trio.current_time()
            with trio.fail_after(10), pytest.raises(Throttled, match="_MSG_TIMED_OUT") as raised:
                await broker.send(message("late"))
            assert 0.8 < trio.current_time() - begun < 4.0
            assert isinstance(raised.value.__cause__, KafkaException)
            if how == "down":
                assert "refused" in str(raised.value)
        finally:
            await trio.to_thread.run_sync(server.restart if how == "down" else server.thaw)
        with trio.fail_after(10):
            while True:
                try:
                    await broker.send(message("last"))
                    break
                except Throttled:
                    pass
    assert {"first", "last"} <= set(await arrived(server, url, 2))


async def test_a_throttled_client_is_told_for_how_long(server: MockKafka) -> None:
    """While a broker holds the client back, Throttled carries what is left of that."""
    url = server.fresh()
    async with open_kafka(server.hosts, topic=url.rpartition("/")[2]) as broker:
        await broker.send(message("first"))
        client = client_of(broker)
        client._note_throttling(ThrottleEvent("broker", 1, 5.0))
        with server.failing(PRODUCE, [code("THROTTLING_QUOTA_EXCEEDED")] * 2):
            with pytest.raises(Throttled) as raised:
                await broker.send(message("held back"))
            assert raised.value.retry_after == pytest.approx(5.0, abs=1.0)
            client._note_throttling(ThrottleEvent("broker", 1, 0.0))
            with pytest.raises(Throttled) as raised:
                await broker.send(message("no longer"))
            assert raised.value.retry_after is None


def client_of(broker: KafkaBroker) -> Client:
    client = broker._line._client
    assert client is not None
    return client


# What can never work, for real.


async def test_a_cluster_that_never_takes_it_is_permanent(server: MockKafka) -> None:
    """A refusal for good comes at once, and the messages after it go through."""
    async with open_broker(server.fresh()) as broker:
        for name in PERMANENT:
            with trio.fail_after(10):
                await broker.send(message("fine"))
            with server.failing(PRODUCE, [code(name)]):
                with trio.fail_after(10), pytest.raises(PermanentSendError, match=name) as raised:
                    await broker.send(message("refused"))
            assert isinstance(raised.value.__cause__, KafkaException)


async def test_a_topic_that_is_gone_is_permanent_within_seconds(server: MockKafka) -> None:
    """A topic that was deleted after the opening is not waited for until the time-out."""
    url = server.fresh()
    topic = url.rpartition("/")[2]
    options = "topic.metadata.propagation.max.ms=1000&topic.metadata.refresh.interval.ms=500"
    async with open_broker(f"{url}?{options}") as broker:
        await broker.send(message("first"))
        server.do("topic_error", topic, UNKNOWN_TOPIC)
        with trio.fail_after(10), pytest.raises(PermanentSendError, match="UNKNOWN_TOPIC"):
            while True:
                await broker.send(message("on its way"))
                await trio.sleep(0.1)


async def test_a_message_alone_is_too_large(server: MockKafka) -> None:
    """Librdkafka refuses it itself, whatever else is in its batch; with more allowed, it goes through."""
    url = server.fresh()
    async with open_broker(f"{url}?message.max.bytes=3000000") as broker:
        await broker.send(message("large", bytes(2_000_000)))
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("too large", bytes(3_100_000)), message("b")])
    assert set(raised.value.failed or {}) == {"too large"}
    assert await arrived(server, url, 3) == Counter(["large", "a", "b"])


# A producer that can't go on.


async def test_after_a_fatal_error_a_new_producer_goes_on(
    server: MockKafka, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """Sequence numbers that do not fit end the idempotent producer; what was under way fails, no more."""
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("first"))
        with server.failing(PRODUCE, [code("OUT_OF_ORDER_SEQUENCE_NUMBER")]):
            with trio.fail_after(10), pytest.raises(KafkaException) as raised:
                await broker.send(message("lost count"))
            assert raised.value.args[0].code() == KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
        with trio.fail_after(60):
            async with open_delay_queue(send=broker.send, capacity=1000, workers=50, retry=RETRY) as queue:
                for number in range(500):
                    queue.put_nowait(b"", delay=number / 500, id=f"m{number}")
                await trio.sleep(0.5)
                server.do("push_errors", PRODUCE, [code("OUT_OF_ORDER_SEQUENCE_NUMBER")])
        assert conserved(queue).sent == 500
    assert threads() == []
    found = await arrived(server, url, 501)
    assert set(found) >= {"first", *(f"m{number}" for number in range(500))}
    print("duplicates", found.total() - len(found))


async def test_an_old_epoch_ends_the_producer_too(server: MockKafka) -> None:
    """Librdkafka itself would go on with the same epoch for ever."""
    url = server.fresh()
    async with open_kafka(server.hosts, topic=url.rpartition("/")[2]) as broker:
        await broker.send(message("first"))
        before = client_of(broker)
        with server.failing(PRODUCE, [code("INVALID_PRODUCER_EPOCH")]):
            with trio.fail_after(10), pytest.raises(KafkaException):
                await broker.send(message("old"))
        await until(lambda: client_of(broker) is not before)
        with trio.fail_after(10):
            await broker.send(message("last"))
    assert await arrived(server, url, 2) == Counter(["first", "last"])


async def test_not_let_in_as_a_producer(server: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the opening it is a ConnectionError; later each send is permanently refused, until it is let in."""
    url = server.fresh()
    with (
        server.failing(INIT_PRODUCER_ID, [code("CLUSTER_AUTHORIZATION_FAILED")] * 10),
        monkeypatch.context() as patched,
    ):
        patched.setattr(kafka_line, "_PRODUCER_ID", 8.0)  # a busy machine may need longer for the refusal
        with trio.fail_after(10), pytest.raises(ConnectionError, match="authorization") as refused:
            async with open_broker(url):
                pass
        assert "\n" not in str(refused.value)
    async with open_kafka(server.hosts, topic=url.rpartition("/")[2]) as broker:
        await broker.send(message("first"))
        with server.failing(INIT_PRODUCER_ID, [code("CLUSTER_AUTHORIZATION_FAILED")] * 2):
            client_of(broker).ended = True
            with trio.fail_after(15), pytest.raises(PermanentSendError, match="CLUSTER_AUTHORIZATION_FAILED"):
                while True:
                    with suppress(ConnectionError):  # the old producer's, which may be given up half-way
                        await broker.send(message("refused"))
                    await trio.sleep(0.1)
        with trio.fail_after(15):
            while True:
                try:
                    await broker.send(message("last"))
                    break
                except (PermanentSendError, ConnectionError):
                    await trio.sleep(0.1)


# What travels.


async def test_headers_are_bytes_for_bytes(server: MockKafka) -> None:
    """NULs, blanks, line breaks and other alphabets arrive; a header of the caller's can't take our names."""
    headers = {"a": "x\0y", "": "empty", "Grüße": "🙂\n ", "none": "", ID: "mine"}
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("id\0 ü", b"a\0b", headers=headers, attempt=12))
    (received,) = await trio.to_thread.run_sync(lambda: server.read(url, 1))
    assert received.payload == b"a\0b"
    found = dict(received.headers)
    assert found.pop(EXECUTE_AT)
    assert found == {**headers, ID: "id\0 ü", ATTEMPT: "12"}


async def test_what_can_be_no_header_is_permanent(server: MockKafka) -> None:
    """A NUL in a name, text that is no Unicode: this message's alone; the rest of its batch arrives."""
    url = server.fresh()
    async with open_broker(url) as broker:
        for headers in ({"a\0b": "x"}, {"a": "\udc80"}):
            with pytest.raises(PermanentSendError):
                await broker.send(message("wrong", headers=headers))
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("\udc80", b""), message("b")])
    assert set(raised.value.failed or {}) == {"\udc80"}
    assert await arrived(server, url, 2) == Counter(["a", "b"])


async def test_first_attempt_and_later_ones() -> None:
    """The attempt travels as a number in text."""
    for attempt in (1, 2, 10):
        assert dict(kafka_headers(message("m", attempt=attempt), 0.0))[ATTEMPT] == b"%d" % attempt


async def test_keys_are_the_callers(server: MockKafka) -> None:
    """By default none, and all partitions are used; with a function, the same key goes to the same one."""
    url = server.fresh(partitions=4)
    topic = url.rpartition("/")[2]
    async with open_kafka(server.hosts, topic=topic) as broker:
        for number in range(40):
            await broker.send(message(f"no key {number}"))
            await trio.sleep(0.012)

    def customer(one: Message) -> str | None:
        if one.id == "wrong":
            raise LookupError("no customer")
        return one.headers.get("customer")

    async with open_kafka(server.hosts, topic=topic, key=customer) as broker:
        batch = [message(f"m{number}", headers={"customer": f"c{number % 3}"}) for number in range(30)]
        await broker.send_batch([*batch, message("no customer")])
        with pytest.raises(LookupError):
            await broker.send(message("wrong"))
    records = await trio.to_thread.run_sync(lambda: server.records(url, 71))
    keys = Counter(record.key for record in records)
    assert {record.partition for record in records if record.key is None} == {0, 1, 2, 3}
    assert keys == {None: 41, b"c0": 10, b"c1": 10, b"c2": 10}
    assert len({(record.key, record.partition) for record in records if record.key}) == 3


async def test_there_is_no_delay_of_its_own(server: MockKafka) -> None:
    """A delay is checked all the same."""
    async with open_broker(server.fresh()) as broker:
        assert not broker.native_delay
        with pytest.raises(DelayNotSupported):
            await broker.publish_delayed(message("m"), 1.0)
        with pytest.raises(ValueError, match="delay"):
            await broker.publish_delayed(message("m"), -1.0)
        with pytest.raises(TypeError, match="delay"):
            await broker.publish_delayed(message("m"), "1")  # type: ignore[arg-type]


# Opening.


async def test_one_of_several_hosts_is_enough(server: MockKafka) -> None:
    """Where the first does not listen, the next is asked."""
    url = server.fresh()
    topic = url.rpartition("/")[2]
    with trio.fail_after(10):
        async with open_broker(f"kafka://127.0.0.1:{free_port()},{server.hosts}/{topic}") as broker:
            await broker.send(message("m"))
    assert await arrived(server, url, 1) == Counter(["m"])


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
    server: MockKafka,
    url: str,
    says: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says where and why, soon; no password, and nothing of librdkafka's on standard error."""
    monkeypatch.setattr(kafka_line, "_ALL_DOWN_AFTER", 0.2)
    where = url.format(closed=f"127.0.0.1:{free_port()}", hosts=server.hosts)
    begun = trio.current_time()
    with trio.fail_after(10), pytest.raises(ConnectionError, match=says) as refused:
        async with open_broker(where):
            pass
    assert trio.current_time() - begun < 4
    assert "hunter2" not in repr(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert threads() == []


async def test_a_frozen_cluster_is_not_waited_for(server: MockKafka) -> None:
    """An opening has its time; it can be cancelled before."""
    url = server.fresh()
    await trio.to_thread.run_sync(server.freeze)
    try:
        with trio.fail_after(6), pytest.raises(ConnectionError, match=r"within 0\.7 s"):
            async with open_kafka(server.hosts, topic=url.rpartition("/")[2], open_timeout=0.7):
                pass
        begun = trio.current_time()
        with trio.move_on_after(0.3):
            async with open_broker(url):
                pass
        assert trio.current_time() - begun < 2.5
    finally:
        await trio.to_thread.run_sync(server.thaw)
    assert threads() == []


async def test_a_topic_that_is_not_there_is_no_connection(
    server: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that makes no topics has a moment to find it; one that does has it made."""
    monkeypatch.setattr(kafka_line, "_TOPIC_APPEARS", 0.3)
    server.do("topic_error", "nowhere", UNKNOWN_TOPIC)
    with trio.fail_after(10), pytest.raises(ConnectionError, match=r"'nowhere'.*UNKNOWN_TOPIC"):
        async with open_broker(server.url("nowhere")):
            pass
    server.do("topic_error", "forbidden", code("TOPIC_AUTHORIZATION_FAILED"))
    with trio.fail_after(10), pytest.raises(ConnectionError, match="TOPIC_AUTHORIZATION_FAILED"):
        async with open_broker(server.url("forbidden")):
            pass
    async with open_broker(server.url("brand-new")) as broker:
        await broker.send(message("m"))
    assert await arrived(server, server.url("brand-new"), 1) == Counter(["m"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("no.such.option=1", "no.such.option"),
        ("linger.ms=-3", "outside allowed range"),
        ("acks=1", "acks"),
        ("acks=0&enable.idempotence=false", "nothing would be confirmed"),
        ("message.timeout.ms=0", "message.timeout.ms"),
        ("delivery.timeout.ms=soon", "delivery.timeout.ms"),
        ("bootstrap.servers=elsewhere", "bootstrap.servers"),
        ("transactional.id=t", "transactional.id"),
        ("error_cb=print", "error_cb"),
        ("delivery.report.only.error=true", "delivery.report.only.error"),
        ("security.protocol=SSL&ssl.ca.location=/nonexistent", "ssl.ca.location"),
        ("security.protocol=SSL&ssl.key.pem=hunter2", "ssl.key.pem"),
        ("sasl.password=hunter2&linger.ms=hunter2", "take: Invalid value .*queue.buffering"),
    ],
)
async def test_options_that_can_not_be(
    server: MockKafka, options: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A ValueError of one line that names the option, and no secret."""
    with trio.fail_after(5), pytest.raises(ValueError, match=says) as refused:
        async with open_broker(f"{server.url('orders')}?{options}"):
            pass
    assert "hunter2" not in repr(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["confirm_timeout", "open_timeout"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (float("nan"), ValueError), ("1", TypeError)])
async def test_times_that_can_not_be(name: str, value: object, error: type[Exception]) -> None:
    """They are refused by their name before anything is done."""
    with pytest.raises(error, match=name):
        async with open_kafka("127.0.0.1:1", topic="orders", **{name: value}):  # type: ignore[arg-type]
            pass


def test_a_user_is_one_of_sasl_over_tls() -> None:
    """Unless the options say otherwise; they have the last word on everything."""
    settings = settings_of("host:1", "me", "hunter2", 15.0, {})
    assert settings["security.protocol"] == "SASL_SSL"
    assert settings["sasl.mechanisms"] == "PLAIN"
    assert (settings["sasl.username"], settings["sasl.password"]) == ("me", "hunter2")
    assert settings["delivery.timeout.ms"] == 15_000
    options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256", "linger.ms": "5"}
    settings = settings_of("host:1", "me", None, 0.0001, options)
    assert settings["security.protocol"] == "SASL_PLAINTEXT"
    assert "sasl.mechanisms" not in settings
    assert settings["linger.ms"] == "5"
    assert settings["delivery.timeout.ms"] == 1
    assert "security.protocol" not in settings_of("host:1", None, None, 15.0, {})


async def test_without_idempotence_it_works_too(server: MockKafka) -> None:
    """What is asked for is done, compression included."""
    url = server.fresh()
    options = "enable.idempotence=false&acks=1&compression.type=gzip"
    async with open_broker(f"{url}?{options}") as broker:
        await broker.send_batch([message(f"m{number}", bytes(1000)) for number in range(50)])
    assert await arrived(server, url, 50) == Counter(f"m{number}" for number in range(50))


async def test_what_librdkafka_says_is_for_debugging(
    server: MockKafka, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A lost connection is no news at any higher level, nor on standard error."""
    caplog.set_level(logging.DEBUG, "localdelay.brokers.kafka")
    async with open_broker(server.fresh()) as broker:
        await broker.send(message("first"))
        server.kill()
        await trio.sleep(0.3)
        server.restart()
        with trio.fail_after(10):
            await broker.send(message("last"))
    records = [record for record in caplog.records if record.name == "localdelay.brokers.kafka"]
    assert any("Disconnected" in record.getMessage() for record in records)
    assert {record.levelno for record in records} == {logging.DEBUG}
    assert capfd.readouterr() == ("", "")


# Cancelling, closing, breaking.


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "kafka" in thread.name]


def native() -> tuple[int, int]:
    """How many threads and open files this process has."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


async def test_what_was_not_handed_over_is_not_sent(server: MockKafka) -> None:
    """A send that is cancelled in the turn in which it was made leaves nothing behind."""
    url = server.fresh()
    async with open_kafka(server.hosts, topic=url.rpartition("/")[2]) as broker:
        await trio.to_thread.run_sync(server.freeze)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(broker.send, message("first"))
                await trio.testing.wait_all_tasks_blocked(0.01)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await broker.send(message("cancelled"))
                assert scope.cancelled_caught
                await trio.to_thread.run_sync(server.thaw)
        finally:
            await trio.to_thread.run_sync(server.thaw)
        await broker.send(message("last"))
        assert not broker._line._under_way
    assert await arrived(server, url, 2) == Counter(["first", "last"])


async def test_ten_thousand_sends_with_cancellations_at_random(server: MockKafka) -> None:
    """Each ends as it was told to; what was confirmed is there, nothing is there twice, nothing is kept."""
    seed = 4
    print("seed", seed)
    chance = random.Random(seed)
    url = server.fresh(partitions=4)
    confirmed: set[str] = set()
    numbers = iter(range(10_000))

    async def worker() -> None:
        for number in numbers:
            id = f"m{number}"
            with trio.move_on_after(chance.choice([0, 1e-4, 1e-3, 5e-3, 10, 10, 10, 10])):
                if number % 10:
                    await broker.send(message(id))
                    confirmed.add(id)
                else:
                    await broker.send_batch([message(f"{id}-{part}") for part in range(3)])
                    confirmed.update(f"{id}-{part}" for part in range(3))

    async with open_kafka(server.hosts, topic=url.rpartition("/")[2]) as broker:
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(worker)
            await until(lambda: not broker._line._under_way)
        assert client_of(broker).unreported() == 0
    found = await arrived(server, url, len(confirmed))
    assert confirmed <= set(found)
    assert set(found.values()) == {1}


def test_an_interrupt_leaves_no_task_to_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGINT just before a send waits: woken later, a task that does not wait would break Trio."""
    sending = Sending()
    wait = kafka_sending.wait_task_rescheduled

    async def interrupted(abort: Callable[[RaiseCancelT], Abort]) -> None:
        signal.raise_signal(signal.SIGINT)
        await wait(abort)

    monkeypatch.setattr(kafka_sending, "wait_task_rescheduled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trio.run(sending.of_one)
    assert sending.abandoned
    assert sending._task is None
    assert sending.settle(0, None)


async def test_after_a_pause_it_goes_on(server: MockKafka) -> None:
    """The task and the thread take turns in waiting: quick sends, slow ones, and pauses between them."""
    url = server.fresh()
    async with open_broker(url) as broker:
        with trio.fail_after(20):
            for number in range(18):
                if number == 6:
                    server.do("round_trip", 20)
                if number == 12:
                    server.do("round_trip", 0)
                await broker.send(message(f"m{number}"))
                await trio.sleep((0, 0.001, 0.15)[number % 3])
    assert await arrived(server, url, 18) == Counter(f"m{number}" for number in range(18))


async def test_nothing_is_left_behind(server: MockKafka) -> None:
    """No thread, of Python's or of librdkafka's, and no connection, whether it was used or not."""
    async with open_broker(server.fresh()):
        pass
    before = native()
    async with open_broker(server.fresh()) as broker:
        await broker.send_batch([message(f"m{number}") for number in range(100)])
        assert native() > before
        assert len(threads()) == 1
    assert threads() == []
    await until(lambda: native() <= before)


async def test_the_block_is_left_soon_though_the_cluster_is_frozen(server: MockKafka) -> None:
    """What is under way fails as closed, and is not sent later."""
    url = server.fresh()
    failures: list[Exception] = []

    async def send(number: int) -> None:
        try:
            await broker.send_batch([message(f"m{number}-{part}") for part in range(3)])
        except ConnectionError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        async with open_broker(url) as broker:
            await broker.send(message("first"))
            await trio.to_thread.run_sync(server.freeze)
            for number in range(20):
                nursery.start_soon(send, number)
            await trio.sleep(0.1)
            begun = trio.current_time()
        taken = trio.current_time() - begun
        await trio.to_thread.run_sync(server.thaw)
    assert taken < 2
    assert len(failures) == 20
    assert all("closed" in str(error) for error in failures)
    assert threads() == []


async def test_a_client_that_hangs_is_left_behind(server: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where librdkafka does not come back, leaving the block ends all the same, and so do the sends."""
    monkeypatch.setattr(kafka_line, "_CLOSE_TIMEOUT", 0.3)
    hang = threading.Event()
    ended: list[str] = []

    async def send() -> None:
        with pytest.raises(ConnectionError, match="closed"):
            await broker.send(message("m"))
        ended.append("m")

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            async with open_broker(server.fresh()) as broker:
                monkeypatch.setattr(Client, "give_up", lambda _: hang.wait(20))
                await trio.to_thread.run_sync(server.freeze)
                nursery.start_soon(send)
                await trio.sleep(0.1)
            await trio.to_thread.run_sync(server.thaw)
        assert ended == ["m"]
    hang.set()
    await until(lambda: not threads())


async def test_a_thread_that_fails_is_no_silence(
    server: MockKafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Were there an error in it, it would be logged, and sends would fail instead of waiting for ever."""
    async with open_broker(server.fresh()) as broker:
        await broker.send(message("first"))

        def fail(*_: object) -> None:
            raise RuntimeError("what nobody thought of")

        with trio.fail_after(10):
            await trio.sleep(0.2)  # so that it is the thread that waits
            with monkeypatch.context() as patch:
                patch.setattr(Client, "serve", fail)
                await until(lambda: not threads())
            with pytest.raises(ConnectionError, match="closed"):
                await broker.send(message("last"))
    assert "what nobody thought of" in caplog.text


async def test_a_cluster_that_is_killed_for_good(own_server: MockKafka) -> None:
    """SIGKILL in the midst of sends: each ends within the time-out and a second, and so does the block."""
    url = own_server.fresh(partitions=3)
    outcomes: Counter[str] = Counter()

    async def worker() -> None:
        for number in range(1000):
            try:
                await broker.send(message(f"m{number}"))
            except Throttled:
                outcomes["throttled"] += 1
                return
            outcomes["confirmed"] += 1

    with trio.fail_after(15):
        async with open_broker(f"{url}?delivery.timeout.ms=1000") as broker:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(worker)
                await trio.sleep(0.2)
                await trio.to_thread.run_sync(own_server.vanish)
            begun = time.monotonic()
        assert time.monotonic() - begun < 2
    assert outcomes["throttled"] == 20
    assert outcomes["confirmed"] > 20
    assert threads() == []


async def test_connections_that_break_again_and_again(
    own_server: MockKafka, conserved: Callable[[DelayQueue], Statistics]
) -> None:
    """Cut every quarter of a second under batches: everything arrives."""
    url = own_server.fresh(partitions=3)
    async with open_broker(url) as broker:
        with trio.fail_after(60):
            async with open_delay_queue(
                send_batch=broker.send_batch, capacity=2000, workers=10, retry=RETRY
            ) as queue:
                for number in range(2000):
                    queue.put_nowait(bytes(100), delay=2.0 * number / 2000, id=f"m{number}")
                for _ in range(8):
                    await trio.sleep(0.2)
                    await trio.to_thread.run_sync(own_server.kill)
                    await trio.sleep(0.05)
                    await trio.to_thread.run_sync(own_server.restart)
        assert conserved(queue).sent == 2000
    found = await arrived(own_server, url, 2000)
    assert set(found) == {f"m{number}" for number in range(2000)}
    # A cluster takes what comes a second time for what it is; the mock does not look at sequence numbers.
    print("duplicates", found.total() - 2000)


def test_the_program_of_the_mock_says_what_it_can_not_do(server: MockKafka) -> None:
    """A test that asks for what is not there must not go on."""
    with pytest.raises(RuntimeError, match="topic_create"):
        server.do("create_topic", server.fresh().rpartition("/")[2], 1)
