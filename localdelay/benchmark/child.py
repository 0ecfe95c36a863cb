"""The process of one plan: `python -m localdelay.benchmark.child`, told on standard input what to do.

It reads a job, prints a line for each step, and leaves the result, or the error, in a file. It ends when its
standard input does: whoever has started it has gone.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import attrs
import trio

from localdelay.benchmark.comparison import Comparison, Plan
from localdelay.benchmark.contenders import Opened, Opening, open_plan
from localdelay.benchmark.load import NUMBER_BYTES, TrioLoop, offer, putter
from localdelay.benchmark.measuring import Bench
from localdelay.benchmark.process import machine_bytes
from localdelay.benchmark.redis import open_link
from localdelay.benchmark.result import BenchError
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare

_LEASE = 2.0
"""Seconds, in the runs that are killed: what the dead one has claimed waits as long."""
_CRASH_SECONDS = 2.0
_RECOVER_WITHIN = 30.0
_LOOK = 0.1


@attrs.frozen
class Job:
    """What to do, and where what came of it is to be found."""

    plan: Plan
    asked: Comparison
    server: str = attrs.field(repr=False)
    """Redis's URL; empty where there is none."""
    token: str
    """Is in the names of all keys."""
    directory: Path
    what: str = "measure"
    """A key of `_JOBS`."""

    @property
    def seconds(self) -> float:
        """How long the load to be killed is to be, after the first message is due."""
        return min(self.asked.seconds, _CRASH_SECONDS)

    @property
    def stored(self) -> Path:
        """The record of what the plan has said it has."""
        return self.directory / "stored"

    @property
    def sent(self) -> Path:
        """The record of what was sent."""
        return self.directory / "sent"

    @property
    def result(self) -> Path:
        """A pickle of what was measured, or of the `BenchError`; not there before it has ended."""
        return self.directory / f"{self.what}.pickle"


@contextmanager
def recording(path: Path) -> Iterator[Callable[[bytes], object]]:
    """What writes down the numbers of payloads, without a buffer: what is written survives the process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield lambda payload: os.write(file, payload[:NUMBER_BYTES])
    finally:
        os.close(file)


def recorded(path: Path) -> list[int]:
    """The numbers in such a file, in order, without one that was cut off; none where there is no file."""
    data = path.read_bytes() if path.exists() else b""
    ends = range(NUMBER_BYTES, len(data) + 1, NUMBER_BYTES)
    return [int.from_bytes(data[end - NUMBER_BYTES : end], "big") for end in ends]


def _say(step: str) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


async def _measure(job: Job) -> object:
    """All but the crash."""
    async with open_link(job.server) if job.server else nullcontext() as link:
        return await Bench(job.plan, job.asked, link, job.server, job.token).measure(_say)


@asynccontextmanager
async def _recorded_plan(job: Job) -> AsyncIterator[Opened]:
    with recording(job.stored) as stored, recording(job.sent) as sent:
        opening = Opening(
            plan=job.plan,
            asked=job.asked,
            capacity=job.asked.load(job.seconds).capacity(machine_bytes()),
            begin=lambda _, payload: sent(payload),
            stored=stored,
            server=job.server,
            name=f"{job.token}-crash",
            lease=_LEASE,
        )
        async with open_plan(opening) as opened:
            yield opened


async def _be_killed(job: Job) -> object:
    """Put until the end, or rather until the kill; write down what was stored and sent."""
    load = job.asked.load(job.seconds)
    async with _recorded_plan(job) as opened:
        put_run = putter(opened.put_nowait, load.delays, size=load.size, seed=load.seed, refuse=lambda: None)
        _say("begun")
        await offer(load.pace, TrioLoop(), trio.current_time(), put_run, lambda *_: None)
        await trio.sleep_forever()


async def _recover(job: Job) -> object:
    """Send what the killed one has left in Redis; how much is left after that."""
    async with _recorded_plan(job) as opened:
        with trio.move_on_after(job.asked.delays.longest + _RECOVER_WITHIN):
            while await opened.left():  # noqa: ASYNC110 (Redis tells nobody)
                await trio.sleep(_LOOK)
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
        result = trio.run(_JOBS[job.what], job)
    except Exception as raised:  # noqa: BLE001 (told to whoever has started this)
        error = bare(raised) if isinstance(raised, BaseExceptionGroup) else raised
        expected = isinstance(error, ConnectionError | LocalDelayError)
        what = "" if expected else f"{job.plan} could not run: {type(error).__name__}: "
        result = BenchError(" ".join(f"{what}{error}".removesuffix(": ").split()))
    job.result.write_bytes(pickle.dumps(result))
    os._exit(0)  # the thread is reading


if __name__ == "__main__":
    main()
