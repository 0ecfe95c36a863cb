"""A run: a broker, the warm-up, what is recorded, and the signals that end it early."""

from __future__ import annotations

import signal

import trio

from localdelay.benchmark.process import machine_bytes
from localdelay.benchmark.result import Result, Settings
from localdelay.benchmark.round import Round, Watcher
from localdelay.benchmark.sending import BenchError
from localdelay.brokers import STDOUT, Broker, check_url, open_broker
from localdelay.nurseries import bare


class Stopped(BenchError):
    """A signal has ended it before there was anything to report."""

    def __init__(self, signum: int) -> None:
        super().__init__("stopped before anything was measured")
        self.signum = signum


def check(settings: Settings) -> None:
    """Raise a `ValueError` for what can't be run here: it names the argument."""
    if settings.to == STDOUT:
        raise ValueError("to must be a broker: standard output is for the report")
    if settings.to is not None:
        try:
            check_url(settings.to)
        except ValueError as error:
            raise ValueError(f"to {str(error).partition(' ')[2]}") from None
    there = machine_bytes()
    if there is not None and settings.expected_bytes > there:
        raise ValueError(
            f"delay is too long for this rate and size: {settings.expected_pending:,} messages would wait "
            f"and take {settings.expected_bytes / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB"
        )


def run(settings: Settings, watcher: Watcher) -> Result:
    """Run it. Ctrl-C and SIGTERM end it at once, with what was recorded until then.

    Raises `ValueError` as `check` does, `ConnectionError` and `ModuleNotFoundError` as `open_broker` does,
    `BenchError` where every send fails, and `Stopped` where a signal came too early.
    """
    check(settings)
    return trio.run(_run_until_signal, Run(settings, watcher))


async def _run_until_signal(the_run: Run) -> Result:
    async def watch() -> None:
        async for signum in signals:
            the_run.stop(signum)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await the_run.go()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = bare(group)
            raise error from error.__cause__
    return the_run.result()


class Run:
    """One run; `run` is the way to start it, and this for a test with a clock or a broker of its own."""

    def __init__(self, settings: Settings, watcher: Watcher, broker: Broker | None = None) -> None:
        self._settings = settings
        self._watcher = watcher
        self._broker = broker
        self._scope = trio.CancelScope()
        self._round: Round | None = None
        self._stopped_by: int | None = None

    def stop(self, signum: int) -> None:
        """End it at once, because of this signal."""
        if self._stopped_by is None:
            self._stopped_by = signum
        self._scope.cancel()

    async def go(self) -> None:
        """Run it to its end, or until `stop`. Raises what `open_broker` raises, and `BenchError`."""
        with self._scope:
            if self._broker is not None or self._settings.to is None:
                await self._through(self._broker)
            else:
                async with open_broker(self._settings.to) as broker:
                    await self._through(broker)

    async def _through(self, broker: Broker | None) -> None:
        warm_peak = 0
        if self._settings.warm_up is not None:
            warm_up = Round(self._settings.warm_up, broker)
            await warm_up.go()
            warm_up.raise_if_none_was_sent()
            warm_peak = warm_up.peak
        self._round = Round(self._settings, broker, warm_peak)
        await self._round.go(self._watcher)
        self._round.raise_if_none_was_sent()

    def result(self) -> Result:
        """What it came to; `Stopped` where it was stopped before the first message was due."""
        result = None if self._round is None else self._round.result(self._stopped_by)
        if self._stopped_by is not None and (result is None or not result.latency.count):
            raise Stopped(self._stopped_by)
        if result is None:
            raise RuntimeError("go comes first")
        return result
