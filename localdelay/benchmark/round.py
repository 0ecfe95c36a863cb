"""One load through one contender, in any world: everything put at its time, and then waited for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from localdelay.benchmark.load import Loop, PutNowait, offer, precise_loop, putter
from localdelay.benchmark.meter import Meter, Recorder
from localdelay.benchmark.result import HELD_P99, Settings, is_held

_LOOK = 0.01
_LOOKS = 50


class _TooLate(Exception):
    """The load is so late that it is given up."""


class Round:
    """One load, and what became of it so far; the recorder is told of every send by whoever sends."""

    def __init__(self, load: Settings, loop: Loop, recorder: Recorder, patience: float | None = None) -> None:
        """`patience`: seconds that the puts, and then the sends, may be late before they are given up."""
        self._load = load
        self._loop = loop
        self._recorder = recorder
        self._patience = load.patience if patience is None else patience
        self._called_for = 0
        self.start = 0.0
        """When the first message was to be put, in seconds on the loop's clock."""
        self.stored = 0
        """Messages that a contender has said it has."""
        self.refused = 0
        """Messages that there was no room for."""
        self.peak = 0
        """Messages pending at most."""
        gc.collect()

    @property
    def put(self) -> int:
        """Messages that were put so far."""
        return self._called_for - self.refused

    @property
    def elapsed(self) -> float:
        """Seconds since the first message was to be put."""
        return self._loop.clock() - self.start

    @property
    def pending(self) -> int:
        """Messages put and not sent, as counted here: a queue's own statistics cost a millisecond."""
        return self.put - self._recorder.sent

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
        load, loop = self._load, self._loop
        self.start, last = start, start + load.seconds + self._patience

        def after_run(first: int, stop: int, began: float, ended: float) -> None:
            self._called_for = stop
            self._recorder.put(first, stop, began, ended)
            self.peak = max(self.peak, self.pending)
            if ended > last:
                raise _TooLate

        put_run = putter(put_nowait, load.delays, size=load.size, seed=load.seed, refuse=self.refuse)
        with suppress(_TooLate):  # the counts say how much was put
            await offer(load.pace, loop, start, put_run, after_run)
        over, looks = loop.clock() + load.delays.longest + self._patience, 0
        while self.pending and (now := loop.clock()) < over:
            if looks % _LOOKS == _LOOKS - 1 and is_empty():
                break
            looks += 1
            await loop.sleep_until(now + _LOOK)


@contextmanager
def metered(load: Settings, patience: float | None = None) -> Iterator[tuple[Round, Meter]]:
    """A load for the Trio run that this is called in, and its meter, which has finished after the block."""
    with precise_loop() as loop:
        meter = Meter(load.pace, load.delays, load.seed, loop.clock)
        try:
            yield Round(load, loop, meter, patience), meter
        finally:
            meter.finish()


def held(meter: Meter, load: Settings, most: float = HELD_P99) -> bool:
    """Whether this load was held, with a p99 under `most` seconds, by a meter that has finished."""
    return is_held(meter.p99, offered=load.pace.total, sent=meter.sent, early=meter.early, most=most)
