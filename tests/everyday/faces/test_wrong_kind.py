"""Functions given as ordinary ones that return what has yet to be done: nothing counts as done by them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio

from localdelay import Message, PermanentSendError, Throttled, blocking, open_delay_queue, threads
from tests.kit.conserving import conserved
from tests.kit.waiting import until

pytestmark = pytest.mark.filterwarnings("error")

NEVER = 300.0
TOLD = r"made\.<locals>\.<lambda> returned {}, whose end nobody waits for: .* given as an `async def`"


async def coroutine(*args: object) -> None:
    pytest.fail("nobody runs it")


def generator(*args: object) -> Iterator[None]:
    yield pytest.fail("nobody runs it")


async def async_generator(*args: object) -> AsyncIterator[None]:
    yield pytest.fail("nobody runs it")


def made(of: Callable[..., object]) -> Any:
    """An ordinary function that returns one of these."""
    return lambda *args: of(*args)


each_kind = pytest.mark.parametrize("of", [coroutine, generator, async_generator])


@each_kind
@pytest.mark.parametrize("sends", ["send", "send_batch"])
def test_a_send_that_returns_it_has_failed_for_good(of: Any, sends: str) -> None:
    """Each time that it is called it does the same: its message is a dead letter, whose error says so."""
    dead: list[Exception] = []

    def bury(message: Message, error: Exception) -> None:
        dead.append(error)

    with threads.open_delay_queue(capacity=9, workers=1, on_dead_letter=bury, **{sends: made(of)}) as queue:
        for _ in range(2):
            queue.put(b"", delay=0.0)
    s = conserved(queue.statistics())
    assert (s.sent, s.dead) == (0, 2)
    for error in dead:
        with pytest.raises(PermanentSendError, match=TOLD.format(of.__name__)):
            raise error


@each_kind
def test_a_hook_that_returns_it_has_not_taken_the_message(of: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log has it, as of any hook that fails."""

    def refuse(message: Message) -> None:
        raise PermanentSendError

    with threads.open_delay_queue(refuse, capacity=9, workers=1, on_dead_letter=made(of)) as queue:
        queue.put(b"", delay=0.0)
    assert conserved(queue.statistics()).dead_letter_errors == 1
    assert any("the dead-letter hook failed" in line and "`async def`" in line for line in caplog.messages)


@each_kind
def test_a_hand_back_that_returns_it_has_taken_nothing(of: Any) -> None:
    """The message remains, with a drain's own hand-back and with a fallback's."""
    calls: list[Message] = []

    def publish(message: Message, delay: float) -> object:
        calls.append(message)
        if len(calls) == 1:
            raise Throttled
        return made(of)()

    with threads.open_delay_queue(lambda _: None, capacity=9, workers=1) as queue:
        fallback = threads.Fallback(publish, queue, limit=None, hand_back=True)
        message = fallback.publish(b"", delay=NEVER).message
        until(lambda: queue.statistics().failures == 1)
        report = queue.drain(5.0, made(of))
        assert queue.statistics().failures == 2
    assert (report.handed_back, [left.id for left in report.remaining]) == (0, [message.id])
    assert fallback.statistics().handed_back == 0


@each_kind
@pytest.mark.parametrize("publish_timeout", [30.0, None])
def test_a_primary_that_returns_it_has_taken_nothing(of: Any, publish_timeout: float | None) -> None:
    """Its caller gets the error, and no receipt; the same goes for what cancels there."""
    takes: list[bool] = []

    def publish(message: Message, delay: float) -> object:
        return "handle" if takes else made(of)()

    with threads.open_delay_queue(lambda _: None, capacity=9, workers=1) as queue:
        fallback = threads.Fallback(publish, queue, publish_timeout=publish_timeout, cancel_delayed=made(of))
        with pytest.raises(PermanentSendError, match=f"publish returned {of.__name__}, whose end"):
            fallback.publish(b"", delay=NEVER)
        assert fallback.statistics().primary == queue.statistics().pending == 0
        takes.append(True)
        receipt = fallback.publish(b"", delay=NEVER)
        assert receipt.handle == "handle"
        with pytest.raises(PermanentSendError, match=TOLD.format(of.__name__)):
            fallback.cancel(receipt)


@each_kind
async def test_what_localdelay_blocking_makes_of_it_fails_likewise(of: Any) -> None:
    """On Trio."""
    dead: list[str] = []

    async def bury(message: Message, error: Exception) -> None:
        dead.append(str(error))

    with trio.fail_after(10):
        async with open_delay_queue(blocking(made(of)), capacity=9, workers=1, on_dead_letter=bury) as queue:
            await queue.put(b"", delay=0.0)
    assert conserved(queue.statistics()).sent == 0
    assert len(dead) == 1
    assert "`async def`" in dead[0]
