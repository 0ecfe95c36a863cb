"""Which kind of loop runs here, and which door of the library is for it."""

from __future__ import annotations

import sys

import trio

_TRIOS = "localdelay.open_delay_queue"
_ASYNCIOS = "localdelay.aio.open_delay_queue"
_NO_LOOP = (
    "none runs here: open it where one does (in an application's lifespan, not while a module is imported), "
    "or use localdelay.threads.open_delay_queue"
)


def is_asyncio() -> bool:
    """Whether an asyncio loop runs in this thread; a run of Trio's may be its guest."""
    asyncio = sys.modules.get("asyncio")  # who has not imported it runs no loop of it
    return asyncio is not None and asyncio._get_running_loop() is not None  # noqa: SLF001


def is_asyncio_task() -> bool:
    """Whether a task of asyncio's calls this, also where a run of Trio's is in the same thread."""
    return is_asyncio() and sys.modules["asyncio"].current_task() is not None


def is_trio_task() -> bool:
    """Whether a task of Trio's calls this."""
    # Of asyncio first: in its thread a run of Trio's may be a guest, or have left something behind.
    return not is_asyncio_task() and trio.lowlevel.in_trio_run() and trio.lowlevel.in_trio_task()


def check_trio(name: str) -> None:
    """Raise a `RuntimeError` that names the right door, unless a task of Trio's calls this."""
    if not is_trio_task():
        here = f"this is asyncio's: use {_ASYNCIOS}" if is_asyncio() else _NO_LOOP
        raise RuntimeError(f"{name} is for a loop of Trio's, and {here}")


def check_asyncio(name: str) -> None:
    """The same for asyncio."""
    if not is_asyncio():
        here = f"this is Trio's: use {_TRIOS}" if is_trio_task() else _NO_LOOP
        raise RuntimeError(f"{name} is for a loop of asyncio's, and {here}")


def check_threads() -> None:
    """Raise a `RuntimeError` that names the remedy where a queue can have no thread of its own."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, ("select", "threading", "queue"))):
        raise RuntimeError(
            "gevent has replaced what the queue's own thread needs: call gevent.monkey.patch_all("
            "select=False, thread=False, queue=False)"
        )
