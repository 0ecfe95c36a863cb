"""What a failing send does: retries at exact times, dead letters, and no harm to anything else."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import trio

from localdelay import (
    Fallback,
    Message,
    PartialSendError,
    PermanentSendError,
    RetryPolicy,
    Route,
    Throttled,
    open_delay_queue,
)
from localdelay.testing import FailingSender, RecordingSender

STEADY = RetryPolicy(wait_initial=1, wait_max=8, wait_jitter=0)


async def test_a_failed_message_is_tried_again_for_ever(autojump_clock: Any, conserved: Any) -> None:
    """The waits grow to the maximum, the attempt is counted, the id stays, and nothing gives up."""
    sender = FailingSender(OSError, times=6)
    async with open_delay_queue(sender, capacity=10, workers=1, retry=STEADY) as queue:
        message = queue.put_nowait(b"", delay=1)
        await trio.sleep(2.5)
        s = conserved(queue)
        assert (s.retrying, s.waiting, s.sending, s.workers_busy) == (1, 0, 0, 0)
        assert (s.next_due_in, s.oldest_overdue) == (1.5, 1.5)
        [pending] = queue.messages()
        assert (pending.id, pending.attempt, pending.execute_at) == (message.id, 3, 1)
    assert sender.attempts == [
        (when, message.id, attempt) for attempt, when in enumerate([1, 2, 4, 8, 16, 24, 32], start=1)
    ]
    s = conserved(queue)
    assert (s.sent, s.failures, s.throttled, s.dead) == (1, 6, 0, 0)
    assert s.lateness.count == 1
    assert s.lateness.max == 0
    assert (s.send_time.count, s.total.count, s.total.max) == (7, 1, 31)


async def test_jitter_spreads_the_retries(autojump_clock: Any) -> None:
    """Messages that fail together are not tried again together."""
    sender = FailingSender(OSError, times=1)
    retry = RetryPolicy(wait_initial=1, wait_jitter=1)
    async with open_delay_queue(sender, capacity=100, workers=50, retry=retry, probe=None) as queue:
        for _ in range(50):
            queue.put_nowait(b"", delay=1)
    assert all(2 <= when <= 3 for when in sender.times)
    assert len(set(sender.times)) > 40


async def test_many_hanging_sends_end_each_at_its_own_time(autojump_clock: Any) -> None:
    """The watchdog ends every send at its own timeout, and is there again after a quiet time."""
    dead: list[tuple[float, str]] = []

    async def hook(message: Message, error: Exception) -> None:
        assert isinstance(error, trio.TooSlowError)
        dead.append((trio.current_time(), message.id))

    async def send(message: Message) -> None:
        await trio.sleep_forever()

    retry = RetryPolicy(attempts=1)
    async with open_delay_queue(
        send, capacity=10, workers=5, retry=retry, send_timeout=3, on_dead_letter=hook
    ) as queue:
        for id, delay in (("a", 1), ("b", 2), ("c", 2.5), ("d", 100)):
            queue.put_nowait(b"", delay=delay, id=id)
    assert dead == [(4, "a"), (5, "b"), (5.5, "c"), (103, "d")]


async def test_without_a_timeout_a_send_may_take_its_time(autojump_clock: Any) -> None:
    """`send_timeout=None` ends nothing."""
    sender = RecordingSender(duration=100_000)
    async with open_delay_queue(sender, capacity=10, workers=1, send_timeout=None) as queue:
        queue.put_nowait(b"", delay=1)
    assert queue.statistics().send_time.max == 100_000


async def test_a_send_that_ignores_its_timeout_and_returns_has_sent(
    autojump_clock: Any, conserved: Any
) -> None:
    """A send that catches the cancellation and returns has confirmed its message; the worker lives on."""
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(4)
        sent.append(message.payload)

    async with open_delay_queue(send, capacity=10, workers=1, send_timeout=3) as queue:
        queue.put_nowait(b"a", delay=1)
        queue.put_nowait(b"b", delay=1)
    assert sent == [b"a", b"b"]
    assert conserved(queue).failures == 0


async def test_a_hook_that_raises_harms_nothing(
    autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted, the message is dead, and the next one is sent."""

    async def hook(message: Message, error: Exception) -> None:
        raise RuntimeError("the hook is broken")

    class Sender(RecordingSender):
        async def __call__(self, message: Message) -> None:
            if message.id == "bad":
                raise PermanentSendError("no")
            await super().__call__(message)

    sender = Sender()
    async with open_delay_queue(sender, capacity=10, workers=1, on_dead_letter=hook) as queue:
        queue.put_nowait(b"secret", delay=1, id="bad")
        queue.put_nowait(b"", delay=1, id="good")
    s = conserved(queue)
    assert (s.dead, s.sent, s.dead_letter_errors) == (1, 1, 1)
    [line] = [r.getMessage() for r in caplog.records if r.name == "localdelay"]
    assert "the hook is broken" in line
    assert "bad" in line
    assert "secret" not in caplog.text


