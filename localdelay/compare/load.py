"""One load through one plan, in the process of that plan: how late sends begin, and what it costs."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import attrs
import trio

from localdelay.benchmark.load import NUMBER_BYTES, Delays, Generator, filling
from localdelay.benchmark.meter import Due, Meter
from localdelay.benchmark.process import machine_bytes, resident_bytes
from localdelay.benchmark.result import Settings as Load
from localdelay.errors import QueueFull
from localdelay.lateness import Latencies
from localdelay.timer import open_timer

from .observer import Seen, look, remove
from .plans import Opened, Opening, Sent, open_plan
from .result import Busy, Cost, Waiting
from .settings import Plan, Settings

if TYPE_CHECKING:
    from localdelay.redis_plan.link import Link

ON_TIME = 0.3
"""Seconds. A rate is held if lateness stays under this at p99: the literal plan 1 polls every 0.2 s."""
PATIENCE = 1.0
"""Seconds after the last message is due, or put, for the rest of them to be sent."""
FILL = 20_000
"""Messages that wait while nothing comes due."""
QUICK_FILL = 2_000
_FEW = 10_000
"""With fewer than this, the growth of the process says nothing about one message."""
_FILL_DELAY = 3600.0
_FILL_CHUNK = 500
_SHARD_FILL = 2500
"""A shard holds 4,000, and they are not spread evenly."""
_IDLE_SECONDS = {Plan.REDIS: 5.0}
"""A heartbeat of it comes every 5 s."""
_IDLE_OTHERS = 2.0
_IDLE_QUICK = 0.5
_SETTLE = 0.5
_LOOK = 0.01
_RUNG_SECONDS = 0.7
_RUNG_DELAY = 0.3
"""Seconds, of the longest delay: a load of a rung is short."""


def _idle_seconds(plan: Plan, quick: bool) -> float:
    return _IDLE_SECONDS.get(plan, _IDLE_QUICK if quick else _IDLE_OTHERS)


class Bench:
    """The process's means: the connection to look at Redis with, and names that are new."""

    def __init__(self, plan: Plan, settings: Settings, link: Link | None, server: str, token: str) -> None:
        self.plan = plan
        self.settings = settings
        self.link = link
        self._server = server
        self._token = token
        self._count = 0

    async def seen(self) -> Seen:
        """What Redis says of itself; nothing where there is none."""
        return Seen({}, 0.0, 0) if self.link is None else await look(self.link)

    @contextlib.asynccontextmanager
    async def open(
        self, capacity: int, sink: Callable[[Due], None], stored: Callable[[bytes], None], counts: Sent
    ) -> AsyncIterator[Opened]:
        """Run the plan under a name of its own, and remove what it has left in Redis."""
        self._count += 1
        opening = Opening(
            server=self._server,
            name=f"{self._token}-{self.plan}-{self._count}",
            refused=counts,
        )
        try:
            async with open_plan(self.plan, self.settings, capacity, sink, stored, opening) as opened:
                yield opened
        finally:
            if self.link is not None:
                with trio.move_on_after(5.0, shield=True):
                    await remove(self.link, opening.name)

    async def waiting(self) -> tuple[Waiting, Cost]:
        """Have many messages wait: the memory that takes, and what it costs to wait."""
        settings = self.settings
        count = FILL
        if self.plan.in_redis:
            count = min(QUICK_FILL if settings.quick else FILL, _SHARD_FILL * settings.shards)
        stored = 0

        def note(_: bytes) -> None:
            nonlocal stored
            stored += 1

        rest = filling(settings.size, settings.seed)
        async with self.open(FILL, lambda _: None, note, counts := Sent()) as opened:

            async def fill(first: int, stop: int) -> None:
                for number in range(first, stop):
                    payload = number.to_bytes(NUMBER_BYTES, "big") + rest
                    # Spread over a minute: as in use, due times differ.
                    opened.put(payload, _FILL_DELAY + 60.0 * number / FILL)
                    if number % _FILL_CHUNK == 0:
                        while number - stored - counts.refused > _FILL_CHUNK:  # noqa: ASYNC110
                            await trio.sleep(_LOOK)
                while stored + counts.refused < stop:  # noqa: ASYNC110 (nobody tells)
                    await trio.sleep(_LOOK)

            warm = count // 10
            await fill(0, warm)
            gc.collect()
            resident, before, had = resident_bytes(), await self.seen(), stored
            await fill(warm, count)
            gc.collect()
            grown, after = resident_bytes(), await self.seen()
            more = max(1, stored - had)
            in_process = None
            if resident is not None and grown is not None and count >= _FEW:
                in_process = (grown - resident) / more
            in_redis = (after.memory - before.memory) / more if self.link is not None else None
            await trio.sleep(_SETTLE)
            window = Window(self, opened)
            now = trio.current_time()
            await window.watch(now, now + _idle_seconds(self.plan, settings.quick))
            idle = window.cost()
        assert idle is not None  # noqa: S101 (it was watched)
        return Waiting(messages=stored, process_bytes=in_process, redis_bytes=in_redis), idle

    async def busy(self, load: Load, before: float) -> tuple[Busy, list[Latencies]]:
        """Put the load, and count what it costs from so many seconds after the first put to the last."""
        return await Round(self, load, before).go()

    async def holds(self, rate: float) -> bool:
        """Whether this rate is held, by a short load with short delays."""
        delays = self.settings.delays
        scale = min(1.0, _RUNG_DELAY / delays.longest) if delays.longest else 1.0
        short = Delays(tuple(scale * value for value in delays.values), delays.is_range)
        load = attrs.evolve(
            self.settings.load(), rate=(rate, rate), seconds=_RUNG_DELAY + _RUNG_SECONDS, delays=short
        )
        busy, _ = await self.busy(load, _RUNG_DELAY)
        return busy.held


