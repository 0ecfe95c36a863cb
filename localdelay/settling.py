"""Waiting on the Trio loop for what a client settles, message by message, in whatever thread it likes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio

from localdelay.errors import PartialSendError, PermanentSendError, asked_wait
from localdelay.message import Message

from .hops import Hop


class Confirmation:
    """What the messages of one `send` or `send_batch` have come to so far. Of the Trio thread alone."""

    __slots__ = ("_failed", "_settled", "_unsettled")

    def __init__(self, count: int = 1) -> None:
        self._unsettled = count
        self._failed: dict[int, Exception] = {}
        self._settled = trio.Event()

    def settle(self, position: int, error: Exception | None) -> None:
        """The message at this position is confirmed, or has failed. Once for each position."""
        if error is not None:
            self._failed[position] = error
        self._unsettled -= 1
        if self._unsettled == 0:
            self._settled.set()

    async def of_one(self) -> None:
        """Wait for the only message, and raise what it failed with."""
        await self._settled.wait()
        if self._failed:
            raise self._failed.pop(0)

    async def of_all(self, messages: Sequence[Message]) -> None:
        """Wait for all of them; raise as `Broker.send_batch` does."""
        if messages:
            await self._settled.wait()
        raise_failures(messages, self._failed)


def raise_failures(messages: Sequence[Message], failed: dict[int, Exception]) -> None:
    """Raise as `Broker.send_batch` does, for the messages at these positions; return where none failed."""
    if not failed:
        return
    errors = list(failed.values())
    first = max(errors, key=_retry_after)
    alike = all(type(error) is type(first) for error in errors)
    if len(errors) == len(messages) and alike and not isinstance(first, PermanentSendError):
        raise first
    raise PartialSendError({messages[position].id: error for position, error in failed.items()})


def _retry_after(error: Exception) -> float:
    return asked_wait(error) or 0.0


def caused_by(error: Exception, original: BaseException) -> Exception:
    """The error, with the client's own as its cause where it is another one, to be raised later."""
    if error is not original:
        error.__cause__ = original
    return error


class Settling:
    """Brings what a client's threads have settled to the Trio loop that it was made on."""

    def __init__(self) -> None:
        post = trio.lowlevel.current_trio_token().run_sync_soon
        self._hop: Hop[tuple[Confirmation, int, Exception | None]] = Hop(post, _deliver)

    def settle(self, confirmation: Confirmation, position: int = 0, error: Exception | None = None) -> None:
        """Settle a message from any thread; its task goes on in the next turn of the loop."""
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._hop.send((confirmation, position, error))


def _deliver(settled: list[tuple[Confirmation, int, Exception | None]]) -> None:
    for confirmation, position, error in settled:
        confirmation.settle(position, error)
