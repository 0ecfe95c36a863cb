"""Hearing signals while something runs."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from .nurseries import bare_nursery


class Stopped(Exception):
    """A signal has ended what ran."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def stop(signum: int) -> NoReturn:
    """End what runs with `Stopped`."""
    raise Stopped(signum)


@asynccontextmanager
async def heard(signals: Iterable[int], act: Callable[[int], None] = stop) -> AsyncIterator[None]:
    """For the length of an `async with` block, have `act` called with each of these signals that comes.

    To be entered on the main thread. What the block raises leaves it as it is, and so does what `act` raises,
    which cancels the block.
    """

    async def listen() -> None:
        async for signum in received:
            act(signum)

    with trio.open_signal_receiver(*signals) as received:
        async with bare_nursery() as nursery:
            nursery.start_soon(listen)
            yield
            nursery.cancel_scope.cancel()