async def test_without_a_hook_a_dead_letter_is_one_error_line(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The line has the id, the size and the error, on one line, and never the payload."""
    sender = FailingSender(lambda: PermanentSendError("refused\nin two lines"))
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        queue.put_nowait(b"secret", delay=1, id="order-7", headers={"k": "v"})
    [record] = [r for r in caplog.records if r.name == "localdelay"]
    assert record.levelno == logging.ERROR
    line = record.getMessage()
    assert "order-7" in line
    assert "8 bytes" in line
    assert "refused" in line
    assert "\n" not in line
    assert "secret" not in caplog.text


async def test_payloads_never_appear_in_a_log(autojump_clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to a message, and however verbose the logging."""
    caplog.set_level(1)
    retry = RetryPolicy(attempts=2, wait_initial=1)
    with pytest.raises(ZeroDivisionError):
        async with open_delay_queue(FailingSender(OSError), capacity=10, workers=1, retry=retry) as queue:
            message = queue.put_nowait(b"secret", delay=1)
            await trio.sleep(9)
            queue.put_nowait(b"secret", delay=9)
            assert "secret" not in repr(message)
            assert "secret" not in repr(queue.messages())
            assert "secret" not in repr(queue.statistics())
            raise ZeroDivisionError
    assert "dead letter" in caplog.text
    assert "secret" not in caplog.text


async def test_a_send_that_is_no_coroutine_function_is_loud(autojump_clock: Any, conserved: Any) -> None:
    """A blocking send given by mistake, and not seen to be one, has sent already: it is not called again."""
    calls: list[str] = []
    dead: list[Exception] = []
    send: Any = lambda message: calls.append(message.id)  # noqa: E731 (a `def` is refused)

    async def hook(message: Message, error: Exception) -> None:
        dead.append(error)

    async with open_delay_queue(send, capacity=10, workers=1, on_dead_letter=hook) as queue:
        queue.put_nowait(b"", delay=1)
    assert len(calls) == 1
    assert "localdelay.blocking" in str(dead[0])
    assert conserved(queue).dead == 1


async def test_failures_are_logged_once_a_minute(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is a warning with its traceback; others show at INFO, without a line for each."""
    caplog.set_level(logging.INFO)
    sender = FailingSender(lambda: OSError("no route"), times=100)
    retry = RetryPolicy(wait_initial=1, wait_max=1, wait_jitter=0)
    async with open_delay_queue(sender, capacity=10, workers=1, retry=retry) as queue:
        queue.put_nowait(b"", delay=1)
    records = [r for r in caplog.records if r.name == "localdelay"]
    lines = [r.getMessage() for r in records]
    assert len(lines) == 2
    assert records[0].levelno == logging.WARNING
    assert "no route" in lines[0]
    assert "Traceback" in lines[0]
    assert "60 failed" in lines[1]
    assert "no route" in lines[1]


class Nested(ValueError):
    """Like an error that carries a deeply nested value."""

    def __repr__(self) -> str:
        raise RecursionError


class BadGroup(ExceptionGroup[Exception]):
    """A group that cannot be split."""

    def derive(self, excs: Any) -> Any:
        raise RuntimeError("derive")


class Unfinished(PartialSendError):
    """What has failed is looked up when somebody asks, and was never there."""

    def __init__(self) -> None:
        pass

    failed = property(lambda self: self.missing)  # type: ignore[assignment]

    def __str__(self) -> str:
        return "unfinished"


class Misplaced(PartialSendError):
    """Somebody has put a text where an error belongs."""

    def __init__(self) -> None:
        self.failed = {"first": "refused"}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "error",
    [
        Unfinished(),
        Misplaced(),
        Nested(),
        BadGroup("g", [ValueError()]),
        BadGroup("g", [OSError(), ValueError()]),
        ValueError("x" * 10**6),
    ],
    ids=["failed raises", "failed is text", "repr raises", "derive raises", "derive raises for two", "huge"],
)
@pytest.mark.parametrize("attempts", [1, 2])
async def test_an_odd_error_harms_its_message_only(
    error: Exception, attempts: int, autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever an exception does when it is looked at, the worker lives on and the log stays short."""
    caplog.set_level(logging.INFO)
    sender = FailingSender(lambda: error, times=1)
    retry = RetryPolicy(attempts=attempts, wait_initial=1)
    async with open_delay_queue(sender, capacity=10, workers=1, retry=retry) as queue:
        queue.put_nowait(b"", delay=1)
        queue.put_nowait(b"", delay=2)
    s = conserved(queue)
    assert s.sent + s.dead == 2
    assert s.dead == (2 if attempts == 1 else 0)
    assert caplog.records
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)


class TooMany(Throttled):
    """As a client's wrapper writes it: the header that it reads is not always there."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers

    retry_after = property(lambda self: float(self.headers["Retry-After"]))  # type: ignore[assignment]


async def test_a_throttled_error_that_can_not_say_for_how_long_says_nothing(
    autojump_clock: Any, conserved: Any
) -> None:
    """The send is tried again, and a publish is held: it was refused, whatever else its error is."""
    sender = FailingSender(lambda: TooMany({}), times=1)

    async def primary(message: Message, delay: float) -> None:
        raise TooMany({})

    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
        fallback = Fallback(primary, queue)
        assert (await fallback.publish(b"", delay=2.0)).route is Route.LOCAL
    assert conserved(queue).sent == 2


@pytest.mark.parametrize("hook_raises", [False, True])
async def test_no_payload_is_held_by_a_cycle(hook_raises: bool, autojump_clock: Any, conserved: Any) -> None:
    """What is finished is freed at once, with the garbage collector off."""
    seen: list[weakref.ref[Message]] = []

    async def send(message: Message) -> None:
        seen.append(weakref.ref(message))
        raise PermanentSendError("no")

    async def hook(message: Message, error: Exception) -> None:
        if hook_raises:
            raise OSError

    gc.disable()
    try:
        async with open_delay_queue(send, capacity=10, workers=1, on_dead_letter=hook) as queue:
            queue.put_nowait(b"", delay=1)
        await trio.lowlevel.checkpoint()
        assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()
    assert conserved(queue).dead == 1


async def test_a_hand_back_or_a_hook_that_is_not_async_is_told_so(autojump_clock: Any, caplog: Any) -> None:
    """Such a hand-back fails for good while the queue runs, too, and such a hook's name is logged."""
    not_async: Any = lambda *_: None  # noqa: E731 (a `def` is refused)

    async def send(message: Message) -> None:
        raise PermanentSendError("no")

    async with open_delay_queue(send, capacity=10, workers=1, on_dead_letter=not_async) as queue:
        queue.put_nowait(b"", delay=10)
        entry = queue.hand_backs.take_out(queue.hand_backs.far(0.0)[0])
        assert entry is not None
        error = await queue.hand_backs.give(entry, not_async)
        assert isinstance(error, PermanentSendError)
        assert queue.hand_backs.far(0.0) == []
    assert queue.statistics().dead_letter_errors == 1
    assert "on_dead_letter returned NoneType" in caplog.text


async def test_the_first_line_of_what_is_throttled_has_none_before_it(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It says how many have failed; only those after it say since when."""
    sender = FailingSender(Throttled, times=2)
    with caplog.at_level(logging.INFO, "localdelay"):
        async with open_delay_queue(sender, capacity=9, workers=1, limit=None, retry=STEADY) as queue:
            queue.put_nowait(b"", delay=0.0)
            await trio.sleep(61.0)
            queue.put_nowait(b"", delay=0.0)
    said = [line for line in caplog.messages if "failed" in line]
    assert said == [
        "1 failed, the latest with Throttled()",
        "2 failed since the last such line, the latest with Throttled()",
    ]
