"""The threaded and the asyncio world beside what a program there would write itself: `python -m bench.faces`.

Three figures, each sample in a process of its own, and the contenders take turns. Due at once: so many
messages, put before, fall due at one instant; messages/s from that instant to the last send. Held: the
highest rate of a ladder at which, in an open loop, everything was sent and the 99th percentile of lateness
was under 10 ms, counted from when the load's schedule says that the message should have been due. Producers:
8 threads put as fast as they can into a queue with room for 20,000, and what they put falls due meanwhile;
messages put a second. The heap has no bound.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import click

from localdelay import aio, threads

WORKERS = 20
CAPACITY = 2_000_000
DELAY = 0.5
SECONDS = 1.5
BOUND = 0.010
PRODUCERS = 8
ROOM = 20_000
RATES = (10_000, 20_000, 30_000, 40_000, 60_000, 80_000, 100_000, 150_000, 200_000)

Put: TypeAlias = Callable[[bytes, float], object]
"""Put a payload that is due after so many seconds."""
Send: TypeAlias = Callable[[bytes], None]


@contextmanager
def open_threads(send: Send, room: int) -> Iterator[Put]:
    """`localdelay.threads` with a blocking send."""
    with threads.open_delay_queue(
        lambda message: send(message.payload), capacity=room, workers=WORKERS
    ) as queue:
        yield lambda payload, delay: queue.put(payload, delay=delay)


@contextmanager
def open_heap(send: Send, room: int) -> Iterator[Put]:
    """A heap, a condition, and threads that wait for its head."""
    heap: list[tuple[float, int, bytes]] = []
    numbers = itertools.count()
    condition = threading.Condition()
    closed = False

    def put(payload: bytes, delay: float) -> None:
        item = (time.perf_counter() + delay, next(numbers), payload)
        with condition:
            heapq.heappush(heap, item)
            if heap[0] is item:
                condition.notify()

    def work() -> None:
        while True:
            with condition:
                while not heap or heap[0][0] > time.perf_counter():
                    if closed and not heap:
                        return
                    condition.wait(heap[0][0] - time.perf_counter() if heap else None)
                _, _, payload = heapq.heappop(heap)
                if heap:
                    condition.notify()
            send(payload)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    yield put
    with condition:
        closed = True
        condition.notify_all()
    for worker in workers:
        worker.join()


@asynccontextmanager
async def open_aio(send: Send) -> AsyncIterator[Put]:
    """`localdelay.aio` with a coroutine that does not wait."""

    async def send_message(message: Any) -> None:
        send(message.payload)

    async with aio.open_delay_queue(send_message, capacity=CAPACITY, workers=WORKERS) as queue:
        yield lambda payload, delay: queue.put_nowait(payload, delay=delay)


@asynccontextmanager
async def open_call_at(send: Send) -> AsyncIterator[Put]:
    """`loop.call_at`, and a task a message."""
    loop = asyncio.get_running_loop()
    pending = 0
    under_way: set[asyncio.Task[None]] = set()

    async def send_payload(payload: bytes) -> None:
        nonlocal pending
        send(payload)
        pending -= 1

    def due(payload: bytes) -> None:
        task = loop.create_task(send_payload(payload))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    def put(payload: bytes, delay: float) -> None:
        nonlocal pending
        pending += 1
        loop.call_at(loop.time() + delay, due, payload)

    yield put
    while pending:  # noqa: ASYNC110 (what a peer would do, too)
        await asyncio.sleep(0.005)


IN_THREADS = {"threads": open_threads, "heapq + Condition": open_heap}
ON_A_LOOP = {"aio": open_aio, "call_at + tasks": open_call_at}


def at_once(put: Put, count: int) -> float:
    """Put messages that are all due at one instant, which is returned."""
    due = time.perf_counter() + 1.0 + count / 40_000
    for number in range(count):
        put(number.to_bytes(100, "big"), due - time.perf_counter())
    return due


class Load:
    """Message i is put at start + i / rate, late or not."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.count = int(rate * SECONDS)
        self.put = 0
        self.start = time.perf_counter()

    def put_due(self, put: Put) -> bool:
        """Put what should have been put by now; whether there is more to come."""
        by_now = min(self.count, int((time.perf_counter() - self.start) * self.rate) + 1)
        for number in range(self.put, by_now):
            put(number.to_bytes(100, "big"), DELAY)
        self.put = by_now
        return by_now < self.count

    def p99(self, sent: list[tuple[bytes, float]]) -> float:
        """Seconds after the time that the schedule says; infinite where something was not sent once."""
        late = array("d", (math.inf,)) * self.count
        for payload, when in sent:
            number = int.from_bytes(payload, "big")
            late[number] = when - (self.start + number / self.rate + DELAY)
        return sorted(late)[int(self.count * 0.99)] if len(sent) == self.count else math.inf


