"""What a fallback does, in scenes that those of all worlds must play alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from localdelay import (
    AdaptiveLimit,
    BreakerOpen,
    BreakerPolicy,
    BreakerState,
    Cancelled,
    Message,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimit,
    RateLimited,
    Reason,
    Receipt,
    Route,
    Throttled,
)
from localdelay.arguments import NOT_GIVEN
from tests.kit.fallbacks import NEVER, SOON, Scene, World


async def _an_async_predicate(error: Exception) -> bool:
    return False


NO_PREDICATES: tuple[Any, ...] = (
    None,
    "Throttled",
    int,
    [Throttled],
    (Throttled, int),
    (Throttled, lambda error: True),
    Throttled("429"),
    KeyboardInterrupt,
    (Throttled, trio.Cancelled),
    _an_async_predicate,
)
"""What `degrade_on` can't be."""


async def what_the_primary_takes_is_not_held(world: World) -> None:
    """It gets the message and the delay; the receipt has no reason."""
    async with world.stage() as stage:
        receipt = await stage.publish(b"p", delay=9.0, id="order 7", headers={"k": "v"})
        [(message, delay)] = stage.primary.calls
        assert receipt == Receipt(Route.PRIMARY, message, None, 0, "handle of order 7")
        assert (message.id, message.payload, dict(message.headers)) == ("order 7", b"p", {"k": "v"})
        assert 8.0 < delay <= 9.0
        assert await stage.pending() == 0


async def what_it_refuses_is_sent_here_under_the_same_id(world: World) -> None:
    """With its headers, chosen id or not, once."""
    async with world.stage() as stage:
        stage.primary.error = Throttled("429")
        for chosen in ({}, {"id": "order 7", "headers": {"k": "v"}}):
            stage.sent.clear()
            receipt = await stage.publish(b"p", delay=SOON, **chosen)
            assert (receipt.route, receipt.reason) == (Route.LOCAL, stage.primary.error)
            await stage.until(lambda: len(stage.sent) == 1)
            [message] = stage.sent
            tried = stage.primary.calls[-1][0]
            assert message.id == tried.id == receipt.message.id == chosen.get("id", tried.id)
            assert (message.payload, dict(message.headers)) == (b"p", chosen.get("headers", {}))
        assert stage.fallback.statistics().degraded[Reason.THROTTLED] == 2


async def an_open_breaker_spares_the_primary(world: World) -> None:
    """The reason says so, and the counts; closed by hand, the primary is called again."""
    async with world.stage(breaker=BreakerPolicy(consecutive=2), ambiguous="degrade") as stage:
        stage.primary.error = ConnectionError("down")
        receipts = [await stage.publish() for _ in range(3)]
        assert [receipt.route for receipt in receipts] == [Route.LOCAL] * 3
        assert isinstance(receipts[2].reason, BreakerOpen)
        assert receipts[2].reason.retry_after
        statistics = stage.fallback.statistics()
        assert (statistics.calls, statistics.calls_saved, statistics.local) == (2, 1, 3)
        assert statistics.degraded[Reason.BREAKER_OPEN] == 1
        stage.primary.error = None
        stage.fallback.force_closed()
        assert (await stage.publish()).route is Route.PRIMARY


async def it_is_opened_and_closed_by_hand(world: World) -> None:
    """force_open, force_closed, disable and reset do what they say."""
    async with world.stage() as stage:
        stage.fallback.force_open()
        assert stage.fallback.statistics().retry_in is None
        assert (await stage.publish()).route is Route.LOCAL
        stage.fallback.force_closed()
        assert (await stage.publish()).route is Route.PRIMARY
        stage.fallback.disable()
        assert stage.fallback.statistics().breaker is BreakerState.DISABLED
        stage.fallback.reset()
        statistics = stage.fallback.statistics()
        assert (statistics.breaker, statistics.retry_in) == (BreakerState.CLOSED, 0.0)


async def what_is_over_the_limit_is_held_before_it_is_refused(world: World) -> None:
    """And where the queue shares the limit, what is held waits for its turn."""
    limit = RateLimit(5.0, burst=2)
    async with world.stage({"limit": limit} if world.in_memory else {}, limit=limit) as stage:
        receipts = [await stage.publish(delay=SOON) for _ in range(3)]
        assert [receipt.route for receipt in receipts] == [Route.PRIMARY, Route.PRIMARY, Route.LOCAL]
        assert isinstance(receipts[2].reason, RateLimited)
        assert stage.fallback.statistics().degraded[Reason.RATE_LIMITED] == 1
        await stage.until(lambda: len(stage.sent) == 1)
        assert len(stage.primary.calls) == 2


