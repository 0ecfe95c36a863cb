"""`localdelay compare`: a Redis, the plans one after the other, and the signals that end it early.

Each plan runs in a process of its own (`child`), which is told what to do by this one.
"""

from __future__ import annotations

import pickle
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio

from localdelay.benchmark.comparison import Comparison, Crash, Found, Job, Plan, Report, reckon_crash
from localdelay.benchmark.process import machine
from localdelay.benchmark.redis import find_server, open_link, remove, start_server
from localdelay.benchmark.result import BenchError
from localdelay.benchmark.run import check as check_load
from localdelay.brokers.address import hide_secrets
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare_nursery
from localdelay.programs import Guarded, last_words
from localdelay.signals import heard

_CHILD = "localdelay.benchmark.child"
_REMOVE_WITHIN = 10.0
_BEGINS_WITHIN = 30.0
_LOOK = 0.01


Step: TypeAlias = Callable[[Plan | None, str], object]
"""Is told what is done now, with one plan or with all."""


def run(asked: Comparison, step: Step) -> Report:
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

    async def go() -> Report:
        async with heard((signal.SIGINT, signal.SIGTERM)):
            return await _compare(asked, step)

    return trio.run(go)


async def _compare(asked: Comparison, step: Step) -> Report:
    begun = trio.current_time()
    crashes: dict[Plan, Crash] = {}

    async def crash(job: Job) -> None:
        crashes[job.plan] = await _crash(job, guarded.directory, step)

    async with Guarded("localdelay-compare-") as guarded:
        server, token = asked.redis or "", f"compare-{secrets.token_hex(6)}"
        if asked.needs_redis and not server:
            server = await start_server(guarded)
        jobs = [Job(plan, asked, server if plan.in_redis else "", token) for plan in asked.only]
        try:
            found: list[Found] = [await _result(job, guarded.directory, step, {}) for job in jobs]
            step(None, "killed half-way")
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
        redis=next((one.redis for one in found if one.redis is not None), None),
        seconds=trio.current_time() - begun,
        found=[attrs.evolve(one, crash=crashes[one.plan]) for one in found],
    )


async def _crash(job: Job, directory: Path, step: Step) -> Crash:
    """Kill it in the middle, and have another send what is left."""
    before: dict[str, list[int]] = {"stored": [], "sent": []}
    after: dict[str, list[int]] = {"stored": [], "sent": []}
    half_way = job.asked.before + job.seconds / 2
    await _result(attrs.evolve(job, what="be killed"), directory, step, before, kill_after=half_way)
    killed, recovered_in = trio.current_time(), None
    if job.plan.in_redis:
        left = await _result(attrs.evolve(job, what="recover"), directory, step, after)
        recovered_in = None if left else trio.current_time() - killed
    return reckon_crash(before["stored"], before["sent"], after["sent"], recovered_in)


async def _leave(server: str, token: str) -> None:
    """On somebody else's server nothing is left. What has made this fail, if anything, is told already."""
    with trio.move_on_after(_REMOVE_WITHIN, shield=True), suppress(LocalDelayError, ConnectionError):
        async with open_link(server) as link:
            await remove(link, token)


async def _result(
    job: Job, directory: Path, step: Step, told: dict[str, list[int]], kill_after: float | None = None
) -> Any:
    """Run a process for this, and what it has come to; `told` gets the numbers of messages that it tells.

    It may be killed so many seconds after its first step, once it has a message, and has come to None then.
    Raises `BenchError` for an error of its, and where it has ended without a word.
    """
    log = directory / f"{job.plan}.log"
    with log.open("ab") as stderr:
        # In a session of its own: Ctrl-C is for this process, which ends it.
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 (for mypy)
    said, received = dict[str, str](), b""

    async def kill(after: float) -> None:
        await trio.sleep(after)
        with trio.move_on_after(
            _BEGINS_WITHIN
        ):  # on a busy machine it may have nothing yet that a kill loses
            while not any(told.values()):  # noqa: ASYNC110
                await trio.sleep(_LOOK)
        said["killed"] = ""
        process.kill()

    try:
        async with process.stdin, process.stdout, bare_nursery() as nursery:
            with suppress(trio.BrokenResourceError):  # it has ended, and said nothing
                await process.stdin.send_all(pickle.dumps(job))
            async for more in process.stdout:
                *lines, received = (received + more).split(b"\n")
                for word, _, what in (line.decode().partition(" ") for line in lines):
                    if word in told:
                        told[word].append(int(what))
                    elif word != "step":
                        said[word] = what
                    elif kill_after is None:
                        step(job.plan, what)
                    else:
                        nursery.start_soon(kill, kill_after)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
    if "result" in said:
        return pickle.loads(bytes.fromhex(said["result"]))  # noqa: S301 (of a process of one's own)
    if "killed" in said:
        return None
    error = said.get("error") or f"the process of {job.plan} has ended; {last_words(log)}"
    raise BenchError(hide_secrets(error, job.server))
