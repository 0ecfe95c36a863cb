"""Standard output: a message is a line.

What is written is the payload and a line break. A payload that has line breaks in it is written as it is,
and reads back as several lines; ids and headers are not written.

A message is confirmed when the system has taken its whole line: what stands in a pipe is lost if the reader
ends without reading it, and what stands in a file if the machine goes down. Messages are written in the
order in which they were sent. On a pipe, a line of up to PIPE_BUF bytes (4,096 on Linux) is written in one
piece, whoever else writes there.

A reader that stands still is no error: sends wait. Nothing is taken out of their hands before there is room
for it, so a send that is cancelled or timed out while it waits is not written later. A longer line that was
begun is ended before anything else is written.

- Throttled: the disk is full, a quota or a limit of the file's size is reached. If that cuts a line in two,
  its rest is written before the next line; its message has failed, and is there twice if it is sent again.
- Permanent: the reader is gone (a `PermanentSendError` with `BrokenPipeError` as its cause).

No delay of its own.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate

import trio

from localdelay.brokers.stdout_outbox import Job, Outbox, Thread
from localdelay.errors import DelayNotSupported, PermanentSendError, Throttled
from localdelay.message import Message
from localdelay.settling import caused_by

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FILE_WRITE = 65_536
_POLL = 50  # milliseconds
_CLOSE_TIMEOUT = 2.0


def classified(error: OSError) -> Exception:
    """What to raise for an error of a write: `Throttled`, `PermanentSendError`, or the error itself."""
    if error.errno in _NO_ROOM:
        return Throttled(f"standard output has no room: {error.strerror}")
    if error.errno == errno.EPIPE:
        return PermanentSendError("nobody reads standard output any more: broken pipe")
    return error


class _Writer:
    """Writes lines to a file descriptor, in a thread of its own; closes it at the end."""

    def __init__(self, descriptor: int, outbox: Outbox) -> None:
        self._descriptor = descriptor
        self._outbox = outbox
        self._job: Job | None = None
        self._position = 0
        self._rest = b""
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        # So much goes into a pipe without blocking once `poll` says that there is room.
        self._most = _FILE_WRITE if self._is_file else select.PIPE_BUF
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def run(self) -> None:
        """Write until the outbox is closed."""
        try:
            while not self._outbox.closed and (self._job is not None or self._outbox.wait()):
                if self._has_room():
                    self._write(self._gather())
            if self._job is not None:
                unwritten = range(self._position, len(self._job.messages))
                self._settle([(self._job, position) for position in unwritten], self._outbox.closed_error())
        finally:
            os.close(self._descriptor)

    def _has_room(self) -> bool:
        """Wait a little until it can be written to. A write that blocks could not be called off."""
        return self._is_file or bool(self._poll.poll(_POLL))

    def _gather(self) -> list[tuple[Job, int]]:
        """What is written next: at least one message, unless there is none any more."""
        gathered: list[tuple[Job, int]] = []
        size = len(self._rest)
        while (job := self._job or self._outbox.take()) is not None:
            self._job = job
            while self._position < len(job.messages) and not job.given_up:
                size += len(job.messages[self._position].payload) + 1
                if gathered and size > self._most:
                    return gathered
                gathered.append((job, self._position))
                self._position += 1
            self._job, self._position = None, 0
        return gathered

    def _write(self, gathered: list[tuple[Job, int]]) -> None:
        if not gathered:
            return
        lines = [job.messages[position].payload + b"\n" for job, position in gathered]
        data = b"".join([self._rest, *lines])
        written, error = self._write_all(memoryview(data))
        if error is None:
            confirmed, rest_ends = len(lines), written
        else:
            confirmed, rest_ends = cut(len(self._rest), [len(line) for line in lines], written)
        self._rest = data[written:rest_ends]
        self._settle(gathered[:confirmed], None)
        self._settle(gathered[confirmed:], error)

    def _write_all(self, data: memoryview) -> tuple[int, Exception | None]:
        """How many bytes were written, and why not all of them."""
        written = 0
        while written < len(data):
            if self._outbox.closed:
                return written, self._outbox.closed_error()
            try:
                if self._has_room():
                    written += os.write(self._descriptor, data[written : written + self._most])
            except BlockingIOError:
                pass  # somebody has made it non-blocking, and was quicker
            except OSError as error:
                return written, error
        return written, None

    def _settle(self, gathered: list[tuple[Job, int]], error: Exception | None) -> None:
        settle = self._outbox.settling.settle
        for job, position in gathered:
            if isinstance(error, OSError):
                settle(job.confirmation, position, caused_by(classified(error), error))
            else:
                settle(job.confirmation, position, error)


class StdoutBroker:
    """Writes a line for each message; `open_stdout` makes it."""

    native_delay = False

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def send(self, message: Message) -> None:
        """Write a message's line; returns once the system has taken all of it.

        Raises `Throttled` where there is no room, `PermanentSendError` where the reader is gone, and the
        `OSError` of the write for the rest.
        """
        await self._outbox.deliver_one(message)

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Write a line for each; returns once the system has taken all of them.

        Raises as `send` does, or `PartialSendError` where some were written.
        """
        await self._outbox.deliver_all(messages)

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Raise `DelayNotSupported`."""
        raise DelayNotSupported("stdout: has no delay of its own")


@asynccontextmanager
async def open_stdout(descriptor: int | None = None) -> AsyncIterator[StdoutBroker]:
    """Write to standard output, or to another file descriptor, for the length of an `async with` block.

    What is written bypasses `sys.stdout`: flush that first if it was used. The descriptor stays open.
    Raises `ConnectionError` where it is closed, or not open for writing.
    """
    outbox = Outbox("standard output was closed: the block that opened it has been left")
    thread = Thread("localdelay-stdout", _Writer(_duplicate(descriptor), outbox).run)
    try:
        yield StdoutBroker(outbox)
    finally:
        outbox.close()
        # It never waits for the reader for longer than _POLL, unless another process took the room.
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await thread.ended()


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
        raise ConnectionError(f"standard output can't be written to: {error.strerror}") from error
    return duplicate