class Round:
    """One load."""

    def __init__(self, bench: Bench, load: Load, before: float) -> None:
        self._bench = bench
        self._load = load
        self._before = before
        self._clock = trio.lowlevel.current_clock().current_time
        self._pace = load.pace
        self._meter = Meter(load.pace, load.delays, load.seed, self._clock)
        self._refused = 0
        self._stored = 0
        self._counts = Sent()

    async def go(self) -> tuple[Busy, list[Latencies]]:
        """Run it to its end, or until it is plain that it won't be in time."""
        gc.collect()
        load, pace = self._load, self._pace
        capacity = load.capacity(machine_bytes())
        async with self._bench.open(capacity, self._sink, self._note, self._counts) as opened:
            start = self._clock() + 0.01
            self._meter.start(start)
            window = Window(self._bench, opened)
            over = start + load.seconds + load.delays.longest + PATIENCE
            with (
                trio.move_on_at(over) as scope,
                contextlib.closing(open_timer("auto")) as timer,
            ):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(window.watch, start + self._before, start + load.seconds)
                    generator = Generator(pace, self._clock, timer.sleep_until)
                    await generator.offer(self._putter(opened), self._meter.put, start)
                    while self._meter.sent + self._refused + self._counts.refused < pace.total:  # noqa: ASYNC110
                        await trio.sleep(_LOOK)
            await window.end()
        self._meter.finish()
        latencies = Latencies.together(self._meter.intervals)
        p50, p99 = latencies.at(0.5, 0.99) if latencies.count else (None, None)
        return (
            Busy(
                offered=pace.total,
                stored=self._stored,
                refused=self._refused + self._counts.refused,
                sent=self._meter.sent,
                early=self._meter.early,
                p50=p50,
                p99=p99,
                longest=latencies.longest if latencies.count else None,
                held=not scope.cancelled_caught
                and self._meter.sent == pace.total
                and not self._meter.early
                and p99 is not None
                and p99 < ON_TIME,
                cost=window.cost(),
            ),
            list(self._meter.intervals),
        )

    def _sink(self, message: Due) -> None:
        self._meter.begin(message)
        self._meter.sent += 1

    def _note(self, _: bytes) -> None:
        self._stored += 1

    def _putter(self, opened: Opened) -> Callable[[int, int], None]:
        delays = self._load.delays.table(self._load.seed)
        mask = len(delays) - 1
        rest = filling(self._load.size, self._load.seed)
        put = opened.put

        def put_run(first: int, stop: int) -> None:
            for number in range(first, stop):
                try:
                    put(number.to_bytes(NUMBER_BYTES, "big") + rest, delays[number & mask])
                except (QueueFull, trio.WouldBlock):
                    self._refused += 1

        return put_run


class Window:
    """What is counted between two instants, of the process and of Redis."""

    def __init__(self, bench: Bench, opened: Opened) -> None:
        self._bench = bench
        self._opened = opened
        self._begun: tuple[float, float, int, Seen] | None = None
        self._ended: tuple[float, float, int, Seen] | None = None
        self._resident: int | None = None

    async def watch(self, first: float, last: float) -> None:
        """Count from the first to the last, seconds on Trio's clock."""
        await trio.sleep_until(first)
        self._begun = await self._now()
        await trio.sleep_until(last)
        await self.end()

    async def end(self) -> None:
        """Where it was cut short, count until now."""
        if self._begun is not None and self._ended is None:
            self._ended = await self._now()
            self._resident = resident_bytes()

    def cost(self) -> Cost | None:
        """What it came to; None where it has not begun."""
        if self._begun is None or self._ended is None:
            return None
        (begun, cpu, sent, before), (ended, cpu_after, sent_after, after) = self._begun, self._ended
        seconds = ended - begun
        return Cost(
            sent_per_s=(sent_after - sent) / seconds,
            inside_per_s=(after.total - before.total) / seconds,
            calls_per_s={name: count / seconds for name, count in after.calls_since(before).items()},
            cpu=(cpu_after - cpu) / seconds,
            redis_cpu=(after.cpu - before.cpu) / seconds,
            resident_bytes=self._resident,
        )

    async def _now(self) -> tuple[float, float, int, Seen]:
        seen = await self._bench.seen()
        return time.perf_counter(), time.process_time(), self._opened.commands(), seen
