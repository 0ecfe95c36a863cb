"""What a queue does in every world, each said once: a scene for each promise of a face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from localdelay import (
    Message,
    PartialSendError,
    PermanentSendError,
    ProbePolicy,
    QueueClosed,
    QueueFull,
    RetryPolicy,
    SqliteJournal,
    Statistics,
)
from tests.kit import conserving
from tests.kit.faces import Face, Scene

SOON, NEVER = 0.03, 300.0
"""Seconds: what is due within a scene, and what is not."""
_AT_ONCE = RetryPolicy(attempts=3, wait_initial=0.01, wait_jitter=0.0)


async def conserved(face: Face, queue: Any) -> Statistics:
    return conserving.conserved(await face.now(queue.statistics()))


async def sent_when_due(face: Face) -> None:
    """Each message once, in the order of their times, none early; leaving waits for all of them."""
    sent: list[Message] = []
    async with face.open(sent.append, workers=1) as queue:
        await face.now(queue.pause())  # whatever else the machine does
        second = await face.now(queue.put(b"2", delay=2 * SOON, headers={"k": "v"}))
        first = queue.put_nowait(b"1", delay=SOON, id="order 7")
        assert [message.id for message in await face.now(queue.messages())] == ["order 7", second.id]
        assert (await conserved(face, queue)).waiting == 2
        assert await face.now(queue.is_pending("order 7"))
        await face.now(queue.resume())
    assert sent == [first, second]
    assert (second.payload, dict(second.headers), second.attempt) == (b"2", {"k": "v"}, 1)
    s = await conserved(face, queue)
    assert (s.sent, s.closed, s.lateness.count) == (2, True, 2)
    assert 0 <= s.lateness.max < 5


async def at_a_time(face: Face) -> None:
    """`at` is an aware datetime; one in the past means now."""
    sent: list[Message] = []
    async with face.open(sent.append) as queue:
        now = datetime.now(UTC)
        late = queue.put_nowait(b"2", at=now + timedelta(seconds=NEVER))
        past = await face.now(queue.put(b"1", at=now - timedelta(days=1)))
        assert NEVER - 20 < late.execute_at - past.execute_at <= NEVER
        await face.until(lambda: sent == [past])
        assert await face.now(queue.cancel(late.id))


async def rescheduled(face: Face) -> None:
    """What waits has another time at once, earlier or later, under its id; a delay may be a `timedelta`."""
    sent: list[str] = []
    async with face.open(lambda message: sent.append(message.id)) as queue:
        early = queue.put_nowait(b"1", delay=timedelta(seconds=NEVER))
        late = queue.put_nowait(b"2", delay=timedelta(minutes=5), id="order 7", headers={"k": "v"})
        at = datetime.now(UTC) + timedelta(days=1)
        assert await face.now(queue.reschedule("order 7", at=at))
        assert await face.now(queue.reschedule(early.id, delay=SOON))
        await face.until(lambda: sent == [early.id])
        assert not await face.now(queue.reschedule(early.id, delay=SOON))
        (left,) = await face.now(queue.messages())
        assert (left.id, dict(left.headers), left.at) == ("order 7", {"k": "v"}, at.timestamp())
        assert left.execute_at - late.execute_at + NEVER == pytest.approx(86_400, abs=600)
        with pytest.raises(ValueError, match="delay"):
            await face.now(queue.reschedule("order 7", delay=-1.0))
        assert await face.now(queue.cancel("order 7"))
    assert (await conserved(face, queue)).accepted == 2


async def expired(face: Face) -> None:
    """What could only be sent too late is a dead letter, of which the hook and the statistics know why."""
    sent: list[bytes] = []
    dead: list[tuple[bytes, str]] = []

    def bury(message: Message, error: Exception) -> None:
        dead.append((message.payload, type(error).__name__))

    async with face.open(lambda message: sent.append(message.payload), on_dead_letter=bury) as queue:
        await face.now(queue.pause())
        queue.put_nowait(b"no", delay=0.0, expires=timedelta(microseconds=1))
        kept = await face.now(queue.put(b"yes", delay=0.0, expires=NEVER))
        queue.put_nowait(b"plain", delay=0.0)
        await face.sleep(SOON)
        assert kept.expires == NEVER
        with pytest.raises(ValueError, match="expires"):
            queue.put_nowait(b"", delay=0.0, expires=-1)
        await face.now(queue.resume())
    assert (sorted(sent), dead) == ([b"plain", b"yes"], [(b"no", "Expired")])
    s = await conserved(face, queue)
    assert (s.sent, s.dead, s.expired, s.failures) == (2, 1, 1, 0)


async def full(face: Face) -> None:
    """`put_nowait` raises QueueFull; `put` waits for room, and goes before who comes later."""
    sent: list[bytes] = []
    gate = face.gate()
    async with face.open(lambda message: sent.append(message.payload), gate, capacity=2) as queue:
        queue.put_nowait(b"1", delay=0.0)
        queue.put_nowait(b"2", delay=0.0)
        with pytest.raises(QueueFull):
            queue.put_nowait(b"no", delay=0.0)
        async with face.beside() as start:
            waiting = start(lambda: queue.put(b"3", delay=0.0))
            await _until_one_waits(face, queue)
            with pytest.raises(QueueFull):
                queue.put_nowait(b"no", delay=0.0)
            gate.set()
            await face.until(waiting.done)
            assert waiting.result().payload == b"3"
    assert sorted(sent) == [b"1", b"2", b"3"]
    assert (await conserved(face, queue)).accepted == 3


async def put_by_a_send(face: Face) -> None:
    """A send that would wait for room in its own queue, which is full, is told so instead of hanging."""
    found: list[str] = []
    async with face.opened(_putting(face, found, lambda: queue), capacity=2, workers=2) as queue:
        for _ in range(2):
            queue.put_nowait(b"", delay=0.0)
        await face.until(lambda: len(found) == 2)
    assert found == ["put was called from inside a send of this very queue"] * 2
    assert (await conserved(face, queue)).sent == 2


def _putting(face: Face, found: list[str], queue: Callable[[], Any]) -> Any:
    gate: list[int] = []

    async def send(message: Message) -> None:
        gate.append(1)
        await face.until(lambda: len(gate) == 2)  # both are at work, so that none of them makes room
        try:
            await face.now(queue().put(b"", delay=0.0))
        except QueueFull as error:
            found.append(str(error).partition(", and would")[0])
        await face.until(lambda: len(found) == 2)  # or the first to be told makes room for the other

    return face.calls(send)


async def full_of_bytes(face: Face) -> None:
    """`capacity_bytes` bounds payloads and headers; what can never fit is a mistake."""
    async with face.open(lambda _: None, capacity_bytes=1000) as queue:
        await face.now(queue.pause())
        for _ in range(9):
            queue.put_nowait(bytes(100), delay=0.0)
        with pytest.raises(QueueFull):
            queue.put_nowait(bytes(90), delay=0.0, headers={"a": "0123456789"})
        queue.put_nowait(bytes(100), delay=0.0)
        with pytest.raises(ValueError, match="capacity_bytes"):
            queue.put_nowait(bytes(1001), delay=0.0)
        with pytest.raises(ValueError, match="capacity_bytes"):
            await face.now(queue.put(bytes(1001), delay=0.0))
        assert (await conserved(face, queue)).pending_bytes == 1000
        await face.now(queue.resume())


async def one_id(face: Face) -> None:
    """An id that is pending is refused, chosen or not; it may be used again when its message has ended."""
    async with face.open(lambda _: None) as queue:
        for _ in range(3):
            await face.now(queue.put(b"", delay=NEVER, id="a"))
            with pytest.raises(ValueError, match="'a'"):
                queue.put_nowait(b"", delay=NEVER, id="a")
            assert await face.now(queue.is_pending("a"))
            assert await face.now(queue.cancel("a"))
            assert not await face.now(queue.is_pending("a"))
        message = queue.put_nowait(b"", delay=NEVER)
        with pytest.raises(ValueError, match=message.id):
            await face.now(queue.put(b"", delay=NEVER, id=message.id))
        assert await face.now(queue.cancel(message.id))
        assert not await face.now(queue.cancel(message.id))
        assert not await face.now(queue.cancel("unknown"))
    assert (await conserved(face, queue)).cancelled == 4


async def paused_and_resized(face: Face) -> None:
    """Sending stops and goes on, and all limits change while it runs."""
    sent: list[Message] = []
    async with face.open(sent.append, capacity=1, workers=1) as queue:
        await face.now(queue.pause())
        assert (await conserved(face, queue)).paused
        queue.put_nowait(b"", delay=0.0)
        await face.now(queue.resize(capacity=2, workers=3, capacity_bytes=500))
        s = await conserved(face, queue)
        assert (s.capacity, s.workers, s.capacity_bytes) == (2, 3, 500)
        queue.put_nowait(b"", delay=0.0)
        await face.sleep(SOON)
        assert sent == []
        await face.now(queue.resume())
    assert len(sent) == 2


async def tried_again(face: Face) -> None:
    """A failed send is tried again under the same id; what is given up goes to the hook with its error."""
    attempts: list[tuple[bytes, int]] = []
    dead: list[tuple[bytes, str]] = []

    def send(message: Message) -> None:
        attempts.append((message.payload, message.attempt))
        if message.payload == b"never":
            raise PermanentSendError("refused")
        if message.attempt < (9 if message.payload == b"fails" else 3):
            raise OSError("down")

    def bury(message: Message, error: Exception) -> None:
        dead.append((message.payload, str(error)))

    async with face.open(send, retry=_AT_ONCE, on_dead_letter=bury) as queue:
        for payload in (b"late", b"fails", b"never"):
            queue.put_nowait(payload, delay=0.0)
    assert sorted(attempts) == [(p, n) for p in (b"fails", b"late") for n in (1, 2, 3)] + [(b"never", 1)]
    assert sorted(dead) == [(b"fails", "down"), (b"never", "refused")]
    s = await conserved(face, queue)
    assert (s.sent, s.dead, s.failures) == (1, 2, 6)


async def in_batches(face: Face) -> None:
    """What is due together is sent together, and of a batch only what failed is tried again."""
    batches: list[list[bytes]] = []

    def send_batch(messages: Sequence[Message]) -> None:
        batches.append([message.payload for message in messages])
        failed = {m.id: OSError() for m in messages if (m.payload, m.attempt) == (b"3", 1)}
        if failed:
            raise PartialSendError(failed)

    async with face.open(None, send_batch=send_batch, workers=1, retry=_AT_ONCE) as queue:
        await face.now(queue.pause())
        for number in range(5):
            queue.put_nowait(b"%d" % number, delay=0.0)
        await face.now(queue.resume())
    assert batches == [[b"0", b"1", b"2", b"3", b"4"], [b"3"]]
    assert (await conserved(face, queue)).sent == 5


async def timed_out(face: Face) -> None:
    """A send that hangs is ended by `send_timeout`, and its message is tried again."""
    gate = face.gate()
    sent: list[Message] = []
    retry = RetryPolicy(wait_initial=0.01, wait_jitter=0.0)
    async with face.open(sent.append, gate, workers=3, send_timeout=SOON, retry=retry) as queue:
        queue.put_nowait(b"", delay=0.0)
        await face.until(lambda: _has_failed(face, queue))
        gate.set()
    # Not the last one: in threads the call that was given up may return after the one that counts.
    assert max(message.attempt for message in sent) > 1
    assert (await conserved(face, queue)).sent == 1


async def drained(face: Face) -> None:
    """What comes due is sent, the rest handed back, all accounted for; and then it is closed."""
    sent: list[bytes] = []
    back: list[tuple[bytes, float]] = []
    async with face.open(lambda message: sent.append(message.payload)) as queue:
        queue.put_nowait(b"soon", delay=SOON)
        queue.put_nowait(b"late", delay=NEVER)
        hand_back = face.takes(lambda message, left: back.append((message.payload, left)))
        report = await face.now(queue.drain(5.0, hand_back))
        with pytest.raises(QueueClosed):
            queue.put_nowait(b"", delay=0.0)
        with pytest.raises(QueueClosed):
            await face.now(queue.put(b"", delay=0.0))
        with pytest.raises(QueueClosed):
            await face.now(queue.drain())
    assert (report.sent, report.handed_back, report.remaining) == (1, 1, [])
    assert sent == [b"soon"]
    ((payload, left),) = back
    assert payload == b"late"
    assert NEVER - 20 < left <= NEVER


async def cut_off_by_a_drain(face: Face) -> None:
    """At the end of the grace a send is given up, a waiting put refused, and what is left remains."""
    gate = face.gate()
    async with face.open(lambda _: None, gate, capacity=1) as queue, face.beside() as start:
        message = queue.put_nowait(b"", delay=0.0)
        waiting = start(lambda: queue.put(b"", delay=0.0))
        await _until_one_waits(face, queue)
        report = await face.now(queue.drain(SOON))
        await face.until(waiting.done)
        with pytest.raises(QueueClosed):
            waiting.result()
        assert [left.id for left in report.remaining] == [message.id]
        assert (await conserved(face, queue)).pending == 1
        gate.set()


async def left_by_an_error(face: Face) -> None:
    """It comes out as it is; what is pending is still there to be looked at."""
    own = RuntimeError("mine")
    with pytest.raises(RuntimeError) as raised:
        async with face.open(lambda _: None) as queue:
            queue.put_nowait(b"12345", delay=NEVER)
            raise own
    assert raised.value is own
    assert len(await face.now(queue.messages())) == (await conserved(face, queue)).pending == 1
    with pytest.raises(QueueClosed):
        queue.put_nowait(b"", delay=0.0)


async def by_key(face: Face) -> None:
    """While the broker of one key is down another key's messages go; one without a key is refused."""
    sent: list[bytes] = []
    tried: list[bytes] = []
    is_up: list[bool] = []

    def send(message: Message) -> None:
        tried.append(message.payload)
        if message.headers["tenant"] == "a" and not is_up:
            raise ConnectionError
        sent.append(message.payload)

    async def is_shut() -> bool:
        keys = (await conserved(face, queue)).keys
        return "a" in keys and keys["a"].is_shut

    probe = ProbePolicy(failures=2, wait_initial=SOON, wait_max=SOON)
    key = partial(lambda message: message.headers["tenant"])
    async with face.open(send, key=key, probe=probe, retry=_AT_ONCE) as queue:
        for number in range(4):
            queue.put_nowait(b"a%d" % number, delay=0.0, headers={"tenant": "a"})
        await face.until(is_shut)
        await face.now(queue.put(b"b", delay=0.0, headers={"tenant": "b"}))
        await face.until(lambda: sent == [b"b"])
        await face.until(lambda: len(tried) > 8)  # which is more than attempts
        for given in ({}, {"id": "c"}, {"headers": {"tenants": "a"}}):
            with pytest.raises(ValueError, match="key must give a key"):
                queue.put_nowait(b"", delay=0.0, **given)
            with pytest.raises(ValueError, match="key must give a key"):
                await face.now(queue.put(b"", delay=0.0, **given))
        is_up.append(True)
    assert sorted(sent) == [b"a0", b"a1", b"a2", b"a3", b"b"]
    assert (await conserved(face, queue)).accepted == 5


