"""What a comparison measures of one plan, in the process of that plan."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from localdelay.benchmark.comparison import CARRIED_P99, Busy, Cost, Found, Job, Plan, Waiting
from localdelay.benchmark.contenders import Opened, Opening, open_plan
from localdelay.benchmark.held import best, ladder, next_rate
from localdelay.benchmark.load import Delays, putter
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.process import machine_bytes, resident_bytes
from localdelay.benchmark.redis import Seen, look, remove
from localdelay.benchmark.result import Settings
from localdelay.benchmark.round import Round, held, metered
from localdelay.lateness import Latencies

if TYPE_CHECKING:
    from localdelay.redis_plan.link import Link

PATIENCE = 1.0
"""Seconds after the last message is due, or put, for the rest of them to be sent."""
_RUNGS = ladder(10.0, 500_000.0)
_STRIDE = 5
"""Rungs in the first step of the search: ten times as much."""
_RUNG_SECONDS = 0.7
_RUNG_DELAY = 0.3
"""Seconds, of the longest delay: a load of a rung is short."""
_FILL = 20_000
"""Messages that wait while nothing comes due."""
_QUICK_FILL = 2_000
_SHARD_FILL = 2500
"""A shard holds 4,000, and they are not spread evenly."""
_FEW = 10_000
"""With fewer than this, the growth of the process says nothing about one message."""
_FILL_DELAYS = Delays((3600.0, 3660.0), is_range=True)
"""Spread over a minute: as in use, due times differ."""
_FILL_CHUNK = 500
_IDLE_SECONDS = {Plan.REDIS: 5.0}
"""A heartbeat of it comes every 5 s."""
_IDLE_OTHERS = 2.0
_IDLE_QUICK = 0.5
_SETTLE = 0.5
_LOOK = 0.01


@attrs.frozen
class _Instant:
    """What has been spent until now, of the process and of Redis."""

    wall: float
    cpu: float
    commands: int
    messages: int
    redis: Seen

    def cost_until(self, end: _Instant) -> Cost:
        """What it came to from here on."""
        seconds, messages = end.wall - self.wall, end.messages - self.messages
        commands = end.commands - self.commands
        return Cost(
            sent_per_s=commands / seconds,
            sent_per_message=commands / messages if messages else None,
            cpu=(end.cpu - self.cpu) / seconds,
            redis_cpu=(end.redis.cpu - self.redis.cpu) / seconds,
        )


class Bench:
    """The process's means: the connection to look at Redis with, and names that are new."""

    def __init__(self, job: Job, link: Link | None, step: Callable[[str], object]) -> None:
        """`step` is told what is done now."""
        self._job = job
        self._asked = job.asked
        self._link = link
        self._step = step
        self._count = 0

    async def measure(self) -> Found:
        """All but the crash."""
        step = self._step
        step("waiting and idle")
        waiting, idle = await self._waiting()
        step("under the load")
        busy, intervals = await self._busy(self._asked.load(), self._asked.before)
        tried = {self._asked.rate: busy.carried}
        while not self._asked.quick and (rate := next_rate(_RUNGS, tried, _STRIDE)) is not None:
            step(f"at {rate:,.0f} messages/s")
            tried[rate] = await self._carries(rate)
        return Found(
            plan=self._job.plan,
            redis=None if self._link is None else (await look(self._link)).version,
            carried_rate=best(tried),
            tried=list(tried.items()),
            waiting=waiting,
            idle=idle,
            busy=busy,
            intervals=intervals,
        )

    @asynccontextmanager
    async def _open(self, load: Settings, capacity: int) -> AsyncIterator[tuple[Opened, Round, Meter]]:
        """Run the plan under a name of its own, and remove what it has left in Redis."""
        self._count += 1
        with metered(load, PATIENCE) as (one, meter):

            def begin(execute_at: float, payload: bytes) -> None:
                meter.begin(execute_at, payload)
                meter.sent += 1

            opening = Opening(
                job=self._job,
                name=f"{self._job.token}-{self._job.plan}-{self._count}",
                capacity=capacity,
                begin=begin,
                stored=one.store,
                refuse=one.refuse,
            )
            try:
                async with open_plan(opening) as opened:
                    yield opened, one, meter
            finally:
                if self._link is not None:
                    with trio.move_on_after(5.0, shield=True):
                        await remove(self._link, opening.name)

    async def _now(self, opened: Opened, meter: Meter) -> _Instant:
        redis = await look(self._link)
        return _Instant(time.perf_counter(), time.process_time(), opened.commands(), meter.sent, redis)

    async def _waiting(self) -> tuple[Waiting, Cost]:
        """Have many messages wait: the memory that takes, and what it costs to wait."""
        asked = self._asked
        count = _FILL
        if self._job.plan.in_redis:
            count = min(_QUICK_FILL if asked.quick else _FILL, _SHARD_FILL * asked.shards)
        async with self._open(asked.load(), _FILL) as (opened, one, meter):
            put_run = putter(
                opened.put_nowait, _FILL_DELAYS, size=asked.size, seed=asked.seed, refuse=one.refuse
            )

            async def fill(first: int, stop: int) -> None:
                for low in range(first, stop, _FILL_CHUNK):
                    high = min(stop, low + _FILL_CHUNK)
                    put_run(low, high)
                    while one.stored + one.refused < high:  # noqa: ASYNC110 (nobody tells)
                        await trio.sleep(_LOOK)
                gc.collect()

            await fill(0, count // 10)
            resident, before, had = resident_bytes(), await look(self._link), one.stored
            await fill(count // 10, count)
            grown, after, more = resident_bytes(), await look(self._link), max(1, one.stored - had)
            in_process = None
            if resident is not None and grown is not None and count >= _FEW:
                in_process = (grown - resident) / more
            in_redis = None if self._link is None else (after.memory - before.memory) / more
            await trio.sleep(_SETTLE)
            begun = await self._now(opened, meter)
            await trio.sleep(_IDLE_SECONDS.get(self._job.plan, _IDLE_QUICK if asked.quick else _IDLE_OTHERS))
            idle = begun.cost_until(await self._now(opened, meter))
        return Waiting(messages=one.stored, process_bytes=in_process, redis_bytes=in_redis), idle

    async def _busy(self, load: Settings, before: float) -> tuple[Busy, list[Latencies]]:
        """Put the load, and count what it costs from so many seconds after the first put to the last."""
        instants: list[_Instant] = []
        async with self._open(load, load.capacity(machine_bytes())) as (opened, one, meter):
            start = trio.current_time()
            meter.start(start)

            async def look_at(*offsets: float) -> None:
                for offset in offsets:
                    await trio.sleep_until(start + offset)
                    instants.append(await self._now(opened, meter))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_at, before, load.seconds)
                await one.go(opened.put_nowait, start)
                nursery.cancel_scope.cancel()
            if len(instants) == 1:
                instants.append(await self._now(opened, meter))
        p50, p99 = meter.total.at(0.5, 0.99) if meter.total.count else (None, None)
        busy = Busy(
            offered=load.pace.total,
            stored=one.stored,
            refused=one.refused,
            sent=meter.sent,
            early=meter.early,
            p50=p50,
            p99=p99,
            longest=meter.total.longest if meter.total.count else None,
            carried=held(meter, load, CARRIED_P99),
            cost=instants[0].cost_until(instants[1]) if instants else None,
        )
        return busy, meter.intervals

    async def _carries(self, rate: float) -> bool:
        """Whether this rate is carried, by a short load with short delays."""
        delays = self._asked.delays
        scale = min(1.0, _RUNG_DELAY / delays.longest) if delays.longest else 1.0
        short = Delays(tuple(scale * value for value in delays.values), delays.is_range)
        load = attrs.evolve(
            self._asked.load(), rate=(rate, rate), seconds=_RUNG_DELAY + _RUNG_SECONDS, delays=short
        )
        busy, _ = await self._busy(load, _RUNG_DELAY)
        return busy.carried
