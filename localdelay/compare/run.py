"""A comparison: a Redis, the plans one after the other, and the signals that end it early."""

from __future__ import annotations

import secrets
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

from localdelay.benchmark.process import machine
from localdelay.benchmark.run import check as check_load
from localdelay.lateness import Latencies
from localdelay.nurseries import bare
from localdelay.programs import Guarded

from .child import Job
from .crash import SENT, STORED, numbers
from .process import CompareError, running
from .result import Busy, Cost, Crash, Found, Measured, Report, Waiting, count_crash
from .server import ServerError, find_server, start_server
from .settings import Plan, Settings

_CRASH_SECONDS = 2.0
_REMOVE_WITHIN = 10.0


class Watcher(Protocol):
    """Sees how far it is."""

    def step(self, plan: Plan | None, what: str) -> None:
        """This is done now, with one plan or with all."""


class Stopped(CompareError):
    """A signal has ended it."""

    def __init__(self, signum: int) -> None:
        super().__init__("stopped")
        self.signum = signum


def check(settings: Settings) -> None:
    """Raise a `ValueError` for what can't be run here: it names the argument."""
    check_load(settings.load())


def run(settings: Settings, watcher: Watcher) -> Report:
    """Run it. Ctrl-C and SIGTERM end it, and leave nothing behind.

    Raises `ValueError` as `check` does, `ServerError` where there is no Redis, `CompareError` where a plan
    could not run, and `Stopped` where a signal came.
    """
    check(settings)
    if settings.needs_redis:
        if settings.redis is None:
            find_server()
        if find_spec("coredis") is None:
            raise CompareError("the plans in Redis need a client: pip install 'localdelay[redis]'")
    return trio.run(_run_until_signal, settings, watcher)


async def _run_until_signal(settings: Settings, watcher: Watcher) -> Report:
    stopped_by = 0
    report: Report | None = None

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal stopped_by
        async for signum in signals:
            stopped_by = stopped_by or signum
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                report = await _run(settings, watcher)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = bare(group)
            raise error from error.__cause__
    if report is None:
        raise Stopped(stopped_by)
    return report


async def _run(settings: Settings, watcher: Watcher) -> Report:
    begun = trio.current_time()
    async with Guarded(Path(tempfile.mkdtemp(prefix="localdelay-compare-"))) as guarded:
        server = settings.redis or ""
        if settings.needs_redis and not server:
            server = await start_server(guarded)
        comparison = _Comparison(settings, watcher, server, guarded.directory)
        try:
            measured = {plan: await comparison.measured(plan) for plan in settings.plans}
            crashes = await comparison.crashes()
        finally:
            await comparison.leave()
    return Report(
        settings=settings,
        machine=machine(),
        redis=next((one.redis for one in measured.values() if one.redis is not None), None),
        seconds=trio.current_time() - begun,
        found=[Found(plan=plan, measured=measured[plan], crash=crashes[plan]) for plan in settings.plans],
    )


class _Comparison:
    def __init__(self, settings: Settings, watcher: Watcher, server: str, directory: Path) -> None:
        self._settings = settings
        self._watcher = watcher
        self._server = server
        self._directory = directory
        self._token = f"compare-{secrets.token_hex(6)}"

    async def measured(self, plan: Plan) -> Measured:
        found = await self._result(self._job("measure", plan))
        cost = found["busy"].pop("cost")
        return Measured(
            redis=found["redis"],
            held_rate=found["held_rate"],
            tried=[(rate, ok) for rate, ok in found["tried"]],
            waiting=Waiting(**found["waiting"]),
            idle=Cost(**found["idle"]),
            busy=Busy(**found["busy"], cost=None if cost is None else Cost(**cost)),
            intervals=[
                attrs.evolve(Latencies.decoded(text), longest=longest) if text else Latencies()
                for text, longest in zip(found["intervals"], found["longest"], strict=True)
            ],
        )

    async def crashes(self) -> dict[Plan, Crash]:
        """Of all plans at the same time: it is counted, and not timed."""
        found: dict[Plan, Crash] = {}

        async def crash(plan: Plan) -> None:
            found[plan] = await self._crash(plan)

        self._watcher.step(None, "killed half-way")
        async with trio.open_nursery() as nursery:
            for plan in self._settings.plans:
                nursery.start_soon(crash, plan)
        return found

    async def _crash(self, plan: Plan) -> Crash:
        """Kill it in the middle, and have another send what is left."""
        seconds = min(self._settings.seconds, _CRASH_SECONDS)
        job = self._job("be killed", plan, seconds=seconds)
        async with running(job) as child:
            await child.message()
            await trio.sleep(self._settings.before + seconds / 2)
            await child.kill()
        killed = trio.current_time()
        stored, sent = numbers(job.directory / STORED), numbers(job.directory / SENT)
        recovered_in = None
        if plan.in_redis:
            found = await self._result(self._job("recover", plan))
            recovered_in = None if found["left"] else trio.current_time() - killed
        # A send may be written down before its put is: nobody else hears of either meanwhile.
        there = set(stored) | set(sent)
        lost, twice = count_crash(there, numbers(job.directory / SENT))
        return Crash(
            stored=len(there),
            sent_before=len(sent),
            lost=lost,
            twice=twice,
            recovered_in=recovered_in,
        )

    async def leave(self) -> None:
        """On somebody else's server nothing is left."""
        if self._settings.needs_redis and self._settings.redis is not None:
            with trio.move_on_after(_REMOVE_WITHIN, shield=True):
                try:
                    await self._result(self._job("remove", Plan.REDIS))
                except CompareError:
                    return  # what has made this necessary is told

    def _job(self, what: str, plan: Plan, *, seconds: float = 0.0) -> Job:
        directory = self._directory / plan
        directory.mkdir(exist_ok=True)
        return Job(
            what=what,
            plan=plan,
            settings=self._settings,
            server=self._server if plan.in_redis else "",
            token=self._token,
            directory=directory,
            seconds=seconds,
        )

    async def _result(self, job: Job) -> dict[str, Any]:
        async with running(job) as child:
            return await child.result(lambda what: self._watcher.step(job.plan, what))


__all__ = ["CompareError", "ServerError", "Stopped", "Watcher", "check", "run"]
