"""The whole queue under generated operations: what it promises is checked after every step.

Every time is a multiple of a quarter of a second, and time passes a quarter at a time: whatever happens
at all happens at an instant at which everything is checked, so nothing here needs a tolerance.
"""

from __future__ import annotations

import logging

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from localdelay import Message, Throttled, open_delay_queue
from tests.kit.scenes import Conserved, Scene, scenes
from tests.kit.world import Collector, World, play


@settings(
    max_examples=500,
    derandomize=True,
    database=None,
    deadline=None,
    # The fixture is a function without a state, so it may serve all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(scene=scenes, scheduling=st.random_module())
def test_whatever_is_done_the_promises_hold(conserved: Conserved, scene: Scene, scheduling: object) -> None:
    """Conservation, never early, bounded, no lost wake-up, one end for each message, at every step."""
    collector = Collector()
    logger = logging.getLogger("localdelay")
    logger.addHandler(collector)
    try:
        trio.run(play, World(scene, conserved, collector.records), clock=MockClock(autojump_threshold=0))
    finally:
        logger.removeHandler(collector)


async def test_a_retry_that_will_not_fit_into_the_grace_is_handed_back_at_once(
    conserved: Conserved, autojump_clock: MockClock
) -> None:
    """It does not wait for the workers, who have another message to send later on."""
    handed_back: list[tuple[float, bytes, float]] = []

    async def send(message: Message) -> None:
        if message.payload == b"fails":
            raise Throttled(retry_after=5.0)

    async def hand_back(message: Message, remaining: float) -> None:
        handed_back.append((trio.current_time(), message.payload, remaining))

    async with open_delay_queue(send, capacity=9, workers=2) as queue:
        queue.put_nowait(b"fails", delay=1.0)
        queue.put_nowait(b"fine", delay=2.0)
        report = await queue.drain(3.0, hand_back)
    assert handed_back == [(1.0, b"fails", 0.0)]
    assert (report.sent, report.handed_back, trio.current_time()) == (1, 1, 2.0)
    assert conserved(queue).pending == 0
