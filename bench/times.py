"""When each send began: kept while the load runs, and made into latencies by the one meter at its end."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Sequence

import attrs

from localdelay import Message
from localdelay.benchmark.load import NUMBER_BYTES, Delays, Pace
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.result import Distribution, is_held

from .samples import Result

_ROUNDING = 1e-6


class Times:
    """When each send began, by the number of its message.

    It takes a third of what the meter would for each, which would be a good part of what is measured. And any
    number of threads may tell: every message has its own place, and adding a flag is one step for Python.
    """

    def __init__(self, clock: Callable[[], float], total: int) -> None:
        self.begun = begun = array("d", [math.nan]) * total
        """Seconds on the clock; NaN for what was not sent."""
        self.flags = flags = bytearray()
        """One for each send: 1 if it began before the execute-at that was told with it."""
        self.runs: list[tuple[int, int, float, float]] = []
        """Of the puts, as `Meter.put` takes them."""
        from_bytes, append, extend = int.from_bytes, flags.append, flags.extend

        def begin(execute_at: float, payload: bytes) -> None:
            now = clock()
            begun[from_bytes(payload[:NUMBER_BYTES], "big")] = now
            append(execute_at > now)

        def begin_batch(messages: Sequence[Message]) -> None:
            now = clock()
            numbers = array("Q", b"".join([message.payload[:NUMBER_BYTES] for message in messages]))
            if sys.byteorder == "little":
                numbers.byteswap()
            first, stop = numbers[0], numbers[0] + len(numbers)
            if numbers == array("Q", range(first, stop)):
                begun[first:stop] = array("d", [now]) * len(numbers)
            else:
                for number in numbers:
                    begun[number] = now
            extend([message.execute_at > now for message in messages])

        self.begin: Callable[[float, bytes], None] = begin
        """To be called at the start of a send, with the execute-at and the payload of its message."""
        self.begin_batch: Callable[[Sequence[Message]], None] = begin_batch
        """To be called at the start of a send of several messages. One clock read serves them all."""

    @property
    def sent(self) -> int:
        """Sends that have begun so far."""
        return len(self.flags)

    def put(self, first: int, stop: int, began: float, ended: float) -> None:
        """These were put between these two times."""
        self.runs.append((first, stop, began, ended))

    def figures(self, pace: Pace, delays: Delays, seed: int, start: float) -> Result:
        """What a load came to that began at `start`; times are in seconds."""
        meter = Meter(pace, delays, seed, lambda: math.inf)
        meter.start(start)
        sent = early = 0
        for number, now in enumerate(self.begun):
            if now == now:  # not NaN
                sent += 1
                early += now < meter.due(number) - _ROUNDING
                meter.record(number, now)
        for run in self.runs:
            meter.put(*run)
        meter.finish()
        latency = Distribution.of(meter.total)
        put = self.runs[-1][1] if self.runs else 0
        # By the execute-at that was told, or, where none was, by the earliest that it can have been.
        early = max(early, sum(self.flags))
        return {
            "offered": pace.total,
            "put": put,
            "sent": sent,
            "twice": self.sent - sent,
            "early": early,
            "held": is_held(latency.p99, offered=pace.total, sent=sent, early=early) and sent == self.sent,
            "latency": attrs.asdict(latency),
            "put_lateness": attrs.asdict(Distribution.of(meter.puts.take())),
        }
