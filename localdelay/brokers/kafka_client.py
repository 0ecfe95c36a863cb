"""One librdkafka producer, and what it has said so far."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
from confluent_kafka import KafkaError, KafkaException, Producer, ThrottleEvent

from localdelay.brokers.kafka_errors import (
    ALL_DOWN,
    GIVEN_UP,
    NOT_LET_IN,
    PURGED,
    classified,
    ends_producer,
    kafka_error,
    shown,
)
from localdelay.brokers.kafka_sending import Sending
from localdelay.settling import caused_by

logger = logging.getLogger("localdelay.brokers.kafka")

Parcel: TypeAlias = tuple[int, bytes, bytes | str | None, list[tuple[str, str | bytes | None]]]
"""A message as it travels: its place in a `send` or `send_batch`, payload, key and headers."""

_RECENT = 30.0


class Client:
    """What librdkafka calls back it calls from within `serve`, in whatever thread calls that."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        """Raises what confluent-kafka raises for settings that it refuses."""
        self.reports: deque[tuple[Sending, int, KafkaError | None]] = deque()
        """What has become of messages."""
        self.ended = False
        """It can send nothing any more."""
        self.fatal: KafkaException | None = None
        """Why, where it has said so."""
        self.all_down = False
        """It has found no broker that listens."""
        self.not_let_in = False
        self._trouble = ""
        self._trouble_at = -math.inf
        self._held_back_until = -math.inf
        callbacks = {
            "error_cb": self._note_error,
            "throttle_cb": self._note_throttling,
            "logger": _ToDebug(),
        }
        self._producer: Producer | None = Producer({**settings, **callbacks})
        self.produce: Callable[..., None] = self._producer.produce

    @property
    def trouble(self) -> str:
        """The latest that it has said of its connections, where that is not long ago."""
        return self._trouble if time.monotonic() - self._trouble_at < _RECENT else ""

    def serve(self, timeout: float) -> None:
        """Take reports and news; wait for the first of them for up to `timeout` seconds."""
        producer = self._producer
        if producer is None:
            return
        try:
            producer.poll(timeout)
        except KafkaException as error:
            # Its fatal error, which comes once; what it calls back raises nothing.
            logger.debug("%s", error)
            self.fatal = error
            self.ended = True

    def report(self, sending: Sending, position: int, error: KafkaError | None, _: object) -> None:
        """What has become of a message, as librdkafka says it."""
        if error is not None and ends_producer(error):
            self.ended = True
        self.reports.append((sending, position, error))

    def topic_error(self, topic: str, timeout: float) -> KafkaError | None:
        """What is wrong with the topic, or None. Raises `KafkaException` where no broker answers in time."""
        assert self._producer is not None  # noqa: S101 (asked only when opening)
        found = self._producer.list_topics(topic, timeout=timeout).topics.get(topic)
        error: KafkaError | None = None if found is None else found.error
        return error

    def failure(self, error: Exception) -> Exception:
        """What to raise for an error that a message was refused or reported with."""
        carried = kafka_error(error)
        if carried is not None and carried.code() in GIVEN_UP:
            if self.fatal is not None:
                error = KafkaException(*self.fatal.args)  # each raised once, or its traceback would grow
            elif carried.code() in PURGED:
                return caused_by(ConnectionError("librdkafka has given the message up"), error)
            else:
                self.ended = True
        held_back = max(0.0, self._held_back_until - time.monotonic())
        failure = classified(error, retry_after=held_back or None, trouble=self.trouble)
        return caused_by(failure, error)

    def give_up(self) -> None:
        """Drop whatever is not confirmed yet; it will be reported."""
        if self._producer is not None:
            self._producer.purge()

    def unreported(self) -> int:
        """How many messages it has that it has not reported."""
        return 0 if self._producer is None else len(self._producer)

    def close(self) -> None:
        """End its threads and connections, which may take a while; what it has not reported it never will."""
        self.produce = _ended
        self._producer = None

    def _note_error(self, error: KafkaError) -> None:
        logger.debug("%s", error)
        if error.code() in ALL_DOWN:
            self.all_down = True
            return
        self.not_let_in = self.not_let_in or error.code() in NOT_LET_IN
        self._trouble = shown(error)
        self._trouble_at = time.monotonic()

    def _note_throttling(self, event: ThrottleEvent) -> None:
        self._held_back_until = time.monotonic() + event.throttle_time


def _ended(*_: object) -> None:
    raise ConnectionError("this Kafka producer has ended")


@attrs.frozen
class _ToDebug:
    """Stands where librdkafka wants a logger: what it gets over by itself is no news to anybody else."""

    def log(self, _: int, line: object, *values: Any) -> None:
        logger.debug(line, *values)
