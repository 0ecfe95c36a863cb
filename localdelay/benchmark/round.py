"""One load through one contender, on Trio: everything put at its time, and then waited for."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import trio

from localdelay.benchmark.held import HELD_P99, is_held
from localdelay.benchmark.load import Generator, PutNowait, putter
from localdelay.benchmark.meter import Due, Meter
from localdelay.benchmark.result import Settings
from localdelay.lateness import Latencies
from localdelay.timer import open_timer

_LOOK = 0.01
_LOOKS = 50


class Round:
    """One load. `meter` is to be told of every send, by `sink` or by a sender of one's own."""

    def __init__(self, settings: Settings, patience: float | None = None) -> None:
        """`patience`: seconds that the puts, and then the sends, may be late before they are given up."""
        self.settings = settings
        self.clock = trio.lowlevel.current_clock().current_time
        self.meter = Meter(settings.pace, settings.delays, settings.seed, self.clock)
        self.stored = 0
        """Messages that a contender has said it has."""
        self.refused = 0
        """Messages that there was no room for."""
        self.peak = 0
        """Messages pending at most."""
        self._patience = settings.patience if patience is None else patience
        self._generator = Generator(settings.pace, self.clock)
        gc.collect()

    @property
    def start(self) -> float:
        """When the first message was to be put, in seconds on the clock."""
        return self._generator.start

    @property
    def put(self) -> int:
        """Messages that were put so far."""
        return self._generator.done - self.refused

    @property
    def pending(self) -> int:
        """Messages put and not sent, as counted here: a queue's own statistics cost a millisecond."""
        return self.put - self.meter.sent

    def sink(self, message: Due) -> None:
        """The whole of a send that does nothing."""
        self.meter.begin(message)
        self.meter.sent += 1

    def store(self, _: object) -> None:
        """One more that it has."""
        self.stored += 1

    def refuse(self, _: object = None) -> None:
        """One more that there was no room for."""
        self.refused += 1

    async def go(
        self, put_nowait: PutNowait, start: float, is_empty: Callable[[], bool] = lambda: False
    ) -> None:
        """Put it all from `start` on, and wait until it is sent, or until it plainly won't be in time.

        `is_empty` says whether nothing is left to wait for, though not all was sent. It is asked seldom.
        """
        settings = self.settings
        self.meter.start(start)
        put_run = putter(
            put_nowait, settings.delays, size=settings.size, seed=settings.seed, refuse=self.refuse
        )
        # Precise also where the queue's own timer is not to be: the load should be on time.
        with contextlib.closing(open_timer("auto")) as timer:
            with trio.move_on_at(start + settings.seconds + self._patience):
                await self._generator.offer(put_run, self._after_puts, start, sleep_until=timer.sleep_until)
            with trio.move_on_after(settings.delays.longest + self._patience):
                looks = 0
                while self.pending and not (looks % _LOOKS == _LOOKS - 1 and is_empty()):
                    looks += 1
                    await trio.sleep(_LOOK)

    def _after_puts(self, first: int, stop: int, began: float, ended: float) -> None:
        self.meter.put(first, stop, began, ended)
        self.peak = max(self.peak, self.pending)

    def is_held(self, most: float = HELD_P99) -> bool:
        """Whether the load was held, with a p99 under `most` seconds. For when the meter has finished."""
        latencies = Latencies.together(self.meter.intervals)
        p99 = latencies.at(0.99)[0] if latencies.count else None
        offered = self.settings.pace.total
        return is_held(p99, offered=offered, sent=self.meter.sent, early=self.meter.early, most=most)
