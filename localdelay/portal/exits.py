"""What happens to queues that still run when the interpreter exits, or forks: nothing without a loud word."""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from typing import Protocol

from localdelay.logs import log
from localdelay.units import counted, format_size


class Running(Protocol):
    """A queue that runs in a thread of its own."""

    def pending(self) -> tuple[int, int]:
        """Messages, and their bytes."""

    def at_risk(self) -> tuple[int, int]:
        """The same for those that are in no journal."""

    def drain_on_exit(self) -> None:
        """Drain it, for as long as its user has allowed, if he has."""


_running: set[Running] = set()
"""Each operation on it is one step for all threads: no lock could be held where the process forks."""


def watch(queue: Running) -> None:
    """Look after a queue until it has ended."""
    _running.add(queue)


def leave(queue: Running) -> None:
    """It has ended."""
    _running.discard(queue)


@atexit.register
def _at_exit() -> None:
    for queue in list(_running):
        count, size = queue.pending()
        if not count:
            continue
        log(logging.WARNING, "the interpreter exits with %s pending", _told(count, size))
        with suppress(Exception):
            queue.drain_on_exit()
        count, size = queue.at_risk()
        if count:
            log(logging.ERROR, "the interpreter exits, and loses %s", _told(count, size))


def _told(count: int, size: int) -> str:
    return f"{counted(count, 'message')} ({format_size(size)})"


def _before_fork() -> None:
    for queue in list(_running):
        count, size = queue.pending()
        if count:
            line = "the process forks with %s pending: they stay with the parent"
            log(logging.WARNING, line, _told(count, size))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
