"""A producer of confluent-kafka's, made and ended in a thread, which also waits for what it reports.

Its reports are taken on the Trio thread, in each turn of the loop. The thread only waits for the first of
them, while the loop has nothing to do: to call back from there costs a change of threads for each message,
and up to 5 ms where the loop is busy.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from confluent_kafka import KafkaError, KafkaException, Producer, ThrottleEvent

from localdelay.brokers.kafka_errors import (
    ALL_DOWN,
    GIVEN_UP,
    INVALID,
    NO_LEADER,
    NOT_LET_IN,
    NOT_THERE,
    TOO_LARGE,
    News,
    ends_producer,
    kafka_error,
    shown,
)
from localdelay.brokers.outbox import Outbox, Parcel

logger = logging.getLogger("localdelay.brokers.kafka")

_MOST_REPORTS = 1000
"""Of one turn of the loop: what they wake is to run meanwhile."""

# In seconds.
_POLL = 0.1
_QUESTION = 1.0
_FIRST_QUESTION = 0.3
_ALL_DOWN_AFTER = 1.0  # a name may have an address that nobody listens at beside one that works
_TOPIC_APPEARS = 2.0
_GIVE_UP_TIMEOUT = 1.0
_CLOSE_TIMEOUT = 2.5


class _Enough(Exception):
    """Raised by what `poll` calls, which then returns and keeps the rest for the next poll."""


class Connection(trio.abc.Instrument):
    """One producer, and its thread."""

    def __init__(
        self,
        topic: str,
        settings: Mapping[str, object],
        news: News,
        slow_down: Callable[[float], object],
        outbox: Outbox,
    ) -> None:
        self._topic = topic
        self._settings = settings
        self._news = news
        self._slow_down = slow_down
        self._outbox = outbox
        self._producer: Any = None
        self._reason: Exception | None = None
        self._closing = threading.Event()
        self._opened = trio.Event()
        self._gone = trio.Event()
        self._ended = trio.Event()
        self._all_down = self._not_let_in = False
        self._confirmed: list[Parcel] = []
        self._watches = True
        """Whether it is the thread that polls, and not the loop."""
        self._watch = threading.Lock()
        self._watch.acquire()
        # A daemon: librdkafka may hang at its end, and the process must not.
        self._thread = threading.Thread(target=self._run, name="localdelay-kafka", daemon=True)

    async def open(self) -> None:
        """Make it, and find the topic. Raises `ConnectionError`, and `ValueError` for the settings."""
        self._thread.start()
        await self._opened.wait()
        if self._reason is not None:
            raise self._reason
        self._watches = False
        trio.lowlevel.add_instrument(self)

    async def close(self) -> None:
        """End it."""
        with suppress(KeyError):
            trio.lowlevel.remove_instrument(self)
        self._closing.set()
        with suppress(RuntimeError):  # it has been let go already
            self._watch.release()
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await self._ended.wait()
            self._thread.join()

    async def lost(self) -> Exception:
        """Wait until it can't go on; why."""
        await self._gone.wait()
        return self._reason or ConnectionError("the producer has ended")

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Have them produced, unless librdkafka has none of its own any more for them to go to."""
        producer, topic, report = self._producer, self._topic, self._report
        if producer is None or self._gone.is_set():
            raise ConnectionError("the producer has ended")
        produce = producer.produce
        for position, parcel in enumerate(parcels):
            payload, headers = parcel.content
            try:
                produce(topic, payload, on_delivery=partial(report, parcel), headers=headers)
            except KafkaException as error:
                if not self._ends(error.args[0]):
                    parcel.settle(error)
                    continue
                if position == 0:
                    raise ConnectionError(shown(error.args[0])) from error
                self._outbox.again(parcels[position:])
                return
            except Exception as error:  # noqa: BLE001 (such as its BufferError: it is this message's alone)
                parcel.settle(error)

    @trio.lowlevel.enable_ki_protection
    def before_io_wait(self, timeout: float) -> None:
        """Take what is reported; where there is nothing the thread waits for it. Trio calls it each turn."""
        if self._watches:
            return
        if self._take_reports() or self._gone.is_set():
            self._outbox.call_soon(self._take_reports)
        elif timeout:
            self._watches = True
            self._watch.release()

    def _found(self) -> None:
        """The thread has seen a report, and waits."""
        self._watches = False
        self._take_reports()

    def _take_reports(self) -> bool:
        """Whether there were any, as far as one turn of the loop goes."""
        if self._closing.is_set() or self._gone.is_set():
            return False
        try:
            self._producer.poll(0)
        except _Enough:
            pass
        except Exception as error:  # noqa: BLE001 (whatever it is: another producer is the way out of it)
            self._reason = self._reason or error
            self._gone.set()
        return self._settle_confirmed()

    def _settle_confirmed(self) -> bool:
        confirmed, self._confirmed = self._confirmed, []
        for parcel in confirmed:
            parcel.settle()
        return bool(confirmed)

    # From here on: in the thread.

    def _run(self) -> None:
        try:
            self._make()
            self._find_topic()
            self._outbox.call_soon(self._opened.set)
            while not self._closing.is_set():
                self._watch.acquire()
                try:
                    while not self._closing.is_set():
                        self._producer.poll(_POLL)
                except _Enough:
                    self._outbox.call_soon(self._found)
        except Exception as error:  # noqa: BLE001 (the publisher says it: what librdkafka can't get over, mostly)
            self._reason = self._reason or error
        self._outbox.call_soon(self._gone.set)
        self._outbox.call_soon(self._opened.set)
        if self._producer is not None:
            self._end()
        self._outbox.call_soon(self._ended.set)

    def _end(self) -> None:
        # Nobody else must hold the producer, or its threads and connections would stay: no local of a frame
        # that is in the traceback of a reason.
        producer, self._producer = self._producer, None
        producer.purge()
        until = time.monotonic() + _GIVE_UP_TIMEOUT
        while len(producer) and time.monotonic() < until:
            with suppress(KafkaException, _Enough):
                producer.poll(_POLL)
        self._outbox.call_soon(self._settle_confirmed)

    def _make(self) -> None:
        """Make the producer. Raises `ValueError` for options that librdkafka does not take."""
        callbacks = {"error_cb": self._note, "throttle_cb": self._held_back, "logger": _ToDebug()}
        try:
            self._producer = Producer({**self._settings, **callbacks})
        except Exception as error:  # noqa: BLE001 (confluent-kafka checks some itself, each in its own way)
            carried = kafka_error(error)
            text = " ".join((str(error) if carried is None else carried.str()).split())
            if carried is not None and carried.code() not in INVALID:
                raise ConnectionError(text) from None
            raise ValueError(f"options that librdkafka does not take: {text}") from None

    def _find_topic(self) -> None:
        """Wait until a broker knows the topic; it may take a moment until it has made it."""
        topic, question = self._topic, _FIRST_QUESTION
        begun, answered = time.monotonic(), math.inf
        while not self._closing.is_set():
            try:
                found = self._producer.list_topics(topic, timeout=question).topics.get(topic)
            except KafkaException as error:
                self._producer.poll(0)  # its news say why
                all_down = self._all_down and time.monotonic() >= begun + _ALL_DOWN_AFTER
                if self._not_let_in or all_down:
                    raise ConnectionError(self._news.trouble or "all brokers are down") from error
                question = _QUESTION
                continue
            fault = None if found is None else found.error
            if fault is None or fault.code() in NO_LEADER:
                return
            answered = min(answered, time.monotonic())
            if fault.code() not in NOT_THERE or time.monotonic() >= answered + _TOPIC_APPEARS:
                raise ConnectionError(f"topic {topic!r}: {shown(fault)}")
            self._closing.wait(_POLL)

    # From here on: in the thread or on the loop, whichever polls.

    def _report(self, parcel: Parcel, error: KafkaError | None, _: object) -> None:
        if error is None:
            self._confirmed.append(parcel)
        elif error.code() in GIVEN_UP:
            return  # it ends, and the publisher says why
        elif error.code() in TOO_LARGE and not parcel.alone:
            self._outbox.call_soon(partial(self._outbox.again, (parcel,), alone=True))
        else:
            self._outbox.settle_soon(parcel, KafkaException(error))
            self._ends(error)
        if self._watches or len(self._confirmed) >= _MOST_REPORTS:
            raise _Enough

    def _ends(self, error: KafkaError) -> bool:
        """Whether the producer can't go on; another one is then made."""
        ends = error.code() in GIVEN_UP or ends_producer(error)
        if ends:
            self._reason = self._reason or ConnectionError(shown(error))
            self._outbox.call_soon(self._gone.set)
        return ends

    def _held_back(self, event: ThrottleEvent) -> None:
        if self._news.held_back(event):
            self._outbox.call_soon(self._slow_down, event.throttle_time)

    def _note(self, error: KafkaError) -> None:
        logger.debug("%s", error)
        if error.code() in ALL_DOWN:
            self._all_down = True
            return
        self._not_let_in = self._not_let_in or error.code() in NOT_LET_IN
        self._news.note(shown(error))


@attrs.frozen
class _ToDebug:
    """Stands where librdkafka wants a logger: what it gets over by itself is no news to anybody else."""

    def log(self, _: int, line: object, *values: Any) -> None:
        logger.debug(line, *values)
