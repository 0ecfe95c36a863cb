"""The process of one plan: `python -m localdelay.benchmark.child`, told on standard input what to do.

It reads a job, and answers with a `step` while it goes on and a `result` or an `error` at the end: each a
line, a pickle in hexadecimal. It ends when its standard input does: whoever has started it has gone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from localdelay.benchmark.comparison import Comparison, Plan
from localdelay.benchmark.contenders import Opening, open_plan
from localdelay.benchmark.load import NUMBER_BYTES, Generator, putter
from localdelay.benchmark.measuring import Bench
from localdelay.benchmark.meter import Due
from localdelay.benchmark.process import machine_bytes
from localdelay.benchmark.redis import open_link, remove
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare

if TYPE_CHECKING:  # with an extra
    from localdelay.redis_plan.link import Link

STORED, SENT = "stored", "sent"
"""The records of a process that is killed."""
_LEASE = 2.0
"""Seconds, in the runs that are killed: what the dead one has claimed waits as long."""
_RECOVER_WITHIN = 30.0
_LOOK = 0.1


@attrs.frozen(kw_only=True)
class Job:
    """What to do."""

    what: str
    """A key of `_JOBS`."""
    plan: Plan
    asked: Comparison
    server: str = attrs.field(repr=False)
    """Redis's URL; empty where there is none."""
    token: str
    """Is in the names of all keys."""
    directory: Path
    """Where the records are."""
    seconds: float = 0.0
    """How long the load to be killed is to be, after the first message is due."""


def packed(what: object) -> bytes:
    """One line of what goes between the two processes."""
    return pickle.dumps(what).hex().encode() + b"\n"


def unpacked(line: bytes) -> Any:
    """The reverse, for what one's own process has said."""
    return pickle.loads(bytes.fromhex(line.decode()))  # noqa: S301


def _say(**what: object) -> None:
    sys.stdout.buffer.write(packed(what))
    sys.stdout.buffer.flush()


@contextlib.contextmanager
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


@contextlib.asynccontextmanager
async def _link_to(server: str) -> AsyncIterator[Link | None]:
    if not server:
        yield None
        return
    async with open_link(server) as link:
        yield link


async def _measure(job: Job) -> object:
    """All but the crash."""
    async with _link_to(job.server) as link:
        bench = Bench(job.plan, job.asked, link, job.server, job.token)
        return await bench.measure(lambda what: _say(step=what))


def _opening(job: Job, sent: Callable[[bytes], object], stored: Callable[[bytes], object]) -> Opening:
    def sink(message: Due) -> None:
        sent(message.payload)

    return Opening(
        plan=job.plan,
        asked=job.asked,
        capacity=job.asked.load(job.seconds).capacity(machine_bytes()),
        sink=sink,
        stored=stored,
        server=job.server,
        name=f"{job.token}-crash",
        lease=_LEASE,
    )


async def _be_killed(job: Job) -> object:
    """Put until the end, or rather until the kill; write down what was stored and sent."""
    load = job.asked.load(job.seconds)
    with recording(job.directory / STORED) as stored, recording(job.directory / SENT) as sent:
        async with open_plan(_opening(job, sent, stored)) as opened:
            put_run = putter(
                opened.put_nowait, load.delays, size=load.size, seed=load.seed, refuse=lambda: None
            )
            _say(step="begun")
            clock = trio.lowlevel.current_clock().current_time
            await Generator(load.pace, clock).offer(put_run, lambda *_: None)
            await trio.sleep_forever()


async def _recover(job: Job) -> object:
    """Send what the killed one has left in Redis; how much is left after that."""
    with recording(job.directory / SENT) as sent:
        async with open_plan(_opening(job, sent, lambda _: None)) as opened:
            with trio.move_on_after(job.asked.delays.longest + _RECOVER_WITHIN):
                while await opened.left():  # noqa: ASYNC110 (Redis tells nobody)
                    await trio.sleep(_LOOK)
            return await opened.left()


async def _remove(job: Job) -> object:
    """Leave nothing in Redis."""
    async with _link_to(job.server) as link:
        if link is not None:
            await remove(link, job.token)
    return None


_JOBS = {"measure": _measure, "be killed": _be_killed, "recover": _recover, "remove": _remove}


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the job."""
    # Ctrl-C is for the one who has started this, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job: Job = unpacked(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    gc.collect()
    gc.freeze()  # or each full collection walks all that the imports have made, for 40 ms
    try:
        _say(result=trio.run(_JOBS[job.what], job))
    except Exception as raised:  # noqa: BLE001 (told to whoever has started this)
        error = bare(raised) if isinstance(raised, BaseExceptionGroup) else raised
        expected = isinstance(error, ConnectionError | LocalDelayError)
        what = "" if expected else f"{job.plan} could not run: {type(error).__name__}: "
        _say(error=" ".join(f"{what}{error}".removesuffix(": ").split()))
    os._exit(0)  # the thread is reading


if __name__ == "__main__":
    main()
