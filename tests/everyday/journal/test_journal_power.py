"""The journal after the loss of power: what was not synced is not there, or only a part of it is."""

from __future__ import annotations

import gc
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from localdelay import SqliteJournal
from localdelay.journal.record import Record
from tests.kit.journal_copies import Reader
from tests.kit.journal_power import watched_power


def record(key: int) -> Record:
    return Record(key, float(key), 1, f"m{key}", None, b"%d" % key * 300)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_kept_durably_survives_the_loss_of_power(tmp_path: Path, seed: int) -> None:
    """Each such commit is there with what was synced; what else is there is what a later one has written."""
    rng, read = random.Random(seed), Reader()
    with (
        watched_power(tmp_path / "journal") as power,
        closing(SqliteJournal(tmp_path / "journal")) as journal,
    ):
        journal.open()
        assert journal._connection is not None
        journal._connection.execute("PRAGMA wal_autocheckpoint = 8")  # pages, so that it happens
        power.begin()
        rows: dict[int, Record] = {}
        possible: list[list[Record]] = [[]]
        for commit in range(60):
            durable = rng.random() < 0.5
            made = [record(10 * commit + number) for number in range(rng.randint(1, 5))] if durable else []
            gone = rng.sample([*rows], len(rows) // 3)
            before = power.syncs.copy()
            journal.write(made, gone, durable=durable)
            rows = {key: row for key, row in rows.items() if key not in gone} | {row.key: row for row in made}
            possible = [*([] if durable else possible), list(rows.values())]
            assert (power.syncs != before) >= durable
            for by_chance in (None, None, rng, rng):
                assert read(power.after_loss(by_chance)) in possible
    assert power.syncs["journal"] > 3, "the log went to the database meanwhile"


@pytest.mark.parametrize(
    ("durability", "durable", "synced"), [("fsync", True, True), ("fsync", False, False), ("os", True, False)]
)
def test_a_commit_is_synced_where_that_was_asked_for(
    tmp_path: Path, durability: Literal["fsync", "os"], durable: bool, synced: bool
) -> None:
    """Once, and nowhere else: it is what a commit costs."""
    journal = SqliteJournal(tmp_path / "journal", durability)
    with watched_power(journal.path) as power, closing(journal):
        journal.open()
        journal.write([record(1)], [], durable=True)  # the first one makes the log
        for key in range(2, 12):
            power.begin()
            journal.write([record(key)], [key - 1], durable=durable)
            assert power.syncs == ({"journal-wal": 1} if synced else {})


def test_a_connection_may_outlive_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on as before, and all of its files are beside the database: none where the tests run."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with watched_power(tmp_path / "journal") as power:
        connection = sqlite3.connect(tmp_path / "journal", isolation_level=None)
    gc.collect()
    with closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        made = {file.name for file in tmp_path.iterdir()}
        assert made == {"elsewhere", "journal", "journal-wal", "journal-shm"}
    assert power.syncs["journal"]
    assert not list(Path().iterdir())
