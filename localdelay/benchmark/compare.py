"""`localdelay compare`: a Redis, the plans one after the other, and the signals that end it early.

Each plan runs in a process of its own (`child`), which is told what to do by this one.
"""

from __future__ import annotations

import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol

import attrs
import trio

from localdelay.benchmark.child import Job, recorded
from localdelay.benchmark.comparison import (
    Comparison,
    Crash,
    Found,
    Measured,
    Plan,
    Report,
    count_crash,
)
from localdelay.benchmark.process import machine
from localdelay.benchmark.redis import find_server, open_link, remove, start_server
from localdelay.benchmark.result import BenchError
from localdelay.benchmark.run import check as check_load
from localdelay.brokers.address import hide_secrets
from localdelay.errors import LocalDelayError
from localdelay.programs import Guarded, last_words
from localdelay.signals import Stopped, heard

_CHILD = "localdelay.benchmark.child"
_LOG = "stderr"
_REMOVE_WITHIN = 10.0


class Watcher(Protocol):
    """Sees how far it is."""

    def step(self, plan: Plan | None, what: str) -> None:
        """This is done now, with one plan or with all."""


def run(asked: Comparison, watcher: Watcher) -> Report:
    """Run it. Ctrl-C and SIGTERM end it, and leave nothing behind.

    Raises a `ValueError` that names the argument for what can't be run here, `BenchError` where there is
    no Redis or a plan could not run, and `Stopped` where a signal came.
    """
    check_load(asked.load())
    if asked.needs_redis:
        if asked.redis is None:
            find_server()
        if find_spec("coredis") is None:
            raise BenchError("the plans in Redis need a client: pip install 'localdelay[redis]'")
    return trio.run(_run_until_signal, asked, watcher)


async def _run_until_signal(asked: Comparison, watcher: Watcher) -> Report:
    def stop(signum: int) -> NoReturn:
        raise Stopped(signum)

    async with heard((signal.SIGINT, signal.SIGTERM), stop):
        return await _compare(asked, watcher)


async def _compare(asked: Comparison, watcher: Watcher) -> Report:
    begun = trio.current_time()
    crashes: dict[Plan, Crash] = {}

    async def crash(job: Job) -> None:
        crashes[job.plan] = await _crash(job, watcher)

    async with Guarded(Path(tempfile.mkdtemp(prefix="localdelay-compare-"))) as guarded:
        server, token = asked.redis or "", f"compare-{secrets.token_hex(6)}"
        if asked.needs_redis and not server:
            server = await start_server(guarded)
        jobs = [_job(plan, asked, server, token, guarded.directory) for plan in asked.plans]
        try:
            measured: dict[Plan, Measured] = {job.plan: await _result(job, watcher) for job in jobs}
            watcher.step(None, "killed half-way")
            # All plans at the same time: it is counted, and not timed.
            async with trio.open_nursery() as nursery:
                for job in jobs:
                    nursery.start_soon(crash, job)
        finally:
            if asked.needs_redis and asked.redis is not None:
                await _leave(server, token)
    return Report(
        settings=asked,
        machine=machine(),
        redis=next((one.redis for one in measured.values() if one.redis is not None), None),
        seconds=trio.current_time() - begun,
        found=[Found(plan=plan, measured=measured[plan], crash=crashes[plan]) for plan in asked.plans],
    )


def _job(plan: Plan, asked: Comparison, server: str, token: str, directory: Path) -> Job:
    (directory / plan).mkdir()
    return Job(plan, asked, server if plan.in_redis else "", token, directory / plan)


async def _crash(job: Job, watcher: Watcher) -> Crash:
    """Kill it in the middle, and have another send what is left."""
    job = attrs.evolve(job, what="be killed")
    async with _running(job) as steps:
        if await anext(steps, None) is None:
            _result_of(job)  # which is the error that has ended it
        await trio.sleep(job.asked.before + job.seconds / 2)
    killed = trio.current_time()
    stored, sent = recorded(job.stored), recorded(job.sent)
    recovered_in = None
    if job.plan.in_redis and not await _result(attrs.evolve(job, what="recover"), watcher):
        recovered_in = trio.current_time() - killed
    # A send may be written down before its put is: nobody else hears of either meanwhile.
    there = set(stored) | set(sent)
    lost, twice = count_crash(there, recorded(job.sent))
    return Crash(stored=len(there), sent_before=len(sent), lost=lost, twice=twice, recovered_in=recovered_in)


async def _leave(server: str, token: str) -> None:
    """On somebody else's server nothing is left. What has made this fail, if anything, is told already."""
    with trio.move_on_after(_REMOVE_WITHIN, shield=True), suppress(LocalDelayError, ConnectionError):
        async with open_link(server) as link:
            await remove(link, token)


async def _result(job: Job, watcher: Watcher) -> Any:
    async with _running(job) as steps:
        async for step in steps:
            watcher.step(job.plan, step)
    return _result_of(job)


def _result_of(job: Job) -> Any:
    """What the process of this job has left. Raises `BenchError` for an error of its, and for nothing."""
    if not job.result.exists():
        raise BenchError(f"the process of {job.plan} has ended; {last_words(job.directory / _LOG)}")
    found = pickle.loads(job.result.read_bytes())  # noqa: S301 (of a process of one's own)
    if isinstance(found, BenchError):
        raise BenchError(hide_secrets(str(found), job.server))
    return found


@asynccontextmanager
async def _running(job: Job) -> AsyncIterator[AsyncIterator[str]]:
    """The steps of the process that does this, for the length of an `async with` block; then it is killed."""
    with (job.directory / _LOG).open("ab") as stderr:
        # In a session of its own: Ctrl-C is for this process, which ends it.
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 (for mypy)
    try:
        with suppress(trio.BrokenResourceError):  # it has ended, and left no result
            await process.stdin.send_all(pickle.dumps(job))
        async with aclosing(_lines(process.stdout)) as steps:
            yield steps
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


async def _lines(stdout: trio.abc.ReceiveStream) -> AsyncGenerator[str, None]:
    received = b""
    async for more in stdout:
        *lines, received = (received + more).split(b"\n")
        for line in lines:
            yield line.decode()
