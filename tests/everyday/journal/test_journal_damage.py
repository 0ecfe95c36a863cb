"""A journal that is torn at any byte, and damaged anywhere."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localdelay import JournalError, SqliteJournal
from localdelay.journal.record import Record
from tests.kit.fuzzing import fuzzed
from tests.kit.journal_copies import EPOCH, Files, Reader, files_of, lay
from tests.kit.journals import content_of


@attrs.frozen
class Written:
    """A journal's files, and what it held after each commit that is in the log; all of them to begin with."""

    files: Files
    states: list[tuple[int, list[Record]]]
    """(bytes of the log, what is kept); the first is that of the database."""


def written(seed: int, commits: int, *, in_database: int) -> Written:
    """A journal that was killed after so many commits, the first of which had gone to the database."""
    rng = random.Random(seed)
    rows: dict[int, Record] = {}
    states: list[tuple[int, list[Record]]] = []
    with tempfile.TemporaryDirectory() as directory:
        journal = SqliteJournal(Path(directory) / "journal", "os")
        for commit in range(commits + 1):
            if commit in (0, in_database):
                journal.close()
                journal.open()
                assert journal._connection is not None
                journal._connection.execute("PRAGMA wal_autocheckpoint = 0")
                states = [(0, list(rows.values()))]
            if commit == commits:
                break
            keys = range(100 * commit + 1, 100 * commit + 1 + rng.choice([1, 3, 30]))
            made = {key: _made(rng, key) for key in keys}
            made |= {key: rows[key]._replace(attempt=9) for key in rng.sample([*rows], len(rows) // 5)}
            gone = rng.sample([*rows], len(rows) // 3)
            sending = set(rng.sample([*rows, *made], 2)) if len(rows) > 1 else set()
            journal.write([*made.values()], gone, sending, durable=True)
            rows = {
                key: row._replace(sending=key in sending)
                for key, row in sorted((rows | made).items())
                if key not in gone
            }
            states.append((Path(f"{journal.path}-wal").stat().st_size, list(rows.values())))
        files = files_of(journal.path)
        journal.close()
    return Written(files, states)


def _made(rng: random.Random, key: int) -> Record:
    payload = rng.randbytes(rng.choice([0, 5, 200, 200, 3000, 20000]))
    headers = {"kind": f"ä{key}"} if key % 3 else None
    dead = "dead" if key % 7 == 0 else None
    terms = (key / 8 if key % 5 == 0 else None, EPOCH if key % 4 == 0 else None)
    return Record(key, EPOCH + key / 4, 1 + key % 4, f"id {key}", headers, payload, dead, *terms)


TORN = written(1, 14, in_database=5)
DAMAGED = [TORN, written(2, 12, in_database=12), written(3, 3, in_database=0), written(4, 40, in_database=38)]


@fuzzed(100)
@given(
    where=st.floats(0, 1),
    how=st.sampled_from(["cut off", "zeros", "noise", "one bit"]),
    seed=st.integers(0, 2**32),
)
def test_a_log_that_is_torn_or_damaged_ends_there(where: float, how: str, seed: int) -> None:
    """What it holds is what was there after the last commit before: damage in the middle makes it shorter."""
    database, log = TORN.files
    cut = min(round(where * len(log)), len(log) - (how != "cut off"))
    rest = log[cut:]
    changed = {
        "cut off": b"",
        "zeros": bytes(len(rest)),
        "noise": random.Random(seed).randbytes(len(rest)),
        "one bit": bytes([rest[0] ^ 1 << seed % 8]) + rest[1:] if rest else b"",
    }[how]
    first = cut + next(
        (i for i, (old, new) in enumerate(zip(rest, changed, strict=False)) if old != new), len(changed)
    )
    expected = next(rows for size, rows in reversed(TORN.states) if size <= first)
    assert Reader()((database, log[:cut] + changed)) == expected


def _page(data: bytearray, pick: int) -> slice:
    start = pick % max(1, len(data) // 4096) * 4096
    return slice(start, start + 4096)


def _damage(data: bytearray, kind: str, at: int, size: int, other: int) -> None:
    rng = random.Random(other)
    here = slice(at % (len(data) + 1), at % (len(data) + 1) + size)
    page, another = _page(data, at), _page(data, other)
    if kind == "bits":
        for position in range(here.start, min(here.start + 1 + size // 100, len(data))):
            data[position] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[here] = rng.randbytes(len(data[here]))
    elif kind == "zeros":
        data[here] = bytes(len(data[here]))
    elif kind == "insert":
        data[here.start : here.start] = rng.randbytes(size)
    elif kind == "delete":
        del data[here]
    elif kind == "truncate":
        del data[here.start :]
    elif kind == "head" and len(data) > page.start + at % 40:
        data[page.start + at % 40] = rng.choice([0, 1, 2, 5, 10, 13, 255, rng.randrange(256)])
    elif kind == "zero page":
        data[page] = bytes(len(data[page]))
    elif kind == "copy page":
        data[page] = data[another]
    elif kind == "swap pages":
        data[page], data[another] = data[another], data[page]
    elif kind == "insert page":
        data[page.start : page.start] = data[another]
    elif kind == "delete page":
        del data[page]


_KINDS = ["bits", "bytes", "zeros", "insert", "delete", "truncate", "head", "head"]
_KINDS += [f"{kind} page" for kind in ("zero", "copy", "insert", "delete")] + ["swap pages"]
_damages = st.tuples(
    st.sampled_from(_KINDS), st.integers(0, 2**20), st.integers(1, 500), st.integers(0, 2**20)
)


@fuzzed(350)
@given(
    which=st.integers(0, len(DAMAGED) - 1),
    in_log=st.sampled_from([False, False, False, True]),
    damages=st.lists(_damages, min_size=1, max_size=3),
)
def test_a_damaged_file_is_refused_or_does_not_matter(
    which: int, in_log: bool, damages: list[tuple[str, int, int, int]]
) -> None:
    """With one line that names it, and left as it was; or else it holds exactly what was written."""
    journal = DAMAGED[which]
    data = bytearray(journal.files[in_log])
    for damage in damages:
        _damage(data, *damage)
    files = (journal.files[0], bytes(data)) if in_log else (bytes(data), journal.files[1])
    states = [rows for _, rows in journal.states] if in_log else [journal.states[-1][1]]
    with tempfile.TemporaryDirectory() as directory:
        damaged = SqliteJournal(lay(Path(directory), files))
        Path(f"{damaged.path}-reserve").write_bytes(b"as it is beside every journal")
        before = content_of(Path(directory))
        try:
            held = damaged.open()
        except JournalError as error:
            assert str(damaged.path) in str(error)
            assert str(error).isprintable()
            assert content_of(Path(directory)) == before
            return
        assert held in states
        new = Record(10**6, 1.0, 1, "new", None, b"new")
        damaged.write([new], [row[0] for row in held[:2]], durable=True)
        damaged.close()
        assert damaged.read() == [*held[2:], new]


_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=9),
    st.binary(max_size=30),
    st.binary(max_size=9).map(lambda raw: (raw, "TEXT")),  # mostly no UTF-8
)
_COLUMNS = ["due", "attempt", "id", "headers", "payload", "dead", "checksum", "expires", "at", "keys"]


@fuzzed(300)
@given(column=st.sampled_from([*_COLUMNS, "keys"]), value=_VALUES, row=st.integers(1, 5))
@example(column="keys", value=1.5, row=1)
@example(column="expires", value="", row=5)
@example(column="id", value=(b"a\xffb", "TEXT"), row=2)
def test_any_value_in_any_column(column: str, value: Any, row: int) -> None:
    """It is refused with the remedy, which takes all other messages and names what it leaves."""
    records = [_made(random.Random(key), key)._replace(sending=key in (2, 3)) for key in range(1, 5)]
    records.append(Record(5, EPOCH, 1, "id 5", None, b"", None, 0.0, 0.0))
    with tempfile.TemporaryDirectory() as directory:
        journal = SqliteJournal(Path(directory) / "journal", "os")
        with closing(journal):
            journal.open()
            journal.write(records, [], {2, 3}, durable=True)
        with closing(sqlite3.connect(journal.path)) as database:
            new, kind = value if isinstance(value, tuple) else (value, "")
            what = f"CAST(? AS {kind})" if kind else "?"
            table, where = ("sending", "1") if column == "keys" else ("messages", f"key = {row}")
            try:
                database.execute(f"UPDATE {table} SET {column} = {what} WHERE {where}", (new,))
            except sqlite3.IntegrityError:  # NOT NULL
                return
            database.commit()
        try:
            assert journal.read() == records  # it was that before
        except JournalError as error:
            said = str(error)
        else:
            return
        assert f"journal salvage {journal.path} --to NEW` takes what is sound" in said
        assert said.isprintable()
        found, lost = journal.salvage()
    if column == "keys":
        assert found == [record._replace(sending=False) for record in records]
        assert lost == ["what was being sent is damaged"]
    else:
        assert found == [record for record in records if record.key != row]
        assert lost == [f"row {row} is damaged"]


def test_what_was_being_sent_is_named_row_by_row(tmp_path: Path) -> None:
    """A row of it that is damaged hides none of the others; a table that is not there is named."""
    path = tmp_path / "journal"
    with closing(SqliteJournal(path)) as journal:
        journal.open()
        records = [_made(random.Random(key), key) for key in (1, 2)]
        journal.write(records, [], {2}, durable=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO sending VALUES (-1, CAST(x'ff' AS TEXT))")
        database.commit()
        found, lost = SqliteJournal(path).salvage()
        assert [record.sending for record in found] == [False, True]
        assert lost == ["what was being sent is damaged"]
        database.execute("DROP TABLE sending")
        database.commit()
    found, lost = SqliteJournal(path).salvage()
    assert (found, lost) == (records, ["what was being sent can't be read"])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("content", [None, b""])
def test_a_database_that_is_gone(tmp_path: Path, content: bytes | None, log: bool) -> None:
    """With a log beside it, it is not begun anew; neither is one that is empty, where a journal was."""
    path = lay(tmp_path, (b"", TORN.files[1] if log else b""))
    (tmp_path / "journal-reserve").write_bytes(bytes(100))
    if content is None:
        path.unlink()
    before = content_of(tmp_path)
    if content is None and not log:
        with closing(SqliteJournal(path)) as journal:
            assert journal.open() == []
        return
    with pytest.raises(JournalError, match="damaged"):
        SqliteJournal(path).open()
    assert content_of(tmp_path) == before