async def wrong_arguments(face: Face) -> None:
    """Each is refused where it is given, by name; a wrong drain closes nothing."""
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"workers": 0}, ValueError, "workers"),
        ({"capacity": 0}, ValueError, "capacity"),
        ({"send_timeout": -1.0}, ValueError, "send_timeout"),
        ({"on_dead_letter": 5}, TypeError, "on_dead_letter"),
        ({"colour": "red"}, TypeError, "colour"),
        ({"key": 5}, TypeError, "key"),
    ]
    for options, error, named in wrong:
        with pytest.raises(error, match=named):
            async with face.open(lambda _: None, **options):
                pass
    with pytest.raises(TypeError, match="exactly one of send and send_batch"):
        async with face.open(None):
            pass
    async with face.open(lambda _: None) as queue:
        for given in ({"delay": -1.0}, {"delay": 0.0, "id": ""}, {"at": datetime(2030, 1, 1)}):  # noqa: DTZ001
            with pytest.raises(ValueError, match=[*given][-1]):
                await face.now(queue.put(b"", **given))
        with pytest.raises(TypeError, match="payload"):
            queue.put_nowait("text", delay=0.0)
        with pytest.raises(TypeError, match="grace"):
            await face.now(queue.drain("x"))
        queue.put_nowait(b"", delay=0.0)
    assert (await conserved(face, queue)).accepted == 1


