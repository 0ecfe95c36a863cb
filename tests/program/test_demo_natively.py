"""What the demo's broker takes natively, played in virtual time: no busy machine changes it."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

import localdelay
from localdelay.demo import scene as scenes
from localdelay.demo.report import Run


class Buffered:
    """As the demo's server: one publish after the other, and none while 40 wait."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free = 0.0
        self._waiting = 0

    async def send(self, message: localdelay.Message) -> None:
        await trio.sleep(0.001)
        if self._waiting >= 40:
            raise localdelay.Throttled("429")
        self._waiting += 1
        self._free = max(self._free, trio.current_time()) + self._seconds
        await trio.sleep_until(self._free)
        self._waiting -= 1

    async def publish_delayed(self, message: localdelay.Message, delay: float) -> None:
        await self.send(message)


@pytest.mark.timeout(600)  # it is long for a machine that does much else
@pytest.mark.parametrize("late", [0.0, 0.002])
def test_nine_of_ten_go_natively_of_what_the_broker_takes_plain(
    monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """Handed back before they are due included; gusts that come late by so much find a buffer that is empty.

    And what is not handed back was taken at once, or is sent when it is due: nothing is lost.
    """
    drawn, sleep = random.Random(1), trio.sleep

    async def sleep_late(seconds: float) -> None:
        more = late and seconds == scenes._GUST_EVERY and drawn.expovariate(1 / late)
        await sleep(seconds + more)

    async def play() -> tuple[Run, Run]:
        scene = scenes.Scene([b"x"] * 6000, 3000.0, 4.0)
        plain, fallback = Run("plain"), Run("fallback")
        await scenes._publish_plainly(scene, Buffered(0.0004), plain)  # type: ignore[arg-type]
        await scenes._publish_with_fallback(None, scene, Buffered(0.0004), fallback)  # type: ignore[arg-type]
        return plain, fallback

    monkeypatch.setattr(trio, "sleep", sleep_late)
    random.seed(1)  # the jitter of limits and retries
    plain, fallback = trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(fallback.primary) + len(fallback.handed_back) >= 0.9 * len(plain.primary)
    assert len(fallback.primary) >= 0.6 * len(plain.primary)
    assert len(fallback.primary) + len(fallback.local) == 6000
    assert any(rate for _, rate in fallback.found)
