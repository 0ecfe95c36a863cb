"""What limits of every kind a fallback finds: `python -m bench.valve`.

Plays the scenes of `valve_scenes` with the real `Fallback` and queue, in virtual time, with random arrivals:
the same seed, the same table. Beside `AdaptiveLimit` stand a caller who always asks, the breaker alone, and
the throttling of clients of Google's (Site Reliability Engineering, 2016, chapter 21: a call is made with the
probability that K times as many were taken lately as were asked for). *Used* is what the primary took, of
what it takes from the one who always asks.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import attrs
import click
import trio
import trio.testing

from localdelay import (
    AdaptiveLimit,
    BreakerPolicy,
    DelayQueue,
    Fallback,
    Message,
    QueueFull,
    Receipt,
    Route,
    open_delay_queue,
)
from localdelay.breaker import Outcome
from localdelay.limit import Limit

from . import valve_sends
from .samples import Result, facts, heading, progress, show, table, table_option
from .valve_scenes import SCENES, Scene
from .valve_sends import play_outage, play_quota

_DELAY = 3600.0
"""Seconds: nothing that is held comes due within a run."""
_ROOM = 1_000_000


class ClientSide(Limit):
    """The throttling of clients of Google's, over two minutes that fade away."""

    adapts = True

    def __init__(self, seed: int, k: float = 2.0, seconds: float = 120.0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._k = k
        self._seconds = seconds
        self._asked = self._taken = self._at = 0.0

    @property
    def limit_rate(self) -> None:
        """It has none: it draws."""

    @property
    def wait(self) -> float:
        """Seconds until it is worth asking again."""
        return 0.1

    def try_acquire(self, count: float = 1) -> bool:
        """Draw whether the call is made."""
        self._fade()
        refuse = max(0.0, (self._asked - self._k * self._taken) / (self._asked + 1))
        self._asked += count
        return self._random.random() >= refuse

    def give_back(self, count: float = 1) -> None:
        """A call was not made."""
        self._asked -= count

    def owe(self, count: float) -> float:
        """A call is made."""
        self._asked += count
        return 0.0

    def record(
        self,
        outcome: Outcome,
        age: float,
        retry_after: float | None,
        jitter: float,
        count: float = 1,
        now: float | None = None,
        lately: float = 0.0,
    ) -> None:
        """A call has ended."""
        self._taken += count if outcome is Outcome.TAKEN else 0

    def _fade(self) -> None:
        now = self.clock()
        left = max(0.0, 1 - (now - self._at) / self._seconds)
        self._asked, self._taken, self._at = self._asked * left, self._taken * left, now


VALVES: dict[str, Callable[[int], dict[str, Any]]] = {
    "always ask": lambda seed: {"breaker": None, "limit": None},
    "breaker": lambda seed: {"breaker": BreakerPolicy(), "limit": None},
    "client side": lambda seed: {"breaker": None, "limit": ClientSide(seed)},
    "adaptive": lambda seed: {"breaker": BreakerPolicy(), "limit": AdaptiveLimit()},
}


@attrs.frozen
class Played:
    """What came of one scene with one valve."""

    taken: int
    """Calls that the primary took, hand-backs among them."""
    refused: int
    ratio: float
    """Of the instance with the most native publishes to the one with the least."""
    held: int
    """The most messages that were held at a time."""
    native_after: float | None
    """Seconds after the peak until the last message was held, where there is a peak."""

    def used(self, always: Played) -> float:
        """What was taken, of what is from a caller who always asks."""
        return self.taken / max(1, always.taken)

    @property
    def refused_share(self) -> float:
        """Refused calls for each that was taken."""
        return self.refused / max(1, self.taken)


async def _send(message: Message) -> None:
    """Nothing comes due here."""


async def _play(scene: Scene, valve: str, seed: int, seconds: float) -> Played:
    """Play one scene with one valve; arrivals are at random, as many as the scene offers at the time."""
    begun, primary = trio.current_time(), scene.primary(seconds)
    drawn, offered = random.Random(seed), scene.offered(seconds)
    most = max(offered(second) for second in range(int(seconds) + 1))
    queues: list[DelayQueue] = []
    fallbacks: list[Fallback] = []
    last_held, most_held, now = 0.0, 0, 0.0

    async def call(message: Message, delay: float) -> None:
        await primary(message, delay)

    def held() -> int:
        return sum(queue.at_risk for queue in queues)

    async def publish(fallback: Fallback, at: float) -> None:
        nonlocal last_held, most_held
        with suppress(ValueError, QueueFull):  # the scene's own error
            receipt: Receipt = await fallback.publish(b"", delay=_DELAY)
            if receipt.route is Route.LOCAL:
                last_held = at
                if scene.hand_back:
                    most_held = max(most_held, held())

    async with AsyncExitStack() as stack:
        for number in range(scene.instances):
            queue = await stack.enter_async_context(open_delay_queue(_send, capacity=_ROOM, workers=1))
            queues.append(queue)
            options = VALVES[valve](seed + number)
            fallbacks.append(Fallback(call, queue, hand_back=scene.hand_back, **options))
        async with trio.open_nursery() as nursery:
            while (now := now + drawn.expovariate(most)) < seconds:
                if drawn.random() * most > offered(now):
                    continue
                await trio.sleep_until(begun + now)
                fallback = fallbacks[drawn.randrange(len(fallbacks))]
                if scene.waits:
                    nursery.start_soon(publish, fallback, now)
                else:
                    await publish(fallback, now)
        most_held = max(most_held, held())
        native = [fallback.statistics().primary for fallback in fallbacks]
        for queue in queues:
            await queue.drain(0.0)
    return Played(
        primary.taken,
        primary.refused,
        max(native) / max(1, min(native)),
        most_held,
        max(0.0, last_held - scene.peak * seconds) if scene.peak < 1 else None,
    )


def play(scene: Scene, valve: str, *, seed: int = 1, seconds: float = 120.0) -> Played:
    """Play a scene in virtual time."""
    random.seed(seed)  # the jitter of breakers and limits
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play, scene, valve, seed, seconds, clock=clock)


