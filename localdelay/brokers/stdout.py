"""Standard output: a message is a line."""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from itertools import accumulate

import trio

from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.publisher import Publisher, open_publisher
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FILE_WRITE = 65_536


def classified(error: Exception) -> Exception:
    """What to raise for an error of a write: `Throttled`, `PermanentSendError`, or the error itself."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return Throttled(f"standard output has no room: {error.strerror}")
    if isinstance(error, BrokenPipeError):
        return PermanentSendError("nobody reads standard output any more: broken pipe")
    return error


class _Output:
    """Writes lines to a file descriptor; in a thread where it may block though it looks writable."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        # So much goes into a pipe without blocking once it is writable, unless another process is quicker.
        self._most = _FILE_WRITE if self._is_file else select.PIPE_BUF
        self._may_block = os.get_blocking(descriptor) or self._is_file
        self._lines: deque[Parcel] = deque()
        self._filled = trio.lowlevel.ParkingLot()
        self._rest = b""

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Have lines written as there is room."""
        self._lines.extend(parcels)
        self._filled.unpark()

    async def lost(self) -> Exception:
        """Write, for ever: an error of one write says nothing of the next."""
        while True:
            while not self._lines:
                await self._filled.park()
            await self._room()  # and only then is looked who still waits
            parcels = self._gather()
            lines: list[bytes] = [self._rest, *[parcel.content for parcel in parcels]]
            data = b"".join(lines)
            written, error = await self._write(data)
            confirmed, ends = cut(len(self._rest), [len(line) for line in lines[1:]], written)
            self._rest = data[written:ends]
            for number, parcel in enumerate(parcels):
                parcel.settle(None if number < confirmed else error)

    def _gather(self) -> list[Parcel]:
        """What is written next: at least one line, unless nobody waits for any."""
        gathered: list[Parcel] = []
        size = len(self._rest)
        while self._lines:
            if self._lines[0].abandoned:
                self._lines.popleft().settle()
                continue
            size += len(self._lines[0].content)
            if gathered and size > self._most:
                break
            gathered.append(self._lines.popleft())
        return gathered

    async def _write(self, data: bytes) -> tuple[int, Exception | None]:
        """How many bytes were written, and why not all of them."""
        written = 0
        while written < len(data):
            part = data[written : written + (self._most if self._may_block else _FILE_WRITE)]
            try:
                if self._may_block:
                    await self._room()
                    write = partial(os.write, self._descriptor, part)
                    written += await trio.to_thread.run_sync(write, abandon_on_cancel=True)
                else:
                    written += os.write(self._descriptor, part)
            except BlockingIOError:
                await self._room()
            except OSError as error:
                return written, error
        return written, None

    async def _room(self) -> None:
        """Wait until it can be written to."""
        if not self._is_file:
            try:
                await trio.lowlevel.wait_writable(self._descriptor)
            except PermissionError:  # it is nothing that can be waited for, such as /dev/null
                self._is_file = True


class _Driver(Driver):
    where = "standard output"
    no_delay = "stdout: has no delay of its own"
    confirm_timeout = math.inf
    most_under_way = 1000
    verdict = staticmethod(classified)

    def __init__(self, descriptor: int | None) -> None:
        self._given = descriptor

    def encode(self, message: Message, delay: float | None, now: float) -> bytes:
        """Its line."""
        return message.payload + b"\n"

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Output]:
        descriptor = _duplicate(self._given)
        try:
            yield _Output(descriptor)
        finally:
            os.close(descriptor)


def open_stdout(descriptor: int | None = None) -> AbstractAsyncContextManager[Publisher]:
    """Write to standard output, or to another file descriptor, for the length of an `async with` block.

    What is written bypasses `sys.stdout`: flush that first if it was used. The descriptor stays open.
    Raises `ConnectionError` where it is closed, or not open for writing.
    """
    return open_publisher(_Driver(descriptor))


def cut(rest: int, lines: Sequence[int], written: int) -> tuple[int, int]:
    """How many lines were written, and where the line ends that was begun.

    What was to be written is `rest` bytes, the end of an older line, and then lines of these lengths; it was
    cut off after `written` bytes. If no line was begun then that is where the line "ends". Pure.
    """
    ends = list(accumulate(lines, initial=rest))
    whole = bisect_right(ends, written)
    begun = whole == 0 or written > ends[whole - 1]
    return max(0, whole - 1), ends[whole] if begun else written


def _duplicate(descriptor: int | None) -> int:
    """A descriptor of our own for the same output."""
    import fcntl  # not before it is needed: Windows, where the rest can be imported, has none

    try:
        if descriptor is None:
            descriptor = 1
            if sys.__stdout__ is None or sys.__stdout__.closed:
                # Whatever was opened since then may have got its number.
                raise OSError(errno.EBADF, "it is closed")
        # Not 0, 1 or 2, which are others' even where they are closed.
        duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        if fcntl.fcntl(duplicate, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            os.close(duplicate)
            raise OSError(errno.EBADF, "it is not open for writing")
    except OSError as error:
        raise ConnectionError(f"it can't be written to: {error.strerror}") from None
    # A pipe opened anew is one that does not block, and yet does for all others who write there.
    if stat.S_ISFIFO(os.fstat(duplicate).st_mode):
        with suppress(OSError):  # there is no /proc, or it is another user's, or nobody reads it
            own = os.open(f"/proc/self/fd/{duplicate}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.close(duplicate)
            return own
    return duplicate
