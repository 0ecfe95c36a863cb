"""A process that puts messages into a queue and is killed, stopped or watched at it.

`python -m tests.kit.faults.victim ORDERS`, ORDERS a JSON object. It says `ready` on standard output, then
what became of all as a JSON object, if it lives so long. After each put that has returned it writes the
message's key and id to its log, and before it that it begins: so a kill can't take what was accepted, and
what arrives though its put has not returned can be told from what nobody has put.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from contextlib import suppress
from typing import Any, Literal

import attrs
import trio

import localdelay
from localdelay import BatchPolicy, DelayQueue, DrainReport, QueueClosed, QueueFull, RetryPolicy
from localdelay.brokers import Broker, open_broker
from tests.kit.conserving import conserve
from tests.kit.faults.counting import payload_of
from tests.kit.faults.gauges import gauges

FLUSH_EVERY = 20
MARKS = CANCELLING, CANCELLED, NOT_CANCELLED, BEGUN = "?-!+"
"""Before the key of a message: it is going to be cancelled, was, could not be; it is going to be put."""
NOWAIT_TASKS = 2


@attrs.frozen(kw_only=True)
class Orders:
    """What it is to do. Times in seconds."""

    url: str
    log: str
    name: str
    """Of this run: its keys begin with it."""
    epoch: float
    """Unix time minus `time.monotonic()`, which no step of the wall clock moves."""
    seed: int
    ends: str
    """`drained`: when it has put for `seconds`, and all is sent; `stopped`: on a signal."""
    seconds: float = 1e9
    """How long it puts; 0: nothing."""
    rate: float = 2_000.0
    """Messages a second, of all tasks together."""
    tasks: int = 16
    low: float = 0.0
    high: float = 2.0
    """Delays are drawn from between these two."""
    size: int = 100
    capacity: int = 100_000
    workers: int = 20
    batch: int | None = None
    """Messages of a batch at most; None: each alone."""
    journal: str | None = None
    durability: Literal["os", "fsync"] = "fsync"
    grace: float | None = None
    """For the drain; when `ends` is drained, None waits for all."""
    hand_back: bool = False
    sample_every: float | None = None
    catch_up_rate: float | None = None
    cancels: bool = False
    """One task cancels what it has put, and writes that down too."""


def say(what: str) -> None:
    os.write(1, f"{what}\n".encode())


class Producer:
    """Puts messages in several ways, and writes down what was accepted, and what cancelled."""

    def __init__(self, queue: DelayQueue, orders: Orders) -> None:
        self._queue = queue
        self._orders = orders
        self._random = random.Random(orders.seed)
        self._log = os.open(orders.log, os.O_APPEND | os.O_WRONLY | os.O_CREAT, 0o600)
        self._serial = 0
        self._until = trio.current_time() + orders.seconds

    async def run(self) -> None:
        """Put until the time is over, or nothing more is taken."""
        if not self._orders.seconds:
            return
        async with trio.open_nursery() as nursery:
            for number in range(self._orders.tasks):
                nursery.start_soon(self._put_all, number)

    async def _put_all(self, number: int) -> None:
        interval = self._orders.tasks / self._orders.rate
        at = trio.current_time() + interval * number / self._orders.tasks
        unflushed: list[str] = []
        with suppress(QueueClosed):
            while at < self._until:
                await trio.sleep_until(at)
                at += interval
                if number < NOWAIT_TASKS:
                    await self._put_nowait(unflushed)
                elif number == NOWAIT_TASKS and self._orders.cancels:
                    await self._put_and_cancel()
                else:
                    await self._put(named=number % 2 == 1)
        await self._flush(unflushed)

    def _message(self, kind: str) -> tuple[str, bytes, float]:
        self._serial += 1
        key = f"{self._orders.name}.{self._serial}.{kind}"
        delay = self._random.uniform(self._orders.low, self._orders.high)
        # Before the put: the queue can't make it due earlier.
        due = time.monotonic() + self._orders.epoch + delay
        self._write([f"{BEGUN}{key} -\n"])
        return key, payload_of(key, due, self._orders.size), delay

    async def _put(self, *, named: bool) -> None:
        key, payload, delay = self._message("named" if named else "plain")
        if named:
            headers = {"Key": key, "Note": "ein Kopf – mit Umlaut: ü"}
            message = await self._queue.put(payload, delay=delay, id=f"chosen-{key}", headers=headers)
        else:
            message = await self._queue.put(payload, delay=delay)
        self._write([f"{key} {message.id}\n"])

    async def _put_and_cancel(self) -> None:
        key, payload, delay = self._message("cancelled")
        message = await self._queue.put(payload, delay=delay)
        self._write([f"{key} {message.id}\n"])
        self._write([f"{CANCELLING}{key} {message.id}\n"])
        mark = CANCELLED if self._queue.cancel(message.id) else NOT_CANCELLED
        self._write([f"{mark}{key} {message.id}\n"])

    async def _put_nowait(self, unflushed: list[str]) -> None:
        key, payload, delay = self._message("nowait")
        try:
            message = self._queue.put_nowait(payload, delay=delay)
        except QueueFull:
            return
        unflushed.append(f"{key} {message.id}\n")
        if len(unflushed) >= FLUSH_EVERY:
            await self._flush(unflushed)

    async def _flush(self, unflushed: list[str]) -> None:
        if self._orders.journal is not None:
            await self._queue.flush()
        self._write(unflushed)
        unflushed.clear()

    def _write(self, lines: list[str]) -> None:
        os.write(self._log, "".join(lines).encode())


async def sample(every: float, samples: list[dict[str, int]], orders: Orders) -> None:
    """What this process holds, now and then."""
    while True:
        await trio.sleep(every)
        samples.append(gauges(orders.workers))


def _settings(orders: Orders, broker: Broker) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "capacity": orders.capacity,
        "workers": orders.workers,
        "retry": RetryPolicy(wait_initial=0.05, wait_max=0.5, wait_jitter=0.05),
    }
    if orders.batch is None:
        settings["send"] = broker.send
    else:
        settings |= {"send_batch": broker.send_batch, "batch": BatchPolicy(max_messages=orders.batch)}
    if orders.journal is not None:
        settings["journal"] = localdelay.SqliteJournal(orders.journal, durability=orders.durability)
        settings["catch_up_rate"] = orders.catch_up_rate
    return settings


async def run(orders: Orders) -> None:
    """Do it all."""
    samples: list[dict[str, int]] = []
    async with open_broker(orders.url) as broker:
        opened = localdelay.open_delay_queue(**_settings(orders, broker))
        async with opened as queue, trio.open_nursery() as nursery:
            producer = Producer(queue, orders)
            recovered = queue.statistics().accepted
            if orders.sample_every is not None:
                nursery.start_soon(sample, orders.sample_every, samples, orders)
            hand_back = broker.publish_delayed if orders.hand_back else None
            say("ready")
            if orders.ends == "stopped":
                assert orders.grace is not None
                report = await localdelay.run_until_signal(
                    queue, producer.run, grace=orders.grace, hand_back=hand_back
                )
            else:
                await producer.run()
                report = await queue.drain(orders.grace, hand_back)
            nursery.cancel_scope.cancel()
    say(json.dumps(_told(report, queue, recovered, samples)))


def _told(
    report: DrainReport, queue: DelayQueue, recovered: int, samples: list[dict[str, int]]
) -> dict[str, Any]:
    statistics = conserve(queue)
    return {
        "sent": report.sent,
        "handed_back": report.handed_back,
        "spooled": report.spooled,
        "dead": report.dead,
        "remaining": [message.id for message in report.remaining],
        "pending": statistics.pending,
        "recovered": recovered,
        "lateness_max": statistics.lateness.max,
        "failures": statistics.failures,
        "samples": samples,
    }


if __name__ == "__main__":
    trio.run(run, Orders(**json.loads(sys.argv[1])))
