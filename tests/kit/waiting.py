"""What waits in tests on the real clock: a time limit around a test on asyncio, and until something is so."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any


def until(done: Callable[[], bool]) -> None:
    """Wait, in a thread, until this is so."""
    deadline = time.monotonic() + 100
    while not done():
        assert time.monotonic() < deadline, "it takes too long"
        threading.Event().wait(0.002)


def on_asyncio(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on an asyncio loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run
