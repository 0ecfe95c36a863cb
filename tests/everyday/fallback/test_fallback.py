"""The degrade path: who gets a message, under which id, and what the caller sees."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import Fallback, Message, Route, Throttled, open_delay_queue
from localdelay.listening import Event, Opened
from localdelay.testing import RecordingSender
from tests.kit.fakes import Primary


class Quota(Throttled):
    """A child of the error that degrades."""


@pytest.mark.parametrize("delay", [0.1, 0.3, 1.7, 120, 86400.7])
@pytest.mark.parametrize("start", [0.1, 345678.123, 987654.321])
async def test_the_primary_gets_the_delay_that_was_given(
    delay: float, start: float, autojump_clock: Any
) -> None:
    """No rounding of the clock's gets into the delay: whole milliseconds stay whole milliseconds."""
    primary = Primary()
    await trio.sleep_until(start)
    async with open_delay_queue(RecordingSender(), capacity=5, workers=1) as queue:
        await Fallback(primary, queue).publish(b"", delay=delay)
    assert primary.calls[0][2] == delay


@pytest.mark.parametrize(("ahead", "latest"), [(120, 120), (-5, 0)])
async def test_an_instant_of_wall_time_is_a_delay_for_the_primary(
    ahead: float, latest: float, autojump_clock: Any, conserved: Any
) -> None:
    """`at=` is turned into the remaining delay, 0 for the past, and into execute-at for the local queue."""
    primary, sender = Primary(Throttled()), RecordingSender()
    async with open_delay_queue(sender, capacity=5, workers=1) as queue:
        receipt = await Fallback(primary, queue).publish(b"", at=datetime.now(UTC) + timedelta(seconds=ahead))
    [(_, _, delay)] = primary.calls
    assert max(0, latest - 60) <= delay <= latest
    assert receipt.message.execute_at == delay
    assert sender.times == [delay]
    conserved(queue)


async def test_ids_are_unique_on_both_routes(autojump_clock: Any, conserved: Any) -> None:
    """Without an id each publish gets one of its own, and never one that the queue gives out itself."""
    primary, sender = Primary(None, Throttled(), None, Throttled(), Throttled()), RecordingSender()
    async with open_delay_queue(sender, capacity=50, workers=1) as queue:
        fallback = Fallback(primary, queue, limit=None)
        ids = []
        for _ in range(20):
            ids.append((await fallback.publish(b"", delay=1)).message.id)
            ids.append((await queue.put(b"", delay=1)).id)
        conserved(queue)
    assert len(set(ids)) == 40
    assert set(sender.ids) <= set(ids)


async def test_the_primary_cannot_change_what_is_held(autojump_clock: Any, conserved: Any) -> None:
    """What a primary writes into the headers never reaches the message that is held after its refusal."""
    sender = RecordingSender()

    async def publish_delayed(message: Message, delay: float) -> None:
        with suppress(TypeError):
            message.headers["Nats-Schedule"] = "@at"  # type: ignore[index]
        raise Throttled

    given = {"k": "v"}
    async with open_delay_queue(sender, capacity=5, workers=1) as queue:
        receipt = await Fallback(publish_delayed, queue).publish(b"", delay=5, headers=given)
        given["k"] = "changed"
        assert queue.messages()[0].headers == receipt.message.headers == {"k": "v"}
        conserved(queue)
    assert sender.sent[0][1].headers == {"k": "v"}


@pytest.mark.parametrize(
    ("degrade_on", "degrading", "other"),
    [
        (Throttled, Quota(), OSError()),
        (OSError, TimeoutError(), Throttled()),
        ((Throttled, OSError), ConnectionError(), ValueError()),
        ((Throttled, OSError), Quota(), ValueError()),
        (Exception, ValueError(), None),
        (lambda error: "429" in str(error), ValueError("code 429"), ValueError("code 500")),
        (lambda error: "429" in str(error), Throttled("429"), Throttled("other")),
        (lambda error: [error] if error.args else [], OSError("truthy"), OSError()),
    ],
)
async def test_degrade_on_is_types_or_a_predicate(
    degrade_on: Any, degrading: Exception, other: Exception | None, autojump_clock: Any, conserved: Any
) -> None:
    """A type, a tuple of types or a function of the exception decides, and nothing else does."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=5, workers=1) as queue:
        receipt = await Fallback(Primary(degrading), queue, degrade_on=degrade_on, limit=None).publish(
            b"", delay=5
        )
        assert receipt.route is Route.LOCAL
        assert receipt.reason is degrading
        if other is not None:
            with pytest.raises(type(other)) as caught:
                await Fallback(Primary(other), queue, degrade_on=degrade_on, limit=None).publish(b"", delay=5)
            assert caught.value is other
        assert conserved(queue).accepted == 1
    assert sender.ids == [receipt.message.id]


async def test_the_predicate_is_asked_once_and_with_the_exception(
    autojump_clock: Any, conserved: Any
) -> None:
    """It sees the exception itself, and is not asked about what was accepted."""
    asked: list[Exception] = []
    error, other = Throttled("429"), OSError("down")

    def degrades(raised: Exception) -> bool:
        asked.append(raised)
        return raised is error

    async with open_delay_queue(RecordingSender(), capacity=5, workers=1) as queue:
        fallback = Fallback(Primary(None, error, other), queue, degrade_on=degrades, limit=None)
        await fallback.publish(b"", delay=5)
        assert asked == []
        await fallback.publish(b"", delay=5)
        assert asked == [error]
        with pytest.raises(OSError, match="down"):
            await fallback.publish(b"", delay=5)
        assert asked == [error, other]
        conserved(queue)


async def test_a_degraded_message_is_freed_at_once_when_it_is_cancelled(autojump_clock: Any) -> None:
    """No cycle through the primary's exception keeps it, with the garbage collector off."""
    seen: list[weakref.ref[Message]] = []

    async def refuse(message: Message, delay: float) -> None:
        seen.append(weakref.ref(message))
        raise Throttled

    gc.disable()
    try:
        async with open_delay_queue(RecordingSender(), capacity=5, workers=1) as queue:
            receipt = await Fallback(refuse, queue).publish(b"p", delay=5)
            assert queue.cancel(receipt.message.id)
            del receipt
            assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()


async def test_a_listener_may_ask_how_a_key_stands_that_is_new(autojump_clock: Any) -> None:
    """What was commanded holds for it, too, and who is told of that may look at the statistics."""
    keys: list[list[object]] = []

    class Listener:
        def on_event(self, event: Event) -> None:
            if isinstance(event, Opened):
                keys.append([*fallback.statistics().keys])

    async with open_delay_queue(RecordingSender(), capacity=5, workers=1) as queue:
        fallback = Fallback(Primary(), queue, key=lambda message: message.payload, listener=Listener())
        fallback.force_open()
        assert (await fallback.publish(b"a", delay=1.0)).route is Route.LOCAL
        assert (await fallback.publish(b"b", delay=1.0)).route is Route.LOCAL
    assert keys == [[], [b"a"]]
