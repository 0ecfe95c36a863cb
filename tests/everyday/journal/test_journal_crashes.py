"""The journal after a crash at any moment.

A crash is a copy of the files: of what they are between two steps of the program, between two statements of
the committing thread, or between two writes of one statement. What is in each copy is compared with what had
been promised by then. LOCALDELAY_FUZZ_EXAMPLES multiplies the examples, which are then others in each run.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

import localdelay.journal.commits
import localdelay.journal.sqlite
import localdelay.queue.admission
from localdelay import Message, RetryPolicy, SqliteJournal, open_delay_queue
from localdelay.journal.record import Record
from tests.kit.journal_copies import (
    EPOCH,
    TICK,
    Conserved,
    Files,
    Reader,
    Spy,
    fuzzed,
    lay,
)
from tests.kit.journal_life import (
    Life,
    Part,
    run,
)
from tests.kit.journals import Gated, content_of, until

_outcomes = st.sampled_from(["slow", "fail", "throttled", "permanent", "hang"])
_puts = st.tuples(
    st.sampled_from(["put", "put", "put_nowait"]),
    st.sampled_from([1, 1, 1, 2, 5]),
    st.integers(0, 12).map(lambda ticks: ticks * TICK),
    st.sampled_from([0, 1, 2, 3, 100, 5000]),
    st.one_of(st.just(()), st.lists(_outcomes, max_size=3).map(tuple)),
    st.booleans(),
)
_steps = st.one_of(
    *[_puts] * 6,
    *[st.tuples(st.just("pass"), st.integers(1, 4))] * 2,
    st.tuples(st.sampled_from(["rest", "rest", "breathe"])),
    st.tuples(st.just("flush"), st.booleans()),
    st.tuples(st.sampled_from(["cancel", "cancel", "give_up"]), st.integers(0, 30)),
    st.tuples(st.just("give"), st.integers(0, 30), st.sampled_from(["takes", "slow", "fails"])),
    st.tuples(st.just("disk"), st.sampled_from([None, None, None, "refuses", "half", "full", "all"])),
    st.tuples(st.just("step"), st.sampled_from([60.0, -60.0, -1.0])),
    st.tuples(st.just("pause"), st.booleans()),
)
parts = st.builds(
    Part,
    capacity=st.integers(2, 12),
    workers=st.integers(1, 3),
    batches=st.sampled_from([False, False, True]),
    attempts=st.sampled_from([None, None, 2]),
    hook=st.sampled_from([None, "takes", "slow", "raises"]),
    durability=st.sampled_from(["os", "fsync"]),
    gap=st.sampled_from([0.0, 1.0, 2.0, 60.0, -60.0]),
    rate=st.sampled_from([None, None, 4.0]),
    steps=st.tuples(st.lists(_puts, min_size=2, max_size=2), st.lists(_steps, min_size=15, max_size=15)).map(
        lambda steps: [*steps[0], *steps[1]]
    ),
    ending=st.sampled_from(["leave", "drain", "drain", "exception", "cancelled"]),
    grace=st.sampled_from([0.0, TICK, 1.0]),
    hand_back=st.sampled_from([None, "takes", "slow", "fails"]),
    moment=st.floats(0, 1),
)


@fuzzed(50)
@given(lives=st.tuples(parts, parts), seed=st.integers(0, 2**32))
def test_a_crash_at_any_moment(conserved: Conserved, lives: tuple[Part, Part], seed: int) -> None:
    """Nothing promised is missing, nothing finished or refused is back, and all of it is what it was."""
    read = Reader()
    held: list[Record] = []
    files: Files | None = None
    wall = EPOCH
    for part in lives:
        wall += part.gap
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "journal"
            if files is not None:
                lay(Path(directory), files)
            life = Life(part, path, seed, held, wall, conserved)
            run(life.play, lambda life=life: life.offset + trio.current_time())  # type: ignore[misc]
        for seen in life.journal.seen:
            records = read(seen.files)
            found = {record.payload: record for record in records}
            assert len(found) == len(records)
            assert set(found) <= set(life.stories)
            for story in life.stories.values():
                story.check(found.get(story.payload), seen)
            if seen.instead:
                assert records in [read(files) for files in seen.instead], "half of a commit"
        seen = life.journal.seen[round(part.moment * (len(life.journal.seen) - 1))]
        held, files = read(seen.files), seen.files
    arrived: list[Message] = []

    async def send(message: Message) -> None:
        arrived.append(message)
        assert wall + trio.current_time() >= due[message.id]

    async def recover() -> None:
        with tempfile.TemporaryDirectory() as directory:
            journal = SqliteJournal(lay(Path(directory), cast(Files, files)))
            async with open_delay_queue(send, capacity=1, workers=2, journal=journal) as queue:
                pass
            assert conserved(queue).accepted == conserved(queue).sent == len(due)
            assert journal.read() == [record for record in held if record.dead is not None]

    due = {record.id: record.due for record in held if record.dead is None}
    run(recover, lambda: wall + trio.current_time())
    assert sorted(message.id for message in arrived) == sorted(due)


class Noting(SqliteJournal):
    """Lays a copy of its directory down at every statement."""

    copies: list[dict[str, bytes]]

    def _connect(self, mode: str, path: Path | None = None) -> sqlite3.Connection:
        return cast(sqlite3.Connection, Spy(super()._connect(mode, path), self))

    @contextmanager
    def around(self) -> Iterator[None]:
        yield
        self.copies.append(content_of(self.path.parent))


def test_a_crash_while_it_is_made(tmp_path: Path) -> None:
    """Whatever is left of a journal that was not ready yet is in no one's way."""
    journal = Noting(tmp_path / "journal")
    journal.copies = []
    journal.open()
    journal.close()
    assert sum("journal-new" in copy for copy in journal.copies) > 5
    for copy in journal.copies:
        with tempfile.TemporaryDirectory() as directory:
            for name, content in copy.items():
                (Path(directory) / name).write_bytes(content)
            again = SqliteJournal(Path(directory) / "journal")
            assert again.open() == []
            again.write([Record(1, 2.0, 3, "four", None, b"five")], [], durable=True)
            again.close()
            assert again.read() == [Record(1, 2.0, 3, "four", None, b"five")]
            assert [*content_of(Path(directory))] == ["journal"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("changes", [False, True])
async def test_what_is_cancelled_while_it_is_written(
    conserved: Conserved, fails: bool, changes: bool
) -> None:
    """However that write ends, and whatever else there was to write of it, it does not come back."""
    disk = Gated(fails=fails)

    async def send(_: Message) -> None:
        raise OSError

    retry = RetryPolicy(wait_initial=100.0, wait_max=100.0)
    async with open_delay_queue(send, capacity=1, workers=1, journal=disk, retry=retry) as queue:
        message = queue.put_nowait(b"", delay=0.05 if changes else 100.0)
        await until(lambda: disk.begun.is_set() and (not changes or queue.statistics().retrying))
        assert queue.cancel(message.id)
        disk.gate.set()
        await queue.flush()
        assert disk.rows == {}
    assert conserved(queue).cancelled == 1


async def test_what_could_not_be_written_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, though nothing else happens."""
    monkeypatch.setattr(localdelay.journal.commits, "RETRY_EVERY", 0.001)
    disk = Gated(fails=True)
    disk.gate.set()

    async def send(_: Message) -> None:
        pass

    async with open_delay_queue(send, capacity=1, workers=1, journal=disk) as queue:
        queue.put_nowait(b"", delay=100.0, id="a")
        await until(lambda: disk.ids == ["a"] and not queue.statistics().at_risk)
        assert queue.statistics().journal_failures == 1
        await queue.drain(0.0)
