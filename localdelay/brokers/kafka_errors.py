"""What Kafka's errors mean for a message, and what a cluster says of itself.

By code: `KafkaError.retriable()` is False for all of them, since librdkafka has tried again what it can.
"""

from __future__ import annotations

import math
import time

from confluent_kafka import KafkaError, KafkaException, ThrottleEvent

from localdelay.errors import PermanentSendError, Throttled


def codes(*names: str) -> frozenset[int]:
    """The codes with these names; those with an underscore in front are librdkafka's own."""
    return frozenset(getattr(KafkaError, name) for name in names)


TIMED_OUT = codes("_MSG_TIMED_OUT", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "REQUEST_TIMED_OUT")

THROTTLED = codes(
    "_QUEUE_FULL",  # `produce` raises it as a BufferError
    "THROTTLING_QUOTA_EXCEEDED",
    "POLICY_VIOLATION",
    "NOT_ENOUGH_REPLICAS",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "_ISR_INSUFF",
)
"""The cluster, or the way to it, takes less than it is given."""

TOO_LARGE = codes("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE")
"""Of the whole request where a broker says so: what was sent alone is the only one that it can be."""

PERMANENT = TOO_LARGE | codes(
    # The message.
    "INVALID_RECORD",  # a compacted topic wants a key, for one
    "INVALID_TIMESTAMP",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT",  # headers, to a topic in the format of before 0.11
    "_INVALID_ARG",
    # The topic.
    "UNKNOWN_TOPIC_OR_PART",
    "TOPIC_EXCEPTION",
    "_UNKNOWN_TOPIC",
    "_UNKNOWN_PARTITION",
    # The access.
    "TOPIC_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    # The settings.
    "UNSUPPORTED_COMPRESSION_TYPE",
    "INVALID_REQUIRED_ACKS",
    "_UNSUPPORTED_FEATURE",
)
"""No later try can end otherwise."""

GIVEN_UP = codes("_PURGE_QUEUE", "_PURGE_INFLIGHT", "_DESTROY", "_FATAL")
"""What is said of each message once the producer ends or can't go on; the reason it has said before."""

DOWN = codes("_TRANSPORT", "NETWORK_EXCEPTION")
INVALID = codes("_INVALID_ARG")
NOT_THERE = codes("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
NO_LEADER = codes("LEADER_NOT_AVAILABLE")
"""A topic that has just been made."""
ALL_DOWN = codes("_ALL_BROKERS_DOWN")
NOT_LET_IN = codes("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM")

_LOST_COUNT = codes(
    "_FATAL",
    "_FENCED",
    "PRODUCER_FENCED",
    "INVALID_PRODUCER_EPOCH",
    "INVALID_PRODUCER_ID_MAPPING",
    "OUT_OF_ORDER_SEQUENCE_NUMBER",
)


def kafka_error(error: BaseException) -> KafkaError | None:
    """What a `KafkaException` carries, or None where it is something else."""
    carried = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return carried if isinstance(carried, KafkaError) else None


def ends_producer(error: KafkaError) -> bool:
    """Whether an idempotent producer that meets this error can send nothing any more.

    It has lost count of what the cluster has, or is not let in; another producer may well go on.
    """
    return error.fatal() or error.code() in _LOST_COUNT


def classified(error: Exception, *, held_back: float = 0.0, trouble: str = "") -> Exception:
    """What to raise for an error: `Throttled`, `PermanentSendError`, or another that says what is known.

    `held_back`: for how many seconds more the cluster does not listen to this client, as it has said;
    `trouble`: what else is known to be wrong, which a time-out does not say.
    """
    carried = kafka_error(error)
    text = str(error) if carried is None else shown(carried)
    code = None if carried is None else carried.code()
    timed_out = code in TIMED_OUT or isinstance(error, TimeoutError)
    if timed_out and held_back:
        return Throttled(f"over its quota: {text}", retry_after=held_back)
    if isinstance(error, BufferError) or code in THROTTLED:
        return Throttled(text, retry_after=held_back or None)
    if code in PERMANENT:
        return PermanentSendError(text)
    because = f"{text} ({trouble})" if trouble else text
    if timed_out:
        return TimeoutError(because)
    return ConnectionError(because) if code in DOWN else error


def shown(error: KafkaError) -> str:
    """Its name and what it says, in one line."""
    return " ".join(f"{error.name()}: {error.str()}".split())


_RECENT = 30.0  # seconds


class News:
    """What a cluster has said of itself, whatever the connection."""

    def __init__(self) -> None:
        self._trouble = ""
        self._trouble_at = self._held_back_until = -math.inf

    @property
    def trouble(self) -> str:
        """The latest that librdkafka has said of its connections, where that is not long ago."""
        return self._trouble if time.monotonic() - self._trouble_at < _RECENT else ""

    def note(self, text: str) -> None:
        """Librdkafka says something of its connections."""
        self._trouble, self._trouble_at = text, time.monotonic()

    @property
    def held_back_for(self) -> float:
        """Seconds for which no broker listens."""
        return max(0.0, self._held_back_until - time.monotonic())

    def held_back(self, event: ThrottleEvent) -> bool:
        """A broker does not listen to this client for so long. Whether that is news."""
        told = self.held_back_for > 0  # the same is said with each answer
        self._held_back_until = time.monotonic() + event.throttle_time
        return event.throttle_time > 0 and not told
