"""`SqliteJournal.first_free`: a journal for each of several workers, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from localdelay import JournalError, SqliteJournal

WORKER = """
import sys
from localdelay import SqliteJournal, threads

print("ready", flush=True)
sys.stdin.readline()
journal = SqliteJournal.first_free(sys.argv[1], durability="os")
with threads.open_delay_queue(print, capacity=9, workers=1, journal=journal) as queue:
    print(journal.path.name, queue.statistics().recovered, flush=True)
    queue.put(b"x", delay=600.0)
    print("put", flush=True)
    sys.stdin.readline()
    queue.drain(0.0)
"""

Worker = subprocess.Popen[str]


@contextmanager
def worker(pattern: Path) -> Iterator[Worker]:
    """A process that waits for a line before it opens its queue, and is killed at the end."""
    command = [sys.executable, "-c", WORKER, str(pattern)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


def said(process: Worker) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(*processes: Worker) -> list[list[str]]:
    """All at once: the file that each has got, and how many messages were in it."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    got = [said(process).split() for process in processes]
    assert [said(process) for process in processes] == ["put"] * len(processes)
    return got


def test_workers_that_start_at_once_get_one_each(tmp_path: Path) -> None:
    """No two get the same, none is left out; and who comes after one was killed has what that one left."""
    pattern = tmp_path / "orders-{}.journal"
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(pattern)) for _ in range(4)]
        late = stack.enter_context(worker(pattern))
        got = go(*workers)
        assert sorted(got) == [[f"orders-{number}.journal", "0"] for number in range(4)]
        dead = got.index(["orders-2.journal", "0"])
        workers[dead].kill()
        workers[dead].wait()
        assert go(late) == [["orders-2.journal", "1"]]


def test_the_first_is_chosen_when_it_is_opened(tmp_path: Path) -> None:
    """Not when it is made: what is free then counts; and again, where it is opened again."""
    pattern = tmp_path / "a-{}.journal"
    first, second, third = (SqliteJournal.first_free(pattern) for _ in range(3))
    assert not list(tmp_path.iterdir())
    first.open()
    second.open()
    assert [journal.path.name for journal in (first, second)] == ["a-0.journal", "a-1.journal"]
    first.close()
    third.open()
    assert third.path.name == "a-0.journal"
    first.open()
    assert first.path.name == "a-2.journal"
    for journal in (first, second, third):
        journal.close()


def test_a_damaged_one_is_no_free_one(tmp_path: Path) -> None:
    """It is told of, and not passed over: messages are in it."""
    (tmp_path / "a-0.journal").write_bytes(b"no journal")
    with pytest.raises(JournalError, match=r"a-0\.journal is not a journal"):
        SqliteJournal.first_free(tmp_path / "a-{}.journal").open()


@pytest.mark.parametrize("make", [lambda: "orders.journal", lambda: "{}-{}", lambda: Path("orders")])
def test_a_pattern_without_a_place(make: Callable[[], str]) -> None:
    """One place for the number, no more and no less."""
    with pytest.raises(ValueError, match="pattern must have one"):
        SqliteJournal.first_free(make())
