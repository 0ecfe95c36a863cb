"""Reading a descriptor, so that it can be stopped at any time and nothing that was read is lost."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections import deque
from typing import Protocol

import trio

from localdelay.errors import LocalDelayError

_CHUNK = 65_536
_FILE_CHUNK = 262_144
"""A read of a file takes a hop to a thread and back, which is to be worth it."""
_MOST_AT_A_STOP = 4_000_000


class InputError(LocalDelayError):
    """There is nothing to read from."""


class Source(Protocol):
    """Where bytes come from."""

    keeps: bool
    """Whether what was not read is still there afterwards, as it is in a file."""

    async def read(self) -> bytes:
        """The next bytes; none at the end. What a cancellation keeps from being returned, `stop` has."""

    def stop(self) -> tuple[bytes, bool]:
        """Read no more: what was not returned yet, and whether the input ends with it."""


class Descriptor:
    """A file, a pipe, a socket, a terminal or a device. Raises `InputError` where it is none to read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._arrived: deque[bytes] = deque()
        import fcntl  # not at the top: Windows has none, and reads this module for what else there is

        try:
            mode = os.fstat(descriptor).st_mode
            access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            raise InputError("it is closed") from None
        if access == os.O_WRONLY:
            raise InputError("it is not open for reading")
        if stat.S_ISDIR(mode):
            raise InputError("it is a directory")
        self.keeps = stat.S_ISREG(mode)
        self._is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        # Trio can't wait for files and for devices like /dev/zero: these have something at any time.
        self._can_wait = self._is_pipe or os.isatty(descriptor)

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises `OSError` where it can't be read."""
        if not self._can_wait:
            await trio.to_thread.run_sync(self._read_in_thread, abandon_on_cancel=True)
            return self._arrived.popleft()
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            chunk = self._read_now()
            if chunk is not None:
                return chunk

    def stop(self) -> tuple[bytes, bool]:
        """Read no more, but what is in the pipe by now; close it, so that who writes gets to know.

        What is written between the last read and the closing, a few microseconds, is lost, as it is with
        every reader that leaves a pipe.
        """
        ended = False
        if self._is_pipe:
            self._is_pipe = False
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                ended = self._empty()
                os.dup2(nothing, self._descriptor)  # and not closed: its number must not be another file's
            finally:
                os.close(nothing)
        rest = b"".join(self._arrived)
        self._arrived.clear()
        return rest, ended

    def _empty(self) -> bool:
        """Read what is there. Returns whether that was the end."""
        size = 0
        with contextlib.suppress(OSError):
            while size < _MOST_AT_A_STOP and (chunk := self._read_now()) is not None:
                if not chunk:
                    return True
                self._arrived.append(chunk)
                size += len(chunk)
        return False

    def _read_now(self) -> bytes | None:
        """What is there; None where there is nothing. It never blocks: another process may read here too."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if not poll.poll(0):
            return None
        try:
            return os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return None

    def _read_in_thread(self) -> None:
        self._arrived.append(os.read(self._descriptor, _FILE_CHUNK))
