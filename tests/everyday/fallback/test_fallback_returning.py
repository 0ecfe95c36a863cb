"""What wakes the hand-back of a queue that runs: no message is left behind because nobody said so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from localdelay import BreakerPolicy, BreakerState, Cancelled, Fallback, Message, Throttled, open_delay_queue
from localdelay.fallback.router import World
from localdelay.testing import RecordingSender
from tests.kit.fallbacks import WORLDS
from tests.kit.fallbacks import World as AnyWorld


class Taking:
    """A primary that takes all, and notes when."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    async def __call__(self, message: Message, delay: float) -> None:
        self.calls.append(trio.current_time())


class FromThreads(Fallback):
    """What other threads have done on the loop comes there when the test says so, in its order."""

    posts: list[Callable[[], object]]

    def arrive(self) -> None:
        while self.posts:
            self.posts.pop(0)()

    def _world(self) -> World:
        self.posts = []
        return attrs.evolve(super()._world(), on_loop=self.posts.append)


async def test_a_message_that_arrives_behind_its_news_is_given_back(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """Held in a thread while there was news already, and on the loop only when that was dealt with."""
    primary = Taking()
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        began = trio.current_time()
        fallback = FromThreads(primary, queue, hand_back=True)
        fallback.arrive()
        held = fallback._router.on_held
        for _ in range(2):  # a pass at once; then news for the next, one second later
            held()
            fallback.arrive()
            await trio.sleep(0.4)
        fallback.posts.append(lambda: queue.put_nowait(b"", delay=3600.0))
        held()
        await trio.sleep(0.75)
        assert primary.calls == []
        fallback.arrive()
        await trio.sleep(10.0)
        assert primary.calls == [began + 2.0]
        assert conserved(queue).handed_back == 1
        await queue.drain(0.0)


async def test_a_message_that_arrives_behind_the_news_of_another_is_given_back(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """Many that are held at once are told of together, and none of them is missed by that."""
    primary = Taking()
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        began = trio.current_time()
        fallback = FromThreads(primary, queue, hand_back=True)
        fallback.arrive()
        held = fallback._router.on_held
        held()
        fallback.posts.append(lambda: queue.put_nowait(b"", delay=3600.0))
        held()
        assert len(fallback.posts) == 2
        fallback.posts.pop(0)()
        await trio.sleep(0.5)
        fallback.arrive()
        await trio.sleep(10.0)
        assert primary.calls == [began + 0.5]
        assert conserved(queue).handed_back == 1
        await queue.drain(0.0)


async def test_a_trial_that_said_nothing_is_there_for_a_hand_back(
    autojump_clock: trio.testing.MockClock, conserved: Any
) -> None:
    """The call of a publish was the only trial, and is cancelled: the hand-back is the next one, at once."""
    policy = BreakerPolicy(consecutive=2, wait_initial=0.5, wait_jitter=0.0, trial_calls=1)
    began = trio.current_time()
    calls: list[float] = []

    async def primary(message: Message, delay: float) -> None:
        calls.append(trio.current_time() - began)
        if len(calls) <= 2:
            raise ConnectionResetError
        if message.payload == b"hangs":
            await trio.sleep_forever()

    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        fallback = Fallback(primary, queue, hand_back=True, breaker=policy, ambiguous="degrade")
        await fallback.publish(b"", delay=3600.0)
        await trio.sleep(0.75)
        assert calls == [0.0, 0.0], "refused, and again when it was to go back: the breaker is open"
        with trio.move_on_at(began + 2.25):
            await fallback.publish(b"hangs", delay=3600.0)
        await trio.sleep(10.0)
        assert calls == [0.0, 0.0, 0.75, 2.25]
        assert fallback.statistics().breaker is BreakerState.CLOSED
        assert conserved(queue).handed_back == 1
        await queue.drain(0.0)


@pytest.mark.parametrize(
    ("publish_timeout", "state"), [(30.0, BreakerState.CLOSED), (2.0, BreakerState.OPEN)]
)
async def test_a_hand_back_that_had_less_time_says_nothing_about_the_primary(
    autojump_clock: trio.testing.MockClock, conserved: Any, publish_timeout: float, state: BreakerState
) -> None:
    """With 5 s until it is given up; only one that had as long as a publish may take counts as down."""

    async def hangs(message: Message, delay: float) -> None:
        await trio.sleep_forever()

    async with open_delay_queue(RecordingSender(), capacity=20, workers=1, send_timeout=5.0) as queue:
        fallback = Fallback(
            hangs,
            queue,
            hand_back=True,
            publish_timeout=publish_timeout,
            breaker=BreakerPolicy(wait_initial=30.0),
        )
        for _ in range(10):
            await queue.put(b"", delay=3600.0)
        fallback._router.on_held()
        await trio.sleep(10.0)
        assert fallback.statistics().breaker is state
        conserved(queue)
        await queue.drain(0.0)


@pytest.mark.parametrize("answer", [ConnectionResetError, None], ids=["lost", "hangs"])
async def test_what_may_have_gone_back_is_cancelled_there_too(
    autojump_clock: trio.testing.MockClock, conserved: Any, answer: type[Exception] | None
) -> None:
    """The primary may have it although the hand-back has failed; what it refuses it has not."""
    asked: list[tuple[str, object]] = []

    async def primary(message: Message, delay: float) -> None:
        if message.id == "refused":
            raise Throttled
        if answer is not None:
            raise answer
        await trio.sleep_forever()

    async def cancel(id: str, handle: object) -> None:
        asked.append((id, handle))

    async with open_delay_queue(RecordingSender(), capacity=20, workers=1) as queue:
        fallback = Fallback(
            primary, queue, limit=None, hand_back=True, publish_timeout=1.0, cancel_delayed=cancel
        )
        for name in ("lost", "refused"):
            await queue.put(b"", delay=3600.0, id=name)
        fallback._router.on_held()
        await trio.sleep(0.5 if answer else 1.5)
        assert await fallback.cancel("lost") is Cancelled.LOCAL
        assert await fallback.cancel("refused") is Cancelled.LOCAL
        assert asked == [("lost", None)]
        assert conserved(queue).cancelled == 2
        await queue.drain(0.0)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_a_drain_from_inside_a_hand_back_is_refused(world: AnyWorld) -> None:
    """It would wait for itself, and nobody would ever end it."""
    told: list[str] = []

    def drain(message: Message, delay: float) -> None:
        with pytest.raises(RuntimeError) as caught:
            queue.drain()
        told.append(str(caught.value))

    async def drain_async(message: Message, delay: float) -> None:
        with pytest.raises(RuntimeError) as caught:
            await queue.drain()
        told.append(str(caught.value))

    async def scene(world: AnyWorld) -> None:
        nonlocal queue
        async with world.stage(hand_back=True) as stage:
            queue = stage.queue
            stage.primary.error = Throttled("429")
            await stage.publish()
            stage.fallback._publish_delayed = drain if world.name == "threads" else drain_async
            await stage.until(lambda: bool(told))
            await stage.until(lambda: stage.fallback.statistics().handed_back == 1)

    queue: Any = None
    world.play(scene)
    assert told == ["drain was called from inside a send or a hand-back, for which it would wait"]