async def flushed_and_recovered(face: Face, path: Path) -> None:
    """After `flush` nothing is at risk; what a drain leaves in the journal is sent by the next queue."""
    sent: list[Message] = []
    async with face.open(sent.append, journal=SqliteJournal(path)) as queue:
        kept = await face.now(queue.put(b"kept", delay=NEVER))
        assert (await conserved(face, queue)).at_risk == 0
        queue.put_nowait(b"soon", delay=3 * SOON)
        await face.now(queue.flush())
        assert (await conserved(face, queue)).at_risk == 0
        report = await face.now(queue.drain(0.0))
        assert (report.spooled, report.remaining) == (2, [])
    async with face.open(sent.append, journal=SqliteJournal(path)) as queue:
        assert (await conserved(face, queue)).recovered == 2
        await face.until(lambda: [message.payload for message in sent] == [b"soon"])
        assert await face.now(queue.cancel(kept.id))


async def _until_one_waits(face: Face, queue: Any) -> None:
    async def one_waits() -> bool:
        s: Statistics = await face.now(queue.statistics())
        return s.puts_waiting == 1

    await face.until(one_waits)


async def _has_failed(face: Face, queue: Any) -> bool:
    s: Statistics = await face.now(queue.statistics())
    return s.failures > 0


ANYWHERE: Final[list[Scene]] = [
    sent_when_due,
    at_a_time,
    rescheduled,
    expired,
    full,
    put_by_a_send,
    full_of_bytes,
    one_id,
    paused_and_resized,
    tried_again,
    in_batches,
    timed_out,
    drained,
    cut_off_by_a_drain,
    left_by_an_error,
    by_key,
    wrong_arguments,
]
