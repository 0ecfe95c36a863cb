"""The process of one plan: `python -m localdelay.benchmark.child`, told on standard input what to do.

It reads a job, and prints lines: a `step` that begins, the number of a message that is `stored` or `sent`,
the `result` in the end, or the `error`. What is printed survives it. It ends when its standard input does:
whoever has started it has gone.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import attrs
import trio

from localdelay.benchmark.comparison import CARRIED_P99, Busy, Cost, Found, Job, Plan, Waiting
from localdelay.benchmark.contenders import Opened, Opening, open_plan
from localdelay.benchmark.load import Delays, TrioLoop, number_in, offer, putter
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.process import machine_bytes, resident_bytes
from localdelay.benchmark.redis import Seen, look, open_link, remove
from localdelay.benchmark.result import Settings, best, ladder, next_rate
from localdelay.benchmark.round import Round, held, metered
from localdelay.errors import LocalDelayError
from localdelay.lateness import Latencies
from localdelay.nurseries import bare

if TYPE_CHECKING:
    from localdelay.redis_plan.link import Link

_LEASE = 2.0
"""Seconds, in the runs that are killed: what the dead one has claimed waits as long."""
_RECOVER_WITHIN = 30.0
_LOOK_AFTER_CRASH = 0.1
_PATIENCE = 1.0
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


def _say(word: str, what: object) -> None:
    sys.stdout.write(f"{word} {what}\n")
    sys.stdout.flush()  # so that it is there, whenever this process is killed


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


class _Bench:
    """What measures a plan: with a connection to look at Redis with, and names that are new."""

    def __init__(self, job: Job, link: Link | None) -> None:
        self._job = job
        self._asked = job.asked
        self._link = link
        self._numbers = itertools.count(1)

    async def measure(self) -> Found:
        """All but the crash."""
        _say("step", "waiting and idle")
        waiting, idle = await self._waiting()
        _say("step", "under the load")
        busy, intervals = await self._busy(self._asked.load(), self._asked.before)
        tried = {self._asked.rate: busy.carried}
        while not self._asked.quick and (rate := next_rate(_RUNGS, tried, _STRIDE)) is not None:
            _say("step", f"at {rate:,.0f} messages/s")
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
        with metered(load, _PATIENCE) as (one, meter):

            def begin(execute_at: float, payload: bytes) -> None:
                meter.begin(execute_at, payload)
                meter.sent += 1

            opening = Opening(
                job=self._job,
                name=f"{self._job.token}-{self._job.plan}-{next(self._numbers)}",
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


async def _measure(job: Job) -> object:
    async with open_link(job.server) if job.server else nullcontext() as link:
        return await _Bench(job, link).measure()


def _told_plan(job: Job) -> AbstractAsyncContextManager[Opened]:
    opening = Opening(
        job=job,
        name=f"{job.token}-crash",
        capacity=job.asked.load(job.seconds).capacity(machine_bytes()),
        begin=lambda _, payload: _say("sent", number_in(payload)),
        stored=lambda payload: _say("stored", number_in(payload)),
        lease=_LEASE,
    )
    return open_plan(opening)


async def _be_killed(job: Job) -> object:
    """Put until the end, or rather until the kill."""
    load = job.asked.load(job.seconds)
    async with _told_plan(job) as opened:
        put_run = putter(opened.put_nowait, load.delays, size=load.size, seed=load.seed, refuse=lambda: None)
        _say("step", "begun")
        await offer(load.pace, TrioLoop(), trio.current_time(), put_run, lambda *_: None)
        await trio.sleep_forever()


async def _recover(job: Job) -> object:
    """Send what the killed one has left in Redis; how much is left after that."""
    async with _told_plan(job) as opened:
        with trio.move_on_after(job.asked.delays.longest + _RECOVER_WITHIN):
            while await opened.left():  # noqa: ASYNC110 (Redis tells nobody)
                await trio.sleep(_LOOK_AFTER_CRASH)
        return await opened.left()


_JOBS = {"measure": _measure, "be killed": _be_killed, "recover": _recover}


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the job."""
    # Ctrl-C is for the one who has started this, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301 (of one's own process)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    gc.collect()
    gc.freeze()  # or each full collection walks all that the imports have made, for 40 ms
    try:
        _say("result", pickle.dumps(trio.run(_JOBS[job.what], job)).hex())
    except Exception as raised:  # noqa: BLE001 (told to whoever has started this)
        error = bare(raised) if isinstance(raised, BaseExceptionGroup) else raised
        expected = isinstance(error, ConnectionError | LocalDelayError)
        what = "" if expected else f"{job.plan} could not run: {type(error).__name__}: "
        _say("error", " ".join(f"{what}{error}".removesuffix(": ").split()))
    os._exit(0)  # the thread is reading


if __name__ == "__main__":
    main()
