"""A Kafka producer on the Trio loop, and the one thread that waits for it.

    send --> [ outbox ] --produce--> [ librdkafka: batches, threads, retries of its own ] --poll--> settled
               a turn of the loop

librdkafka calls back for each message, under the interpreter's lock. To hand that back and forth between two
threads costs more than all the rest: so a task serves the producer, on the loop, for as long as there is
something for it in each turn, and only then a thread waits, which wakes the loop once it has something.

What is sent in one turn is produced in one go: librdkafka then makes fewer and larger requests of it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio
from confluent_kafka import KafkaException
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    cancel_shielded_checkpoint,
    current_task,
    enable_ki_protection,
    reschedule,
    spawn_system_task,
    wait_task_rescheduled,
)

from localdelay.brokers.kafka_client import Client, Parcel
from localdelay.brokers.kafka_errors import INVALID, NO_LEADER, NOT_THERE, PURGED, kafka_error, shown
from localdelay.brokers.kafka_sending import Sending

logger = logging.getLogger("localdelay.brokers.kafka")

_POLL = 0.1
_SPIN = 0.0002  # about what it takes to have the thread wait, and to be woken by it
_EMPTY_TURNS = 2
_FIRST_QUESTION = 0.3
_QUESTION = 1.0
_ALL_DOWN_AFTER = 1.0  # a name may have an address that nobody listens at beside one that works
_TOPIC_APPEARS = 2.0
_PRODUCER_ID = 0.55  # librdkafka asks for one when it is half a second old, and sends nothing before
_GIVE_UP_TIMEOUT = 1.0
_CLOSE_TIMEOUT = 2.5
_RENEWED_EVERY = 1.0


@attrs.frozen
class Place:
    """The cluster and the topic."""

    hosts: str
    """As `host:port,host:port`."""
    topic: str


class Line:
    """Gives messages to librdkafka, and settles them.

    A producer that can't go on is replaced by a new one; what it had under way has failed.
    """

    # The thread alone makes and ends producers. It polls while `_listening`, and the task while not: so no
    # two poll at the same time.

    def __init__(
        self, place: Place, settings: Mapping[str, object], *, open_timeout: float, idempotent: bool
    ) -> None:
        self._place = place
        self._settings = settings
        self._open_timeout = open_timeout
        self._idempotent = idempotent
        self._token = trio.lowlevel.current_trio_token()
        self._opened = trio.Event()
        self._refusal: Exception | None = None
        self._ended = trio.Event()
        self._closing = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="localdelay-kafka", daemon=True)
        self._listen = threading.Lock()
        self._listen.acquire()
        self._listening = False
        self._client: Client | None = None
        self._outbox: list[tuple[Sending, Sequence[Parcel]]] = []
        self._under_way: set[Sending] = set()
        self._since = -math.inf
        self._idle: Task | None = None

    async def open(self) -> None:
        """Connect. Raises `ConnectionError`, and `ValueError` for settings that librdkafka refuses."""
        self._thread.start()
        try:
            await self._opened.wait()
            if self._refusal is not None:
                raise self._refusal
        except BaseException:
            await self.close()
            raise
        spawn_system_task(self._serve)

    async def close(self) -> None:
        """End the thread and the producer; what is under way fails, and nothing is sent from now on."""
        self._closed = True
        self._closing.set()
        self._wake()
        with suppress(RuntimeError):  # it has been released already
            self._listen.release()
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await self._ended.wait()
            self._thread.join()
        while self._under_way:
            self._under_way.pop().end(_closed_error())  # the thread hangs

    @enable_ki_protection
    def give(self, sending: Sending, parcels: Sequence[Parcel]) -> None:
        """Have messages sent. Whatever comes of it, nothing is raised: they are settled."""
        if not parcels:
            return
        self._outbox.append((sending, parcels))
        self._under_way.add(sending)
        if len(self._under_way) == 1 or len(parcels) > 1:
            self._produce()
        else:
            self._wake()

    def _produce(self) -> None:
        """Give librdkafka what is in the outbox."""
        outbox, self._outbox = self._outbox, []
        self._since = time.perf_counter()
        client, topic = self._client, self._place.topic
        for sending, parcels in outbox:
            if sending.abandoned:
                self._under_way.discard(sending)
                continue
            for position, payload, key, headers in parcels:
                if client is None or self._closed:
                    self._settle(sending, position, _closed_error())
                    continue
                report = partial(client.report, sending, position)
                try:
                    client.produce(topic, payload, key, -1, report, None, 0, headers)
                except Exception as error:  # noqa: BLE001 (raised by the send that waits for it)
                    self._settle(sending, position, client.failure(error))

    def _settle(self, sending: Sending, position: int, error: Exception | None) -> None:
        if sending.settle(position, error):
            self._under_way.discard(sending)

    def _take_reports(self, client: Client) -> None:
        reports, under_way = client.reports, self._under_way
        while reports:
            sending, position, error = reports.popleft()
            failure: Exception | None = None
            if error is not None:
                given_up = self._closed and error.code() in PURGED
                failure = _closed_error() if given_up else client.failure(KafkaException(error))
            if sending.settle(position, failure):
                under_way.discard(sending)

    async def _serve(self) -> None:
        """Serve the producer while there is something for it; else have the thread wait.

        Where reports come within `_SPIN`, as on one machine, it looks for them for that long in vain too.
        """
        quick = True
        empty_turns = 0
        while (client := self._client) is not None and not self._closed:
            if self._outbox:
                self._produce()
            if not self._listening:
                client.serve(0)
                waited = time.perf_counter() - self._since
                if client.reports:
                    quick = waited < 1.5 * _SPIN
                    empty_turns = 0
                    self._take_reports(client)
                    await cancel_shielded_checkpoint()
                    continue
                spins = quick and waited < _SPIN and self._under_way
                if not client.ended and (spins or empty_turns < _EMPTY_TURNS):
                    empty_turns += 1
                    await cancel_shielded_checkpoint()
                    continue
                self._listening = True
                self._listen.release()
            empty_turns = 0
            self._idle = current_task()
            await wait_task_rescheduled(self._stop_waiting)

    def _wake(self) -> None:
        if self._idle is not None:
            reschedule(self._idle)
            self._idle = None

    def _stop_waiting(self, _: RaiseCancelT) -> Abort:
        self._idle = None
        return Abort.SUCCEEDED

    def _heard(self) -> None:
        self._listening = False
        self._wake()

    # From here on: in the thread.

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            if self._opened.is_set():
                logger.exception("the thread of the Kafka producer has failed")
            self._refusal = error
        self._call(self._opened.set)
        self._call(self._ended.set)

    def _work(self) -> None:
        client = self._client = self._connect()
        self._call(self._opened.set)
        renewed = -math.inf
        try:
            while True:
                self._listen.acquire()
                while not (client.reports or self._closing.is_set()):
                    if client.ended and time.monotonic() >= renewed + _RENEWED_EVERY:
                        renewed = time.monotonic()
                        client = self._renewed(client)
                    client.serve(_POLL)
                if self._closing.is_set():
                    return
                self._call(self._heard)
        finally:
            self._client = None
            self._end(client)

    def _renewed(self, client: Client) -> Client:
        try:
            new = Client(self._settings)
        except Exception as error:  # noqa: BLE001 (no threads or files left, say: later, perhaps)
            logger.debug("no new producer: %s", error)
            return client
        self._client = new
        self._end(client)
        return new

    def _end(self, client: Client) -> None:
        client.give_up()
        until = time.monotonic() + _GIVE_UP_TIMEOUT
        while client.unreported() and time.monotonic() < until:
            client.serve(_POLL)
        self._call(partial(self._take_reports, client))
        client.close()

    def _call(self, function: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._token.run_sync_soon(function)

    def _connect(self) -> Client:
        """A client whose cluster has answered. Raises as `open` does."""
        try:
            client = Client(self._settings)
        except Exception as error:  # confluent-kafka checks some settings itself, each in its own way
            carried = kafka_error(error)
            reason = str(error) if carried is None else " ".join(carried.str().split())
            if carried is not None and carried.code() not in INVALID:
                raise self._no_connection(reason) from error
            raise ValueError(f"options that librdkafka does not take: {reason}") from error
        try:
            begun = time.monotonic()
            self._find_topic(client, begun)
            while (
                self._idempotent
                and not (client.fatal or self._closing.is_set())
                and (left := begun + _PRODUCER_ID - time.monotonic()) > 0
            ):
                client.serve(left)
            if client.fatal is not None:
                raise self._no_connection(str(client.fatal.args[0].str())) from client.fatal
        except BaseException:
            self._end(client)
            raise
        return client

    def _find_topic(self, client: Client, begun: float) -> None:
        """Wait until a broker knows the topic; it may take a moment until it has made it."""
        question = _FIRST_QUESTION
        answered = math.inf
        while not self._closing.is_set():
            now = time.monotonic()
            left = begun + self._open_timeout - now
            if left <= 0:
                reason = client.trouble or f"no answer within {self._open_timeout:g} s"
                raise self._no_connection(reason)
            try:
                error = client.topic_error(self._place.topic, min(question, left))
            except KafkaException as raised:
                client.serve(0)
                all_down = client.all_down and time.monotonic() >= begun + _ALL_DOWN_AFTER
                if client.not_let_in or all_down:
                    raise self._no_connection(client.trouble or "all brokers are down") from raised
                question = _QUESTION
                continue
            if error is None or error.code() in NO_LEADER:
                return
            answered = min(answered, now)
            if error.code() not in NOT_THERE or now >= answered + _TOPIC_APPEARS:
                raise self._no_connection(f"topic {self._place.topic!r}: {shown(error)}")
            self._closing.wait(_POLL)

    def _no_connection(self, reason: str) -> ConnectionError:
        return ConnectionError(f"no connection to Kafka at {self._place.hosts}: {' '.join(reason.split())}")


def _closed_error() -> Exception:
    return ConnectionError("the connection to Kafka is closed")
