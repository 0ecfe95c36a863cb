"""An hour of the virtual clock with a fault every few seconds: nothing is lost, and nothing grows.

In a process of its own: `python -m tests.kit.faults.soaked ORDERS`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from localdelay import DelayQueue, Message, PermanentSendError, RetryPolicy, Throttled, open_delay_queue
from tests.kit.conserving import conserve
from tests.kit.faults.gauges import gauges, not_flat, said
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch
from tests.kit.faults.victims import Child

_TIMEOUT = 600.0
_SEND_TIMEOUT = 2.0
_SAMPLE_EVERY = 30.0
_RETRY = RetryPolicy(wait_initial=0.1, wait_max=2.0)
_CHANCE = 0.05
"""Of what happens only to some messages."""


@attrs.frozen(kw_only=True)
class Orders:
    seed: int
    seconds: float = 3600.0
    rate: float = 10.0
    longest: float = 60.0
    """The longest delay, in seconds."""


def virtual(fault: str, scale: Scale) -> Row:
    """An hour in seconds."""
    watch = Watch()
    orders = Orders(
        seed=scale.random(fault).randrange(1 << 30), rate=200.0 if scale.long else Orders(seed=0).rate
    )
    with Child("tests.kit.faults.soaked", orders) as child:
        told = child.report(_TIMEOUT)
    return Row(
        fault=fault,
        cycles=told["faults"],
        accepted=told["accepted"],
        arrived=told["arrived"],
        lost=told["lost"],
        duplicated=told["duplicated"],
        allowed_duplicates=told["doubtful"],
        early=told["early"],
        seconds=watch.seconds,
        notes=f"{told['dead']} dead, {told['cancelled']} cancelled; {said(told['samples'])}",
        wrong=(*told["wrong"], *not_flat(told["samples"])),
    )


KINDS = ("fine", "slow", "failing", "throttled", "hanging", "refusing some", "in doubt about some")


class Weather:
    """A send that does what the weather is, and keeps an account of its own, by the number in the payload."""

    def __init__(self, orders: Orders, draws: random.Random) -> None:
        most = math.ceil(orders.rate * orders.seconds) + 1
        # They do not grow, so that what does is the queue's.
        self.copies, self.dead, self.cancelled = bytearray(most), bytearray(most), bytearray(most)
        self.early = self.doubtful = self.accepted = 0
        self.is_now = "fine"
        self._draws = draws

    async def send(self, message: Message) -> None:
        number, due, _ = message.payload.split(b" ", 2)
        self.early += trio.current_time() < float(due)
        is_now, some = self.is_now, self._draws.random() < _CHANCE
        await trio.sleep(math.inf if is_now == "hanging" else 0.5 if is_now == "slow" else 0.005)
        if is_now == "failing":
            raise OSError("the broker is away")
        if is_now == "throttled":
            raise Throttled("429", retry_after=self._draws.choice([None, 0.5]))
        if is_now == "refusing some" and some:
            raise PermanentSendError("never")
        self.copies[int(number)] += 1
        if is_now == "in doubt about some" and some:
            self.doubtful += 1
            raise TimeoutError("nobody knows")

    async def bury(self, message: Message, error: Exception) -> None:
        self.dead[int(message.payload.split(b" ", 1)[0])] += 1


async def _put(queue: DelayQueue, weather: Weather, orders: Orders, draws: random.Random) -> None:
    for number in range(math.floor(orders.rate * orders.seconds)):
        await trio.sleep_until(number / orders.rate)
        delay = draws.choice([0.0, 1.0, 10.0, orders.longest, draws.uniform(0.0, orders.longest)])
        due = trio.current_time() + delay - 1e-6
        await queue.put(b"%d %.6f ." % (number, due), delay=delay)
        weather.accepted += 1


async def _break(queue: DelayQueue, weather: Weather, draws: random.Random, most: int) -> None:
    """One fault, for a few seconds."""
    fault = draws.choice([*KINDS, "pause", "resize", "cancel"])
    if fault in KINDS:
        weather.is_now = fault
    elif fault == "pause":
        queue.pause()
    elif fault == "resize":
        queue.resize(workers=draws.randint(1, 40), capacity=draws.randint(most // 2, most))
    else:
        for message in draws.sample(queue.messages(), k=min(20, queue.statistics().pending)):
            if queue.cancel(message.id):
                weather.cancelled[int(message.payload.split(b" ", 1)[0])] += 1
    await trio.sleep(draws.uniform(2.0, 6.0))
    weather.is_now = "fine"
    queue.resume()


async def _run(orders: Orders) -> dict[str, Any]:
    draws = random.Random(orders.seed)
    weather, samples, faults = Weather(orders, draws), [], 0
    wrong: set[str] = set()
    capacity = round(orders.rate * orders.longest * 2)

    async def watch(queue: DelayQueue) -> None:
        while True:
            await trio.sleep(_SAMPLE_EVERY)
            statistics = queue.statistics()
            # A worker that is too many stays until its send has ended.
            samples.append(gauges(max(statistics.workers, statistics.workers_busy)))
            _check(queue, wrong)

    async with open_delay_queue(
        weather.send,
        capacity=capacity,
        workers=20,
        retry=_RETRY,
        send_timeout=_SEND_TIMEOUT,
        on_dead_letter=weather.bury,
    ) as queue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, queue)
            async with trio.open_nursery() as putting:
                putting.start_soon(_put, queue, weather, orders, draws)
                while trio.current_time() < orders.seconds:
                    await _break(queue, weather, draws, capacity)
                    faults += 1
                    _check(queue, wrong)
            nursery.cancel_scope.cancel()
        queue.resize(workers=20)
    _check(queue, wrong)
    return _told(weather, samples, faults, wrong)


def _check(queue: DelayQueue, wrong: set[str]) -> None:
    try:
        conserve(queue)
    except AssertionError as error:
        wrong.add(f"not conserved: {error}")


def _told(weather: Weather, samples: list[dict[str, int]], faults: int, wrong: set[str]) -> dict[str, Any]:
    fates = list(zip(weather.copies, weather.dead, weather.cancelled, strict=True))[: weather.accepted]
    twice = sum((dead > 0) + (cancelled > 0) + (copies > 0) > 1 for copies, dead, cancelled in fates)
    if twice:
        # One that was in doubt may be refused for good when it is sent again, or be cancelled meanwhile.
        wrong |= {f"{twice} have two fates"} if twice > weather.doubtful else set()
    return {
        "faults": faults,
        "accepted": weather.accepted,
        "arrived": sum(copies > 0 for copies, _, _ in fates),
        "lost": sum(fate == (0, 0, 0) for fate in fates),
        "duplicated": sum(copies - 1 for copies, _, _ in fates if copies),
        "doubtful": weather.doubtful,
        "early": weather.early,
        "dead": sum(dead for _, dead, _ in fates),
        "cancelled": sum(cancelled for _, _, cancelled in fates),
        "samples": samples,
        "wrong": sorted(wrong),
    }


def main() -> None:
    orders = Orders(**json.loads(sys.argv[1]))
    random.seed(orders.seed)  # the queue's own jitter
    trio._core._run._r.seed(orders.seed)  # the order of tasks that are ready at the same instant
    print(json.dumps(trio.run(_run, orders, clock=MockClock(autojump_threshold=0))), flush=True)


if __name__ == "__main__":
    main()
