from __future__ import annotations

import signal

import pytest
import trio

from localdelay.nurseries import bare_nursery
from localdelay.signals import heard


class Interrupt(BaseException):
    """Something that is no `Exception`."""


@pytest.mark.parametrize("grouped", [False, True])
async def test_its_own_cancellation_ends_it_well(
    grouped: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The block is cut off at once, alone or in a group, and nothing leaves that no scope would catch."""
    began = trio.current_time()
    left: BaseException | None = None
    try:
        async with bare_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.deadline = began + 3
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                if grouped:
                    raise BaseExceptionGroup("two", [cancelled, cancelled]) from None
                raise
    except BaseException as raised:  # noqa: BLE001 (raised further, it would end the test as if all were well)
        left = raised
    assert left is None
    assert trio.current_time() - began == 3
    assert nursery.cancel_scope.cancelled_caught


async def test_errors_that_end_generators_go_through(autojump_clock: trio.testing.MockClock) -> None:
    """`StopIteration` and `StopAsyncIteration`, which a generator of ours must not take for its own."""
    for error in (StopIteration(1), StopAsyncIteration(2)):
        with pytest.raises(type(error)) as caught:
            async with bare_nursery(), bare_nursery():
                raise error
        assert caught.value is error


async def test_signals_are_heard_while_the_block_runs(autojump_clock: trio.testing.MockClock) -> None:
    """Each calls the function, in order, and afterwards it has the effect that it had before."""
    got: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    async with heard([signal.SIGUSR1, signal.SIGUSR2], got.append):
        for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
            signal.raise_signal(signum)
            await trio.testing.wait_all_tasks_blocked()
    assert got == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


async def test_what_the_hearer_raises_ends_the_block(autojump_clock: trio.testing.MockClock) -> None:
    """It leaves the block without a group around it."""

    def stop(signum: int) -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        async with heard([signal.SIGUSR1], stop):
            signal.raise_signal(signal.SIGUSR1)
            await trio.sleep_forever()