def produce(put: Put, count: int) -> float:
    """Put from several threads as fast as they can; messages/s."""

    def run() -> None:
        for number in range(count // PRODUCERS):
            put(number.to_bytes(100, "big"), (number % 50) / 1000)

    producers = [threading.Thread(target=run) for _ in range(PRODUCERS)]
    began = time.perf_counter()
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    return count / (time.perf_counter() - began)


def sample(name: str, figure: str, amount: int) -> float:
    """One figure of one contender, in this process: messages/s, or the p99 in seconds for a rate."""
    sent: list[tuple[bytes, float]] = []
    clock = time.perf_counter

    def send(payload: bytes) -> None:
        sent.append((payload, clock()))

    load = due = made = None
    if name in IN_THREADS:
        with IN_THREADS[name](send, ROOM if figure == "producers" else CAPACITY) as put:
            if figure == "at once":
                due = at_once(put, amount)
            elif figure == "held":
                load = Load(amount)
                while load.put_due(put):
                    time.sleep(0.001)
            else:
                made = produce(put, 2 * amount)
    else:

        async def main() -> tuple[float | None, Load | None]:
            async with ON_A_LOOP[name](send) as put:
                if figure == "at once":
                    return at_once(put, amount), None
                load = Load(amount)
                while load.put_due(put):  # noqa: ASYNC110 (time is what it waits for)
                    await asyncio.sleep(0.001)
                return None, load

        due, load = asyncio.run(main())
    if due is not None:
        assert len(sent) == amount
        assert min(when for _, when in sent) >= due - 1e-6 or name not in ("threads", "aio"), "early"
        return amount / (max(when for _, when in sent) - due)
    if load is not None:
        return load.p99(sent)
    assert made is not None
    assert len(sent) == 2 * amount
    return made


def in_process(name: str, figure: str, amount: int) -> float:
    """`sample`, in a process of its own; a run that fails holds nothing."""
    command = [sys.executable, "-m", "bench.faces", "--sample", json.dumps([name, figure, amount])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        click.echo(done.stderr, err=True)
        return math.inf if figure == "held" else 0.0
    return float(done.stdout)


def held(name: str) -> int:
    """The highest rate below the first that is twice not held; 0 if none is."""
    best = 0
    for rate in RATES:
        if all(in_process(name, "held", rate) >= BOUND for _ in range(2)):
            break
        best = rate
    return best


@click.command()
@click.option("--runs", type=click.IntRange(1), default=3, help="The figures are medians over them.")
@click.option("--messages", type=click.IntRange(1), default=60_000)
@click.option("--figure", "figures", type=click.Choice(["at once", "producers", "held"]), multiple=True)
@click.option("--only", multiple=True, help="A contender, by name.")
@click.option("--sample", "one", hidden=True)
def main(runs: int, messages: int, figures: tuple[str, ...], only: tuple[str, ...], one: str | None) -> None:
    """Measure localdelay.threads and localdelay.aio beside their peers."""
    if one is not None:
        click.echo(sample(*json.loads(one)))
        return
    for figure in figures or ("at once", "producers", "held"):
        names = [name for name in (*IN_THREADS, *ON_A_LOOP) if not only or name in only]
        if figure == "producers":
            names = [name for name in names if name in IN_THREADS]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(runs):
            for name in names:
                taken[name].append(held(name) if figure == "held" else in_process(name, figure, messages))
        for name in names:
            row = ", ".join(f"{value:,.0f}" for value in taken[name])
            click.echo(f"{figure:10} {name:20} {statistics.median(taken[name]):>10,.0f}/s  ({row})")


if __name__ == "__main__":
    main()