async def other_errors_reach_the_caller_as_they_are(world: World) -> None:
    """What `degrade_on` does not name is raised, and nothing is held."""
    async with world.stage() as stage:
        for error in (
            ValueError("broken"),
            OSError("down"),
            PermanentSendError("no"),
            QueueFull("theirs"),
            TimeoutError(),
            trio.TooSlowError(),
            ConnectionResetError(),
        ):
            stage.primary.error = error
            raised = await stage.refused(type(error))
            assert raised is error
            assert raised.__cause__ is raised.__context__ is None


async def degrade_on_is_a_function_of_the_error(world: World) -> None:
    """Or types; an error of the function's own reaches the caller."""

    def degrades(error: Exception) -> bool:
        if isinstance(error, KeyError):
            raise AttributeError("mine")
        return "429" in str(error)

    async with world.stage(degrade_on=degrades) as stage:
        stage.primary.error = OSError("429")
        assert (await stage.publish()).reason is stage.primary.error
        stage.primary.error = Throttled("other")
        await stage.refused(Throttled)
        stage.primary.error = KeyError("x")
        with pytest.raises(AttributeError, match="mine") as raised:
            await world.now(stage.fallback.publish(b"p", delay=NEVER))
        assert raised.value.__context__ is stage.primary.error


async def a_group_of_one_stands_for_its_error(world: World) -> None:
    """And any other is raised, group and all."""
    async with world.stage() as stage:
        inside = Throttled("429")
        group: Exception = inside
        for _ in range(3):
            stage.primary.error = group = ExceptionGroup("task group", [group])
            assert (await stage.publish()).reason is inside
        for others in ([OSError()], [Throttled(), OSError()], [Throttled(), Throttled()]):
            stage.primary.error = group = ExceptionGroup("task group", others)
            assert await stage.refused(ExceptionGroup) is group


async def when_nobody_can_tell_the_caller_chooses(world: World) -> None:
    """Ambiguous errors hold the message where that was asked for, and open the breaker."""
    async with world.stage(ambiguous="degrade", breaker=BreakerPolicy(consecutive=3)) as stage:
        for error in (TimeoutError(), trio.TooSlowError(), ConnectionResetError()):
            stage.primary.error = error
            assert (await stage.publish()).reason is error
        await stage.publish()
        degraded = stage.fallback.statistics().degraded
        assert (degraded[Reason.AMBIGUOUS], degraded[Reason.BREAKER_OPEN]) == (3, 1)


async def what_may_not_degrade_gets_the_error(world: World) -> None:
    """Refused, or not called: the caller hears of it, and nothing is held."""
    short = {"headers": {"hold": "no"}}
    may_degrade: Callable[[Message], bool] = lambda message: message.headers.get("hold") != "no"  # noqa: E731
    async with world.stage(may_degrade=may_degrade) as stage:
        stage.primary.error = Throttled("429")
        assert await stage.refused(Throttled, **short) is stage.primary.error
        stage.fallback.force_open()
        await stage.refused(BreakerOpen, **short)
        assert (await stage.publish()).route is Route.LOCAL
    async with world.stage(may_degrade=may_degrade, limit=RateLimit(1.0)) as stage:
        await stage.publish()
        await stage.refused(RateLimited, **short)


async def shadow_counts_and_changes_nothing(world: World) -> None:
    """The primary is always called, its errors reach the caller, and nothing is held."""
    breaker = BreakerPolicy(consecutive=5)
    async with world.stage(mode="shadow", breaker=breaker, ambiguous="degrade") as stage:
        stage.primary.error = ConnectionError("down")
        for _ in range(8):
            await stage.refused(ConnectionError)
        statistics = stage.fallback.statistics()
        assert (statistics.degraded[Reason.AMBIGUOUS], statistics.degraded[Reason.BREAKER_OPEN]) == (5, 3)
        assert (statistics.calls, statistics.calls_saved, statistics.local) == (8, 3, 0)


async def forced_holds_everything(world: World) -> None:
    """The primary is never called."""
    async with world.stage(mode="forced") as stage:
        receipt = await stage.publish()
        assert isinstance(receipt.reason, BreakerOpen)
        assert receipt.at_risk == await stage.pending() == (1 if world.in_memory else 0)
        assert stage.primary.calls == []
        assert stage.fallback.statistics().degraded[Reason.FORCED] == 1


