"""Reading Trio's clock, and waiting until an instant on it, or until somebody calls.

Trio's own sleep has the resolution of epoll, a millisecond. Where the clock is Trio's own on Linux, a
timerfd wakes within a tenth of that. It does nothing but wake: what is due is decided by reading the clock.
The file descriptor becomes readable at the time that it was set to, and Trio waits for that as it does for
any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import trio

TimerKind: TypeAlias = Literal["auto", "trio"]

MERGED = 200e-6
"""Seconds: the precise timer wakes no sooner than this after it has woken last, unless its user says
otherwise. What comes due in between is sent with what comes due after it, which saves most of the wake-ups
of a busy queue."""

_LONGEST = 1e9  # seconds; who is woken early looks at the clock, and waits again


def clock_parts() -> tuple[Callable[[], float], float]:
    """A function and an offset; Trio's time is their sum, to the last bit.

    Trio's own clock is `time.perf_counter()` plus an offset that is fixed for the run. To read the two
    takes half as long as a call of the clock, and it is done for each message.
    """
    clock = trio.lowlevel.current_clock()
    if is_trios_own(clock) and isinstance(offset := getattr(clock, "offset", None), float):
        return time.perf_counter, offset
    return clock.current_time, 0.0


def is_trios_own(clock: trio.abc.Clock) -> bool:
    """Whether this is the clock that `trio.run` uses if it is not given another."""
    kind = type(clock)
    return kind.__name__ == "SystemClock" and kind.__module__.partition(".")[0] == "trio"


def open_timer(kind: TimerKind) -> Timer:
    """The precise timer where there is one and it may be used, else Trio's."""
    if kind == "auto" and is_trios_own(trio.lowlevel.current_clock()):
        with contextlib.suppress(OSError, AttributeError):  # out of descriptors, or an unusual C library
            return PreciseTimer()
    return Timer()


class Timer:
    """Trio's own deadlines: exact on a virtual clock, good to a millisecond on the system's.

    One task waits at a time. That it woke says nothing: what is due is decided by the clock.
    """

    __slots__ = ("_scope", "merged")

    def __init__(self) -> None:
        self.merged = 0.0
        """Seconds that it may wake late, to wake less often."""
        self._scope: trio.CancelScope | None = None

    async def sleep_until(self, when: float) -> None:
        """Return at `when` (seconds on Trio's clock; may be infinite), or earlier if `wake` is called."""
        with trio.CancelScope(deadline=when) as self._scope:
            await trio.sleep_forever()

    def wake(self) -> None:
        """End the wait of the sleeping task, if there is one."""
        if self._scope is not None:
            self._scope.cancel()

    def close(self) -> None:
        """Nobody is going to wait any more."""


class PreciseTimer(Timer):
    """A timerfd: good to a tenth of a millisecond. `OSError` where the system has no descriptor to give."""

    __slots__ = ("_descriptor", "_woke")

    def __init__(self) -> None:
        super().__init__()
        self._descriptor = _create()
        self._woke = -math.inf
        self.merged = MERGED

    async def sleep_until(self, when: float) -> None:
        """Return at `when`, up to `merged` later, or earlier if `wake` is called."""
        # Setting it also takes back that it was readable, so there is no need to read it.
        _set(self._descriptor, max(when, self._woke + self.merged) - trio.current_time())
        # A scope, and not a timer that is set to now: the waiting must end before somebody else may wait.
        with trio.CancelScope() as self._scope:
            await trio.lowlevel.wait_readable(self._descriptor)
        self._woke = trio.current_time()

    def close(self) -> None:
        """Give the descriptor back to the system."""
        trio.lowlevel.notify_closing(self._descriptor)
        os.close(self._descriptor)


def _nanoseconds(wait: float) -> int:
    """What to set a timer to: 0 would be never, which is right for an infinite wait only."""
    return 0 if wait == math.inf else max(1, math.ceil(min(wait, _LONGEST) * 1e9))


if sys.version_info >= (3, 13) and sys.platform == "linux":

    def _create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

    def _set(descriptor: int, wait: float) -> None:
        os.timerfd_settime_ns(descriptor, initial=_nanoseconds(wait))

elif sys.platform == "linux":
    _Itimerspec = ctypes.c_long * 4  # interval and first expiry, in seconds and nanoseconds each

    @functools.cache
    def _library() -> ctypes.PyDLL:
        # Keeps the interpreter meanwhile: it takes a microsecond to set a timer, and milliseconds to get the
        # interpreter back from a thread that has work to do.
        return ctypes.PyDLL(None, use_errno=True)

    def _create() -> int:
        descriptor = _library().timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        return int(descriptor)

    def _set(descriptor: int, wait: float) -> None:
        setting = _Itimerspec(0, 0, *divmod(_nanoseconds(wait), 10**9))
        if _library().timerfd_settime(descriptor, 0, setting, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

else:

    def _create() -> int:
        raise OSError(errno.ENOSYS, "there is no timerfd but on Linux")

    def _set(descriptor: int, wait: float) -> None:
        raise OSError(errno.ENOSYS, "there is no timerfd but on Linux")
