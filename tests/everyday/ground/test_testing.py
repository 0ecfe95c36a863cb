"""The public fakes, which other people's tests stand on."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from localdelay import Message, RetryPolicy, Throttled, open_delay_queue
from localdelay.testing import FailingSender, RecordingSender, ThrottledPrimary


def message(id: str, payload: bytes = b"") -> Message:
    return Message(id, payload, 0.0)


async def test_the_recording_sender_keeps_all_in_order(autojump_clock: Any, conserved: Any) -> None:
    """Times, ids, payloads and the messages themselves, in the order of the sends."""
    sender = RecordingSender()
    assert (sender.sent, sender.ids, sender.payloads, sender.times) == ([], [], [], [])
    async with open_delay_queue(sender, capacity=5, workers=1) as queue:
        queue.put_nowait(b"later", delay=3, id="l", headers={"k": "v"})
        queue.put_nowait(b"soon", delay=1.5, id="s")
    assert sender.ids == ["s", "l"]
    assert sender.payloads == [b"soon", b"later"]
    assert sender.times == [1.5, 3]
    assert [m.headers for _, m in sender.sent] == [{}, {"k": "v"}]
    conserved(queue)


async def test_a_send_that_was_cut_off_is_not_recorded(autojump_clock: Any) -> None:
    """Only what was confirmed is kept: a cancelled send has not happened."""
    sender = RecordingSender(duration=2.0)
    with trio.move_on_after(1):
        await sender(message("a"))
    assert sender.sent == []


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_the_failing_sender_fails_so_often_for_each(
    times: int, autojump_clock: Any, conserved: Any
) -> None:
    """Each message fails the first `times` times and is then recorded; every call is in `attempts`."""
    errors: list[Exception] = []

    def error() -> Exception:
        errors.append(OSError(str(len(errors))))
        return errors[-1]

    sender = FailingSender(error, times=times)
    policy = RetryPolicy(wait_initial=10, wait_jitter=0, wait_exp_base=1)
    async with open_delay_queue(sender, capacity=5, workers=1, retry=policy) as queue:
        queue.put_nowait(b"", delay=1, id="a")
        queue.put_nowait(b"", delay=2, id="b")
    assert sender.attempts == [
        (10 * attempt + offset, id, attempt + 1)
        for attempt in range(times + 1)
        for offset, id in ((1, "a"), (2, "b"))
    ]
    assert list(zip(sender.times, sender.ids, strict=True)) == [(10 * times + 1, "a"), (10 * times + 2, "b")]
    assert conserved(queue).failures == len(errors) == 2 * times


async def test_the_throttled_primary_takes_so_many_a_second(autojump_clock: Any) -> None:
    """In each second of the clock the first `limit` are taken, with their delays, the rest is throttled."""
    primary = ThrottledPrimary(2)
    for second in (0, 1, 5):
        await trio.sleep_until(second)
        for i in range(2):
            await primary(message(f"{second}-{i}"), 120.0 + i)
        for part in (0.0, 0.5, 0.999):
            await trio.sleep_until(second + part)
            with pytest.raises(Throttled) as caught:
                await primary(message("refused"), 1.0)
            assert caught.value.retry_after is None
    assert primary.refused == 9
    assert [(delay, m.id) for delay, m in primary.published] == [
        (120.0 + i, f"{second}-{i}") for second in (0, 1, 5) for i in range(2)
    ]


async def test_a_primary_without_room_takes_nothing(autojump_clock: Any) -> None:
    """A limit of 0 throttles everything."""
    primary = ThrottledPrimary(0)
    with pytest.raises(Throttled, match="more than 0"):
        await primary(message("a"), 0.0)
    assert (primary.published, primary.refused) == ([], 1)