def missed(scene: Scene, played: dict[str, Played]) -> Iterator[str]:
    """Which floors the adaptive limit has not reached."""
    result, always = played["adaptive"], played["always ask"]
    figures = [
        ("used", scene.used - result.used(always)),
        ("refused", result.refused_share - scene.refused),
        ("most/least", result.ratio - scene.ratio),
        ("native again", (result.native_after or 0.0) - scene.native),
    ]
    yield from (f"{scene.name}: {name} misses its floor by {by:.3f}" for name, by in figures if by > 0)


def measure(scenes: Iterable[Scene], seconds: float, seed: int, progress: Callable[[str], None]) -> Result:
    """Play every scene with every valve."""
    figures: dict[str, Any] = {}
    misses: list[str] = []
    for scene in scenes:
        progress(scene.name)
        played = {valve: play(scene, valve, seed=seed, seconds=seconds) for valve in VALVES}
        misses += missed(scene, played)
        figures[scene.name] = {valve: attrs.asdict(result) for valve, result in played.items()}
    return {"facts": facts("valve"), "seconds": seconds, "seed": seed, "scenes": figures, "missed": misses}


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    yield f"{heading(measured)}; {measured['seconds']:g} s of virtual time, seed {measured['seed']}; "
    yield "raw: [results/valve.json](results/valve.json)."
    yield ""
    head = ("scene", "valve", "used", "refused", "most/least", "held", "native after")
    yield from table(
        head, (row for name, played in measured["scenes"].items() for row in _rows(name, played))
    )
    yield ""
    yield from measured["missed"] or ["Every floor is reached."]
    if quota := measured.get("quota"):
        yield from (
            "",
            "Delayed publishes that count as five, and due sends, of one quota in whole seconds:",
            "",
        )
        yield from table(*valve_sends.quota_table(quota))
    if outage := measured.get("outage"):
        told = f"A broker that takes no due send for a while, {valve_sends.RATE} of which come due a second:"
        yield from ("", told, "")
        yield from table(*valve_sends.outage_table(outage))


def _rows(name: str, played: Result) -> Iterator[tuple[str, ...]]:
    always = Played(**played["always ask"])
    for valve, figures in played.items():
        result = Played(**figures)
        ratio = f"{result.ratio:.2f}" if result.ratio != 1 else ""
        native = "" if result.native_after is None else f"{result.native_after:.1f} s"
        used, refused = f"{result.used(always):.3f}", f"{result.refused_share:.4f}"
        yield (name if valve == "always ask" else "", valve, used, refused, ratio, f"{result.held:,}", native)


@click.command()
@click.option("--scene", default="", help="Only scenes with this in their name. They are not saved.")
@click.option("--quick", is_flag=True, help="20 seconds of each: to see that it works. It is not saved.")
@click.option("--seed", default=1, show_default=True)
@table_option
def main(scene: str, quick: bool, seed: int, saved: bool) -> None:
    """Play every scene with every valve.

    Writes bench/results/valve.json, and prints the README's table of it.
    """
    logging.disable()

    def measured() -> Result:
        seconds = 20.0 if quick else 120.0
        found = measure([one for one in SCENES if scene in one.name], seconds, seed, progress)
        if not scene:
            quota = {valve: play_quota(valve, seed=seed, delay=seconds) for valve in valve_sends.VALVES}
            outage = {name: play_outage(name, seed=seed, seconds=seconds / 2) for name in valve_sends.OUTAGES}
            for kind, played in (("quota", quota), ("outage", outage)):
                found[kind] = {name: attrs.asdict(one) for name, one in played.items()}
                for name, one in played.items():
                    found["missed"] += valve_sends.missed(name, one)
        return found

    show("valve", lines, measured, saved=saved, keep=not (scene or quick))


if __name__ == "__main__":
    main()
