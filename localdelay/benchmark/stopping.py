"""What ends a benchmark early: the errors that it ends with, and the signals."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare


class BenchError(LocalDelayError):
    """The benchmark could not run."""


class Stopped(BenchError):
    """A signal has ended it before there was anything to report."""

    def __init__(self, signum: int) -> None:
        super().__init__("stopped before anything was measured")
        self.signum = signum


async def until_signal(act: Callable[[], Awaitable[None]], stop: Callable[[int], None]) -> None:
    """Run it to its end, and call `stop(signum)` at each Ctrl-C and SIGTERM until then.

    What it raises comes as it is, not wrapped in a group.
    """

    async def watch() -> None:
        async for signum in signals:
            stop(signum)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await act()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = bare(group)
            raise error from error.__cause__