async def an_id_is_published_once_at_a_time(world: World) -> None:
    """One that is pending is refused at the call, before the primary hears of it."""
    async with world.stage() as stage:
        stage.primary.error = Throttled("429")
        # What an instance in Redis has not claimed it does not know of.
        await stage.publish(id="order 7", delay=NEVER if world.in_memory else 30.0)
        with pytest.raises(ValueError, match="pending already"):
            await world.now(stage.fallback.publish(b"p", delay=NEVER, id="order 7"))
        assert len(stage.primary.calls) == 1


async def bad_input_never_reaches_the_primary(world: World) -> None:
    """A wrong argument is refused by its name, and counts for nothing."""
    async with world.stage(degrade_on=Exception) as stage:
        wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"delay": 1, "at": datetime.now(UTC)}, TypeError, "delay and at"),
            ({"delay": -0.001}, ValueError, "delay"),
            ({"delay": math.inf}, ValueError, "delay"),
            ({"delay": "1"}, TypeError, "delay"),
            ({"at": datetime(2030, 1, 1)}, ValueError, "at must be an aware"),  # noqa: DTZ001
            ({"delay": 1, "payload": "text"}, TypeError, "payload"),
            ({"delay": 1, "id": "a\nb"}, ValueError, "id"),
            ({"delay": 1, "headers": {"k": 1}}, TypeError, "headers"),
        ]
        for arguments, error, match in wrong:
            given = {"payload": b"p", **arguments}
            with pytest.raises(error, match=match):
                await world.now(stage.fallback.publish(given.pop("payload"), **given))
        assert stage.primary.calls == []
        assert stage.counted() == await stage.pending() == 0


async def a_full_queue_says_why_it_was_needed(world: World) -> None:
    """`QueueFull` from the primary's error: at once, or when there was no room for `room_timeout`."""
    for room_timeout in (0.0, SOON):
        async with world.stage({"capacity": 1}, room_timeout=room_timeout) as stage:
            stage.primary.error = Throttled("429")
            await stage.publish()
            full = await stage.refused(QueueFull)
            assert full.__cause__ is stage.primary.error


async def a_closed_queue_takes_nothing(world: World) -> None:
    """The primary still does; what it refuses is a `QueueClosed`, for its reason."""
    async with world.stage() as stage:
        await world.now(stage.queue.drain(0.0))
        assert (await stage.publish()).route is Route.PRIMARY
        stage.primary.error = Throttled("429")
        assert (await stage.refused(QueueClosed)).__cause__ is stage.primary.error


async def what_is_far_from_due_goes_back(world: World) -> None:
    """When the primary takes messages again, it gets what was held with the delay that is left."""
    breaker = BreakerPolicy(consecutive=2, wait_initial=0.05)
    async with world.stage(hand_back=True, breaker=breaker) as stage:
        stage.primary.error = Throttled("429")
        held = [await stage.publish() for _ in range(5)]
        stage.primary.calls.clear()
        stage.primary.error = None
        await stage.until(lambda: stage.fallback.statistics().handed_back == 5)
        assert stage.fallback.statistics().breaker is BreakerState.CLOSED
        assert await stage.pending() == 0
        assert all(NEVER - 60 < delay <= NEVER for _, delay in stage.primary.calls)
        assert {message.id for message, _ in stage.primary.calls} == {r.message.id for r in held}


async def a_call_that_takes_too_long_is_ambiguous(world: World) -> None:
    """The caller is let go, and hears of it or has it held; and it opens the breaker."""
    for ambiguous in ("raise", "degrade"):
        breaker = BreakerPolicy(consecutive=3)
        async with world.stage(publish_timeout=SOON, ambiguous=ambiguous, breaker=breaker) as stage:
            stage.primary.hangs = True
            for _ in range(3):
                if ambiguous == "raise":
                    await stage.refused(TimeoutError)
                else:
                    assert isinstance((await stage.publish()).reason, TimeoutError)
            assert stage.fallback.statistics().breaker is BreakerState.OPEN
            assert isinstance((await stage.publish()).reason, BreakerOpen)
            assert len(stage.primary.calls) == 3
            stage.primary.released.set()


async def trials_that_hang_do_not_use_up_the_trials(world: World) -> None:
    """Each has failed when its time is over; and when the primary is well it is called again."""
    breaker = BreakerPolicy(consecutive=1, wait_initial=0.05, wait_max=0.05, wait_jitter=0.0, trial_calls=1)
    async with world.stage(publish_timeout=SOON, ambiguous="degrade", breaker=breaker) as stage:
        stage.primary.hangs = True
        for _ in range(4):
            await stage.publish()
            await world.sleep(0.1)
        assert len(stage.primary.calls) == 4
        stage.primary.hangs = False
        stage.primary.released.set()
        await stage.publish()
        while stage.fallback.statistics().breaker is not BreakerState.CLOSED:
            await world.sleep(0.1)  # on a busy machine a call that was answered was late all the same
            await stage.publish()
        assert len(stage.primary.calls) > 4


