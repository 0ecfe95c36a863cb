"""The process of one plan: `python -m localdelay.compare.child`, told on standard input what to do.

The first line is a job. It answers in lines of JSON: `step` while it goes on, and at the end `result` or
`error`. It ends when its standard input does: whoever has started it has gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from localdelay.benchmark.load import NUMBER_BYTES, Generator, filling
from localdelay.benchmark.meter import Due
from localdelay.benchmark.process import machine_bytes
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare

from .crash import SENT, STORED, Record
from .ladder import best, next_rate
from .load import Bench
from .observer import remove, version_of
from .plans import Opening, open_plan
from .settings import Plan, Settings

if TYPE_CHECKING:  # with an extra
    from localdelay.redis_plan.link import Link

LEASE = 2.0
"""Seconds, in the runs that are killed: what the dead one has claimed waits as long."""
_RECOVER_WITHIN = 30.0
_LOOK = 0.1


@attrs.frozen(kw_only=True)
class Job:
    """What to do."""

    what: str
    plan: Plan
    settings: Settings
    server: str = attrs.field(repr=False)
    """Redis's URL; empty where there is none."""
    token: str
    """Is in the names of all keys."""
    directory: Path
    """Where the records are."""
    seconds: float = 0.0
    """How long the load to be killed is to be, after the first message is due."""

    def line(self) -> bytes:
        """As the child reads it."""
        shown = {**attrs.asdict(self, recurse=False), "settings": self.settings.as_json()}
        return json.dumps({**shown, "directory": str(self.directory)}).encode() + b"\n"

    @classmethod
    def of_line(cls, line: str) -> Job:
        """The reverse of `line`."""
        shown = json.loads(line)
        shown.update(
            plan=Plan(shown["plan"]),
            settings=Settings.of_json(shown["settings"]),
            directory=Path(shown["directory"]),
        )
        return cls(**shown)


def say(**what: Any) -> None:
    """A line to whoever has started this."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def _link_to(server: str) -> AsyncIterator[Link | None]:
    if not server:
        yield None
        return
    from .link import open_link

    async with open_link(server) as link:
        yield link


async def measure(job: Job) -> None:
    """All but the crash."""
    async with _link_to(job.server) as link:
        version = None if link is None else await version_of(link)
        bench = Bench(job.plan, job.settings, link, job.server, job.token)
        say(step="waiting and idle")
        waiting, idle = await bench.waiting()
        say(step="under the load")
        busy, intervals = await bench.busy(job.settings.load(), job.settings.before)
        tried = {job.settings.rate: busy.held}
        while not job.settings.quick and (rate := next_rate(tried)) is not None:
            say(step=f"at {rate:,.0f} messages/s")
            tried[rate] = await bench.holds(rate)
    say(
        result={
            "redis": version,
            "held_rate": best(tried),
            "tried": list(tried.items()),
            "waiting": attrs.asdict(waiting),
            "idle": attrs.asdict(idle),
            "busy": attrs.asdict(busy),
            "intervals": [interval.encoded() if interval.counts else "" for interval in intervals],
            "longest": [interval.longest for interval in intervals],
        }
    )


async def be_killed(job: Job) -> None:
    """Put until the end, or rather until the kill; write down what was stored and sent."""
    load = job.settings.load_for(job.seconds)
    delays = load.delays.table(load.seed)
    mask = len(delays) - 1
    rest = filling(load.size, load.seed)
    with Record(job.directory / STORED) as stored, Record(job.directory / SENT) as sent:
        opening = Opening(server=job.server, name=f"{job.token}-crash", lease=LEASE)
        capacity = load.capacity(machine_bytes())
        async with open_plan(
            job.plan, job.settings, capacity, _sink(sent.add), stored.add, opening
        ) as opened:

            def put_run(first: int, stop: int) -> None:
                for number in range(first, stop):
                    opened.put(number.to_bytes(NUMBER_BYTES, "big") + rest, delays[number & mask])

            say(step="begun")
            clock = trio.lowlevel.current_clock().current_time
            await Generator(load.pace, clock).offer(put_run, lambda *_: None)
            await trio.sleep_forever()


async def recover(job: Job) -> None:
    """Send what the killed one has left in Redis."""
    with Record(job.directory / SENT) as sent:
        opening = Opening(server=job.server, name=f"{job.token}-crash", lease=LEASE)
        async with open_plan(job.plan, job.settings, 1, _sink(sent.add), lambda _: None, opening) as opened:
            with trio.move_on_after(job.settings.delays.longest + _RECOVER_WITHIN):
                while await opened.left():  # noqa: ASYNC110 (Redis tells nobody)
                    await trio.sleep(_LOOK)
            left = await opened.left()
    say(result={"left": left})


async def remove_all(job: Job) -> None:
    """Leave nothing in Redis."""
    async with _link_to(job.server) as link:
        if link is not None:
            await remove(link, job.token)
    say(result={})


def _sink(add: Callable[[bytes], None]) -> Callable[[Due], None]:
    def sink(message: Due) -> None:
        add(message.payload)

    return sink


_JOBS = {"measure": measure, "be killed": be_killed, "recover": recover, "remove": remove_all}


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the job."""
    # Ctrl-C is for the one who has started this, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job.of_line(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    gc.collect()
    gc.freeze()  # or each full collection walks all that the imports have made, for 40 ms
    try:
        trio.run(_JOBS[job.what], job)
    except Exception as raised:  # noqa: BLE001 (told to whoever has started this)
        error = bare(raised) if isinstance(raised, BaseExceptionGroup) else raised
        expected = isinstance(error, ConnectionError | LocalDelayError)
        what = "" if expected else f"{job.plan} could not run: {type(error).__name__}: "
        say(error=" ".join(f"{what}{error}".removesuffix(": ").split()))
    sys.stdout.flush()
    os._exit(0)  # the thread is reading


if __name__ == "__main__":
    main()
