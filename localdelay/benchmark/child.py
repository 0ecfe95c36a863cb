"""The process of one plan: `python -m localdelay.benchmark.child`, told on standard input what to do.

It reads a job, and prints lines: a `step` that begins, the number of a message that is `stored` or `sent`,
the `result` in the end, or the `error`. What is printed survives it. It ends when its standard input does:
whoever has started it has gone.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from contextlib import AbstractAsyncContextManager, nullcontext

import trio

from localdelay.benchmark.comparison import Job
from localdelay.benchmark.contenders import Opened, Opening, open_plan
from localdelay.benchmark.load import TrioLoop, number_in, offer, putter
from localdelay.benchmark.measuring import Bench
from localdelay.benchmark.process import machine_bytes
from localdelay.benchmark.redis import open_link
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare

_LEASE = 2.0
"""Seconds, in the runs that are killed: what the dead one has claimed waits as long."""
_RECOVER_WITHIN = 30.0
_LOOK = 0.1


def _say(word: str, what: object) -> None:
    sys.stdout.write(f"{word} {what}\n")
    sys.stdout.flush()  # so that it is there, whenever this process is killed


async def _measure(job: Job) -> object:
    """All but the crash."""
    async with open_link(job.server) if job.server else nullcontext() as link:
        return await Bench(job, link, lambda what: _say("step", what)).measure()


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
        _say("result", pickle.dumps(trio.run(_JOBS[job.what], job)).hex())
    except Exception as raised:  # noqa: BLE001 (told to whoever has started this)
        error = bare(raised) if isinstance(raised, BaseExceptionGroup) else raised
        expected = isinstance(error, ConnectionError | LocalDelayError)
        what = "" if expected else f"{job.plan} could not run: {type(error).__name__}: "
        _say("error", " ".join(f"{what}{error}".removesuffix(": ").split()))
    os._exit(0)  # the thread is reading


if __name__ == "__main__":
    main()