async def refusals_are_the_limits_business(world: World) -> None:
    """By default it is the queue's own: they open no breaker, also without one; others count for neither."""
    async with world.stage(limit=NOT_GIVEN) as stage:
        await stage.publish()
        stage.primary.error = Throttled("429", retry_after="soon")  # type: ignore[arg-type]
        assert (await stage.publish()).reason is stage.primary.error
        assert isinstance((await stage.publish()).reason, RateLimited)
        statistics = stage.fallback.statistics()
        assert statistics.breaker is BreakerState.CLOSED
        assert statistics.limit_rate
    async with world.stage(limit=None, breaker=BreakerPolicy(consecutive=2)) as stage:
        for error in (Throttled("429"), PermanentSendError(), OSError("odd")):
            stage.primary.error = error
            for _ in range(4):
                await (stage.publish() if isinstance(error, Throttled) else stage.refused(type(error)))
        assert len(stage.primary.calls) == 12
        assert stage.fallback.statistics().breaker is BreakerState.CLOSED
        stage.primary.error = ConnectionRefusedError()
        for _ in range(2):
            await stage.refused(ConnectionRefusedError)
        assert stage.fallback.statistics().breaker is BreakerState.OPEN


async def each_key_has_a_valve_of_its_own(world: World) -> None:
    """One tenant's refusals and outages are not another's; of many keys the last 1,024 are kept."""
    tenant = lambda message: message.headers["tenant"]  # noqa: E731
    a, b = {"headers": {"tenant": "a"}}, {"headers": {"tenant": "b"}}
    breaker = BreakerPolicy(consecutive=2)
    async with world.stage(limit=AdaptiveLimit(), key=tenant, breaker=breaker, ambiguous="degrade") as stage:
        stage.primary.error = Throttled("429")
        await stage.publish(**a)
        stage.primary.error = None
        assert isinstance((await stage.publish(**a)).reason, RateLimited)
        assert (await stage.publish(**b)).route is Route.PRIMARY
        stage.primary.error = ConnectionError()
        for _ in range(2):
            await stage.publish(**b)
        statistics = stage.fallback.statistics()
        assert statistics.keys["a"].limit_rate == statistics.limit_rate
        assert statistics.keys["a"].breaker is BreakerState.CLOSED
        assert statistics.keys["b"].breaker is statistics.breaker is BreakerState.OPEN
        stage.fallback.force_closed()
        stage.primary.error = None
        for number in range(1024):
            await world.now(stage.fallback.publish(b"p", delay=NEVER, headers={"tenant": str(number)}))
        assert "a" not in stage.fallback.statistics().keys
        assert len(stage.fallback.statistics().keys) == 1024
        with pytest.raises(KeyError, match="tenant"):
            await world.now(stage.fallback.publish(b"p", delay=NEVER))


async def it_is_cancelled_wherever_it_is(world: World) -> None:
    """Here, or by asking the primary with what it has given; else nobody knows."""
    async with world.stage(cancels=True) as stage:
        cancel = lambda which: world.now(stage.fallback.cancel(which))  # noqa: E731
        there = await stage.publish()
        named = await stage.publish(id="order 7")
        assert there.handle == f"handle of {there.message.id}"
        assert await cancel(there) is Cancelled.ASKED
        assert await cancel("order 7") is Cancelled.ASKED
        assert stage.primary.cancelled == [(there.message.id, there.handle), ("order 7", named.handle)]
        assert await cancel("order 7") is await cancel("never was") is Cancelled.UNKNOWN
        stage.primary.error = ConnectionResetError()
        await stage.refused(ConnectionResetError, id="order 8")
        assert await cancel("order 8") is Cancelled.ASKED
        stage.primary.error = Throttled("429")
        here = await stage.publish()
        assert here.handle is None
        assert await cancel(here.message.id) is Cancelled.LOCAL
        assert await stage.pending() == 0
        assert await cancel(here) is Cancelled.UNKNOWN
        assert len(stage.primary.cancelled) == 3
        with pytest.raises(TypeError, match="receipt must be"):
            await cancel(7)
    async with world.stage() as stage:
        there = await stage.publish()
        assert await world.now(stage.fallback.cancel(there)) is Cancelled.UNKNOWN


