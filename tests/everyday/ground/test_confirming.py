"""Waiting on the Trio loop for what threads settle."""

from __future__ import annotations

import random
import threading

import pytest
import trio

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.settling import Confirmation, Settling, caused_by, raise_failures

MESSAGES = [Message(id, b"", 0.0) for id in "abc"]


async def test_a_batch_waits_for_its_last_message() -> None:
    """`of_all` goes on only when every position is settled."""
    confirmation = Confirmation(3)
    with trio.move_on_after(0) as scope:
        await confirmation.of_all(MESSAGES)
    assert scope.cancelled_caught
    for position in (2, 0, 1):
        confirmation.settle(position, None)
    await confirmation.of_all(MESSAGES)


async def test_a_batch_names_what_failed() -> None:
    """Positions become ids, each with its error."""
    confirmation = Confirmation(3)
    error = OSError("no")
    confirmation.settle(1, error)
    confirmation.settle(0, None)
    confirmation.settle(2, None)
    with pytest.raises(PartialSendError) as raised:
        await confirmation.of_all(MESSAGES)
    assert raised.value.failed == {"b": error}


def test_what_failed_as_a_whole_is_tried_again_as_a_whole() -> None:
    """Errors of one kind for all of them: the first is raised; not if they differ, or can never work."""
    throttled = {position: Throttled(f"{position}") for position in range(3)}
    with pytest.raises(Throttled, match="0"):
        raise_failures(MESSAGES, dict(throttled))
    for last in (OSError("no"), PermanentSendError("no")):
        with pytest.raises(PartialSendError):
            raise_failures(MESSAGES, {**throttled, 2: last})
    with pytest.raises(PartialSendError):
        raise_failures(MESSAGES, dict.fromkeys(range(3), PermanentSendError("too large")))
    raise_failures(MESSAGES, {})


def test_the_clients_error_is_the_cause() -> None:
    """But an error is not its own cause."""
    original = OSError("no")
    assert caused_by(Throttled("full"), original).__cause__ is original
    assert caused_by(original, original).__cause__ is None


async def test_many_threads_settle_many_sends() -> None:
    """Whatever the interleaving, each is settled once, on the loop's thread, and nobody is forgotten."""
    settling = Settling()
    count, threads = 2000, 4
    confirmations = [Confirmation(threads) for _ in range(count)]
    done = 0

    async def wait(confirmation: Confirmation) -> None:
        nonlocal done
        await confirmation.of_all([Message(f"{number}", b"", 0.0) for number in range(threads)])
        done += 1

    def settle(position: int) -> None:
        for confirmation in random.Random(position).sample(confirmations, count):
            settling.settle(confirmation, position)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for confirmation in confirmations:
                nursery.start_soon(wait, confirmation)
            for position in range(threads):
                threading.Thread(target=settle, args=(position,), daemon=True).start()
    assert done == count


def test_a_thread_that_settles_after_the_loop_has_ended_harms_nobody() -> None:
    """Nobody waits any more; the thread goes on."""

    async def main() -> Settling:
        return Settling()

    settling = trio.run(main)
    settling.settle(Confirmation())
