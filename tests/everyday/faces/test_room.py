"""The room of a queue that other threads put into: never one message too many, whatever comes in between."""

from __future__ import annotations

import queue as queues
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from localdelay import QueueFull, SqliteJournal, threads

LOOKED_AT = ("ledger.py", "admission.py", "intake.py")


class Intruder:
    """Tries, from a thread of its own, to put between any two lines that the loop's thread runs."""

    def __init__(self) -> None:
        self.queue: threads.DelayQueue
        self.tries = 0
        self.accepted = 0
        self._begun: queues.SimpleQueue[bool] = queues.SimpleQueue()
        self._done: queues.SimpleQueue[None] = queues.SimpleQueue()
        self.is_at_work = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """New threads are watched: the queue is to be opened in this block."""
        thread = threading.Thread(target=self._work)
        thread.start()
        threading.settrace(self._trace)
        try:
            yield
        finally:
            threading.settrace(None)  # type: ignore[arg-type]  # typeshed wants a function
            self._begun.put(False)
            thread.join()

    def _work(self) -> None:
        while self._begun.get():
            lock = self.queue.remote.intake.lock
            if lock.acquire(
                blocking=False
            ):  # else the loop's thread holds it, and nobody could come in between
                try:
                    self.tries += 1
                    self.queue.put_nowait(b"too many", delay=60.0)
                    self.accepted += 1
                except QueueFull:
                    pass
                finally:
                    lock.release()
            self._done.put(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not self.is_at_work or threading.get_ident() != self.queue.remote._thread.ident:
            return None
        if event == "line":
            self._begun.put(True)
            self._done.get()
        return self._trace if frame.f_code.co_filename.endswith(LOOKED_AT) else None


@pytest.mark.skipif(sys.gettrace() is not None, reason="the test traces, and so does somebody else")
@pytest.mark.parametrize("has_journal", [False, True])
def test_no_room_is_seen_that_is_not_there(has_journal: bool, tmp_path: Path) -> None:
    """From when a put is accepted on, through its arrival and its commit, its room is taken at every step."""
    intruder = Intruder()
    journal = SqliteJournal(tmp_path / "journal") if has_journal else None
    with intruder.at_work():
        with threads.open_delay_queue(
            lambda message: None, capacity=1, workers=1, journal=journal
        ) as intruder.queue:
            queue = intruder.queue
            intruder.is_at_work = True
            message = queue.put(b"", delay=60.0)
            assert queue.is_pending(message.id)
            intruder.is_at_work = False
            assert queue.statistics().pending == 1
            queue.cancel(message.id)
    assert intruder.tries > 5
    assert intruder.accepted == 0