async def one_that_cannot_go_back_holds_up_no_other(world: World) -> None:
    """It waits by itself, though it would be the first; the others are with the primary."""
    async with world.stage({"capacity": 200}, hand_back=True) as stage:
        stage.primary.error = Throttled("429")
        for number in range(50):
            await stage.publish(delay=NEVER + number, id=f"order {number}")
        poison = {"order 49", "order 48", "order 20"}
        stage.primary.error_of = lambda message: ValueError("at most 900") if message.id in poison else None
        await stage.until(lambda: stage.fallback.statistics().handed_back == 47)
        assert await stage.pending() == 3
        tries = [message.id for message, _ in stage.primary.calls[-60:] if message.id in poison]
        assert len(tries) <= 9


async def a_group_with_a_time_out_is_a_time_out(world: World) -> None:
    """As it comes out of a task group: it is ambiguous, and the primary is down."""
    breaker = BreakerPolicy(consecutive=2)
    async with world.stage(ambiguous="degrade", breaker=breaker) as stage:
        for inside in (TimeoutError(), trio.TooSlowError()):
            stage.primary.error = ExceptionGroup("task group", [ExceptionGroup("another", [inside])])
            assert (await stage.publish()).reason is inside
        assert stage.fallback.statistics().breaker is BreakerState.OPEN


async def a_wrong_fallback_is_refused_by_name(world: World) -> None:
    """When it is made, and not at the peak."""
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        *(({"degrade_on": wrong}, TypeError) for wrong in NO_PREDICATES),
        ({"ambiguous": "maybe"}, ValueError),
        ({"may_degrade": True}, TypeError),
        ({"mode": "off"}, ValueError),
        ({"breaker": 5}, TypeError),
        ({"limit": 5}, TypeError),
        ({"key": 5}, TypeError),
        ({"cancel_delayed": 5}, TypeError),
        ({"publish_timeout": 0}, ValueError),
        ({"publish_timeout": math.nan}, ValueError),
        ({"publish_timeout": "1"}, TypeError),
        ({"room_timeout": -0.001}, ValueError),
        ({"room_timeout": math.nan}, ValueError),
        ({"room_timeout": "1"}, TypeError),
        ({"room_timeout": True}, TypeError),
        ({"hand_back_after": -1}, ValueError),
        ({"hand_back_after": math.nan}, ValueError),
        ({"listener": print}, TypeError),
    ]
    async with world.stage() as stage:
        for arguments, error in wrong:
            with pytest.raises(error, match=next(iter(arguments))):
                world.fallback(stage.primary, stage.queue, **arguments)
        for queue in (None, object(), "queue"):
            with pytest.raises(TypeError, match="queue must be a"):
                world.fallback(stage.primary, queue)
        with pytest.raises(TypeError, match="publish_delayed"):
            type(stage.fallback)(5, stage.queue)
    async with world.stage({"cancellable": False} if world.in_memory else {}) as stage:
        with pytest.raises(ValueError, match="hand_back needs a queue in memory"):
            world.fallback(stage.primary, stage.queue, hand_back=True)


ANYWHERE: list[Scene] = [
    what_the_primary_takes_is_not_held,
    what_it_refuses_is_sent_here_under_the_same_id,
    an_open_breaker_spares_the_primary,
    it_is_opened_and_closed_by_hand,
    what_is_over_the_limit_is_held_before_it_is_refused,
    other_errors_reach_the_caller_as_they_are,
    degrade_on_is_a_function_of_the_error,
    a_group_of_one_stands_for_its_error,
    when_nobody_can_tell_the_caller_chooses,
    what_may_not_degrade_gets_the_error,
    shadow_counts_and_changes_nothing,
    forced_holds_everything,
    an_id_is_published_once_at_a_time,
    bad_input_never_reaches_the_primary,
    a_closed_queue_takes_nothing,
    a_wrong_fallback_is_refused_by_name,
    a_call_that_takes_too_long_is_ambiguous,
    trials_that_hang_do_not_use_up_the_trials,
    refusals_are_the_limits_business,
    each_key_has_a_valve_of_its_own,
    a_group_with_a_time_out_is_a_time_out,
]
IN_MEMORY: list[Scene] = [
    a_full_queue_says_why_it_was_needed,
    what_is_far_from_due_goes_back,
    it_is_cancelled_wherever_it_is,
    one_that_cannot_go_back_holds_up_no_other,
]
