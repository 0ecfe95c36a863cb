"""What a forked child must know: the queues that were opened before it are its parent's.

Their threads are missing in the child, and what is pending there is pending in the parent, which sends it.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

from .errors import QueueClosed

TOLD: Final = (
    "this is a forked child, and the queue is with its parent: open one in each process, after the fork (in "
    "gunicorn's post_fork, on Celery's worker_process_init, in the application's lifespan under uvicorn)"
)
count = 0
"""Forks that this process has come from, since this was imported in the first."""


class Forgets(Protocol):
    """What is to know of it when this process becomes a forked child."""

    def forget(self) -> None:
        """From here on this is its child: in the thread that has forked, the only one that there is."""


_told: weakref.WeakSet[Forgets] = weakref.WeakSet()


def tell(one: Forgets) -> None:
    """Have this one told in each child, as long as it lives."""
    _told.add(one)


def not_ours() -> QueueClosed:
    """What to raise in the child."""
    return QueueClosed(TOLD)


def _in_child() -> None:
    global count  # noqa: PLW0603 (what was made before it is the parent's)
    count += 1
    for one in list(_told):
        one.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
