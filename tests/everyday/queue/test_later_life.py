"""What becomes of a message after its put: another time, and an end of its worth."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import trio

from localdelay import Expired, Message, RetryPolicy, SqliteJournal, open_delay_queue
from localdelay.testing import FailingSender, RecordingSender
from tests.kit.journals import nothing, until

_AT_ONCE = RetryPolicy(wait_initial=1.0, wait_jitter=0.0, wait_exp_base=1.0)


async def test_a_message_goes_at_its_new_time_and_at_no_other(autojump_clock: object) -> None:
    """Earlier than the leader sleeps, later, and later again: each once, exactly then, in the new order."""
    send = RecordingSender()
    async with open_delay_queue(send, capacity=10, workers=2) as queue:
        began = trio.current_time()
        a, b, c = [queue.put_nowait(b"%d" % n, delay=10.0 * n) for n in (1, 2, 3)]
        await trio.sleep(1.0)
        assert queue.reschedule(c.id, delay=1.0)
        assert queue.reschedule(a.id, delay=24.0)
        assert queue.reschedule(a.id, delay=20.0)
        assert [message.id for message in queue.messages()] == [c.id, b.id, a.id]
        assert not queue.reschedule("nobody", delay=1.0)
    assert [(when - began, message.id) for when, message in send.sent] == [(2, c.id), (20, b.id), (21, a.id)]
    s = queue.statistics()
    assert (s.accepted, s.sent, s.lateness.count, s.lateness.max) == (3, 3, 3, 0.0)


async def test_what_is_being_sent_is_not_rescheduled(autojump_clock: object) -> None:
    """Nor is anything in a queue that has no index; and what is moved past a drain's grace is handed back."""
    back: list[float] = []

    async def hand_back(message: Message, left: float) -> None:
        back.append(left)

    async with open_delay_queue(RecordingSender(3.0), capacity=10, workers=1) as queue:
        sending, waits = queue.put_nowait(b"", delay=0.0), queue.put_nowait(b"", delay=2.0)
        await trio.sleep(1.0)
        assert not queue.reschedule(sending.id, delay=5.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.drain, 10.0, hand_back)
            await trio.sleep(0.5)
            assert queue.reschedule(waits.id, delay=60.0)
    assert back == [60.0]
    async with open_delay_queue(nothing, capacity=1, workers=1, cancellable=False) as queue:
        with pytest.raises(RuntimeError, match="cancellable=True"):
            queue.reschedule("x", delay=1.0)


async def test_a_message_expires_when_it_could_only_be_sent_later(autojump_clock: object) -> None:
    """At the instant itself it is still sent; looked at when it is taken, and at each retry."""
    dead: list[tuple[float, str, bytes]] = []

    async def bury(message: Message, error: Exception) -> None:
        dead.append((trio.current_time() - began, type(error).__name__, message.payload))

    send = FailingSender(OSError, times=2)
    options = {"capacity": 10, "workers": 2, "retry": _AT_ONCE, "on_dead_letter": bury}
    async with open_delay_queue(send, **options) as queue:
        began = trio.current_time()
        queue.put_nowait(b"in time", delay=1.0, expires=2.0)
        queue.put_nowait(b"too late", delay=1.0, expires=1.5)
    assert send.payloads == [b"in time"]
    assert dead == [(3.0, "Expired", b"too late")]
    s = queue.statistics()
    assert (s.sent, s.dead, s.expired, s.failures) == (1, 1, 1, 4)


async def test_an_expired_message_without_a_hook_stays_in_the_journal(tmp_path: Path) -> None:
    """With what it was given up for, and when it was to expire."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=str(tmp_path / "journal")) as queue:
        queue.pause()
        await queue.put(b"x", delay=0.0, expires=1e-6, id="a")
        queue.resume()
        await until(lambda: queue.statistics().expired)
    (record,) = SqliteJournal(tmp_path / "journal").read()
    assert (record.id, record.expires) == ("a", 1e-6)
    assert record.dead is not None
    assert record.dead.startswith("Expired('")


def test_a_message_that_is_pickled_keeps_its_terms() -> None:
    """One that has any, and one that has none; and an error of this kind is the library's."""

    async def main() -> None:
        async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
            for expires in (5.0, None):
                message = queue.put_nowait(b"x", delay=100.0, expires=expires)
                again = pickle.loads(pickle.dumps(message))
                assert (again, again.expires) == (message, expires)
                assert queue.cancel(message.id)

    trio.run(main)
    assert issubclass(Expired, Exception)
