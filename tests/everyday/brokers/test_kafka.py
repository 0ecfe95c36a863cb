"""Kafka's driver without a Kafka: what errors mean, what options can be, what travels, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from confluent_kafka import KafkaError, KafkaException, ThrottleEvent

from localdelay import AdaptiveLimit, Message, PermanentSendError, Throttled
from localdelay.brokers import kafka_producer, open_broker
from localdelay.brokers.address import Address
from localdelay.brokers.kafka import kafka_headers, settings_of
from localdelay.brokers.kafka_errors import classified, ends_producer
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID

NOWHERE = "kafka://127.0.0.1:1/orders"
THROTTLED = ["THROTTLING_QUOTA_EXCEEDED", "NOT_ENOUGH_REPLICAS", "POLICY_VIOLATION", "_QUEUE_FULL"]
PERMANENT = ["MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "TOPIC_AUTHORIZATION_FAILED", "_UNKNOWN_TOPIC"]
TIMED_OUT = ["_MSG_TIMED_OUT", "_TIMED_OUT", "REQUEST_TIMED_OUT"]
DOWN = ["_TRANSPORT", "NETWORK_EXCEPTION"]
NEITHER = ["NOT_LEADER_FOR_PARTITION", "KAFKA_STORAGE_ERROR", "UNKNOWN"]


def exception(name: str) -> KafkaException:
    return KafkaException(KafkaError(getattr(KafkaError, name)))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (THROTTLED, Throttled),
        (PERMANENT, PermanentSendError),
        (TIMED_OUT, TimeoutError),
        (DOWN, ConnectionError),
    ],
)
def test_what_errors_mean(names: list[str], kind: type[Exception]) -> None:
    """By code, since `retriable` says nothing; a time-out and a lost connection say what else is known."""
    for name in names:
        failure = classified(exception(name), trouble="nobody listens")
        assert isinstance(failure, kind)
        assert name in str(failure)
        assert ("nobody listens" in str(failure)) == (kind in (TimeoutError, ConnectionError))


def test_the_rest_stays_as_it_is() -> None:
    """As the client raises it: it may pass."""
    for error in [*map(exception, NEITHER), RuntimeError("x"), KafkaException(), KafkaException("text")]:
        assert classified(error) is error


def test_other_exceptions_are_classified() -> None:
    """A full queue is a BufferError."""
    assert isinstance(classified(BufferError("Local: Queue full")), Throttled)


def test_what_is_given_up_over_a_quota_is_throttled() -> None:
    """A quota refuses nothing: while it holds back, a time-out is its doing, and says for how long."""
    for error in (exception("_MSG_TIMED_OUT"), TimeoutError("it took no more")):
        failure = classified(error, held_back=1.5)
        assert isinstance(failure, Throttled)
        assert failure.retry_after == 1.5
    assert isinstance(classified(exception("_TRANSPORT"), held_back=1.5), ConnectionError)


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
async def test_options_that_can_not_be(options: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A ValueError of one line that names the option, and no secret."""
    with trio.fail_after(5), pytest.raises(ValueError, match=says) as refused:
        async with open_broker(f"{NOWHERE}?{options}"):
            pass
    assert "hunter2" not in repr(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


def test_a_user_is_one_of_sasl_over_tls() -> None:
    """Unless the options say otherwise; they have the last word on everything."""

    def settings(timeout: float, user: str | None = None, **options: str) -> dict[str, object]:
        names = {name.replace("_", "."): value for name, value in options.items()}
        password = None if user is None else "hunter2"
        where = Address("kafka", (("host", 1),), "orders", user, password, names)
        return settings_of(where, timeout)

    found = settings(15.0, "me")
    assert found["security.protocol"] == "SASL_SSL"
    assert found["sasl.mechanisms"] == "PLAIN"
    assert (found["sasl.username"], found["sasl.password"]) == ("me", "hunter2")
    assert found["delivery.timeout.ms"] == 15_000
    found = settings(
        0.0001, "me", security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-256", linger_ms="5"
    )
    assert found["security.protocol"] == "SASL_PLAINTEXT"
    assert "sasl.mechanisms" not in found
    assert found["linger.ms"] == "5"
    assert found["delivery.timeout.ms"] == 1
    assert "security.protocol" not in settings(15.0)


async def test_what_travels() -> None:
    """The id, the attempt and execute-at, beside the message's own, which can't take their names."""
    for attempt in (1, 2, 10):
        headers = dict(kafka_headers(Message("ü", b"", 0.0, {ID: "mine", "a": "b"}, attempt), 0.0))
        assert headers.pop(EXECUTE_AT)
        assert headers == {ID: "ü".encode(), ATTEMPT: b"%d" % attempt, "a": b"b"}


class Fake:
    """A producer of no cluster's, to be made to misbehave."""

    def __init__(self, settings: dict[str, Callable[..., object]]) -> None:
        self.throttle = settings["throttle_cb"]
        self.fails: Exception | None = None
        self.hangs: threading.Event | None = None
        self.reports: list[Callable[[None, None], None]] = []

    def list_topics(self, topic: str, timeout: float) -> Fake:
        self.topics: dict[str, object] = {}
        return self

    def produce(
        self, topic: str, payload: bytes, on_delivery: Callable[[None, None], None], headers: object
    ) -> None:
        self.reports.append(on_delivery)

    def poll(self, timeout: float) -> int:
        if self.fails is not None:
            raise self.fails
        if not self.reports:
            threading.Event().wait(0.001)
            return 0
        self.reports.pop(0)(None, None)
        return 1

    def purge(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)

    def __len__(self) -> int:
        return len(self.reports)


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Those that are made."""
    made: list[Fake] = []

    def make(settings: dict[str, Callable[..., object]]) -> Fake:
        made.append(Fake(settings))
        return made[-1]

    monkeypatch.setattr(kafka_producer, "Producer", make)
    return made


def message(id: str) -> Message:
    return Message(id, b"", trio.current_time())


async def test_a_client_that_hangs_is_left_behind(producers: list[Fake]) -> None:
    """Where librdkafka does not come back, leaving the block ends all the same."""
    with trio.fail_after(10):
        async with open_broker(NOWHERE) as broker:
            await broker.send(message("m"))
            producers[0].hangs = threading.Event()
    producers[0].hangs.set()


async def test_a_producer_that_fails_is_replaced(producers: list[Fake]) -> None:
    """Whatever its thread meets: a new one goes on."""
    with trio.fail_after(10):
        async with open_broker(NOWHERE) as broker:
            await broker.send(message("first"))
            producers[0].fails = RuntimeError("what nobody thought of")
            while len(producers) == 1:  # noqa: ASYNC110 (a thread tells nobody)
                await trio.sleep(0.01)
            await broker.send(message("last"))


async def test_a_quota_is_told_to_the_limit(producers: list[Fake]) -> None:
    """The limit that the broker was opened with hears of it once, and lets less through."""
    limit = AdaptiveLimit()
    async with open_broker(NOWHERE, limit=limit) as broker:
        await broker.send(message("first"))
        assert limit.try_acquire()
        for _ in range(3):  # each answer says so
            producers[0].throttle(ThrottleEvent("broker", 1, 5.0))
        await trio.sleep(0.05)
        assert not limit.try_acquire()
        assert 4.5 < limit.wait < 30
