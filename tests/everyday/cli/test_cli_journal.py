"""`localdelay journal`: what it shows, what the relay makes of its lines, what it removes."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from localdelay import SqliteJournal
from localdelay.cli.journal import Looked, message_rows, report
from localdelay.cli.output import laid_out
from localdelay.journal.contents import contents
from localdelay.journal.record import Record
from localdelay.relay.lines import json_lines, of_journal
from tests.kit.commands import FULL, run, told
from tests.kit.journal_files import NOW, filled, held, made, record


def journal(*args: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    result = run("journal", *args, input=given)
    return subprocess.CompletedProcess(args, result.exit_code, result.stdout_bytes, result.stderr_bytes)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return filled(tmp_path / "journal")


def files(path: Path, besides: str = "-nothing") -> dict[str, bytes]:
    names = [found for found in path.iterdir() if found.is_file() and not found.name.endswith(besides)]
    return {found.name: found.read_bytes() for found in names}


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    with closing(SqliteJournal(path)) as other:
        other.open()
        yield


def test_a_line_is_the_relays() -> None:
    """What the relay makes of it is the message, and its due time to the microsecond, rounded up."""
    for number in range(200):
        due = NOW + number * 12_345.678_901_2
        payload, options = json_lines(None)(of_journal(record(1, due, b"\xff"), NOW).rstrip(b"\n"))
        assert payload == b"\xff"
        assert options["id"] == "m1"
        # A float of today's Unix time has steps of a quarter of a microsecond.
        assert 0 <= options["at"].timestamp() - due + math.ulp(due) < 1.5e-6


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
def test_show(full: Path) -> None:
    """All figures are in a table of 80 columns; no payload is, and nothing that a terminal obeys."""
    before = files(full.parent, "-lock")
    process = journal("show", full)
    assert (process.returncode, told(process)) == (0, [])
    text = process.stdout.decode()
    assert max(map(len, text.splitlines())) <= max(79, len(f"Journal {full}"))
    assert "secret" not in text
    assert "\x1b" not in text
    rows = [" ".join(row.split()) for row in text.splitlines()]
    assert rows[0] == f"Journal {full}"
    assert rows[1].startswith("version 2, ")
    assert "pending 4 22" in rows  # 3 x 6 and 2 of payload, 2 of headers
    assert {"overdue 1 8", "within a minute 1 6", "within an hour 1 6", "later 1 2"} <= set(rows)
    assert "dead letters 3 18" in rows
    assert any(re.fullmatch(r"oldest due .* \+0\d00 \(CES?T\), (6|7|8)\d s ago", row) for row in rows)
    assert any(
        re.fullmatch(r"newest due .* \+0\d00 \(CES?T\), in (119|120) min|newest .*, in 2 h", row)
        for row in rows
    )
    assert "tried before 1, the most before attempt 3" in rows
    assert rows[-2:] == ["2 PermanentSendError('refused')", "1 ValueError('\ufffd[31m')"]
    assert files(full.parent, "-lock") == before


@pytest.mark.usefixtures("in_berlin")
def test_times_are_local(tmp_path: Path) -> None:
    """They come with the zone that is in force on that day."""
    path = made(tmp_path / "j", record(1, 1_700_000_000.0), record(2, 1_720_000_000.0))
    text = journal("show", path).stdout.decode()
    assert "oldest due    2023-11-14 23:13:20 +0100 (CET)" in text
    assert "newest due    2024-07-03 11:46:40 +0200 (CEST)" in text


def test_show_the_messages(full: Path) -> None:
    """They come as they are due, dead letters among them, and what is left out is told."""
    process = journal("show", full, "--messages", "--limit", "5")
    assert process.returncode == 0
    head, *rows, more = process.stdout.decode().splitlines()[-7:]
    assert head.split() == ["id", "due", "attempt", "bytes", "given", "up", "for"]
    assert [row.split()[0] for row in rows] == ["m5", "m6", "m7", "tried", "m2"]
    assert rows[0].endswith("1          6  PermanentSendError('refused')")
    assert rows[3].split()[-2:] == ["3", "8"]
    assert more == "and 2 more"


def test_rows_of_messages() -> None:
    """They are no wider than the terminal; what no calendar has is no reason to fail."""
    rows = list(message_rows([record(1, 1e300), record(2, dead="E" * 200)], 79))
    assert max(map(len, rows)) == 79
    assert rows[1].split()[1:5] == ["outside", "of", "the", "calendar"]
    assert rows[2].endswith("E…")
    assert list(message_rows([record(2, dead="E" * 200)], None))[1].endswith("E" * 200)


@pytest.mark.usefixtures("in_berlin")
def test_on_a_narrow_terminal_nothing_is_wider() -> None:
    """At 40 columns a message has lines of its own, and no figure is missing."""
    records = [record(1), record(2, dead="E" * 50), Record(3, NOW + 60, 3, "m3", None, b"", None)]
    looked = Looked(path=Path("j"), version=2, disk_bytes=1, now=NOW, contents=contents(records, NOW))
    lines = list(laid_out(report(looked, records, 3, 39), 39))
    assert max(map(len, lines)) <= 39
    assert [line for line in lines if re.search("due +20", line)] == [
        "  oldest due    2023-11-14 23:13:20",
        "  newest due    2023-11-14 23:14:20",
        "m1: due 2023-11-14 23:13:20+0100,",
        "m2: due 2023-11-14 23:13:20+0100,",
        "m3: due 2023-11-14 23:14:20+0100,",
    ]
    assert lines[-5:-2] == ["  attempt 1, 6 bytes, given up for EEEE", "  " + "E" * 37, "  " + "E" * 9]


def test_json(full: Path) -> None:
    """It is one object, with the messages if they are asked for."""
    found = json.loads(journal("show", full, "--json").stdout)
    assert (found["path"], found["version"]) == (str(full), 2)
    assert full.stat().st_size <= found["disk_bytes"] == sum(map(len, files(full.parent, "-lock").values()))
    assert found["pending"] == {"messages": 4, "bytes": 22}
    assert found["errors"][0] == {"error": "PermanentSendError('refused')", "messages": 2}
    assert "messages" not in found
    found = json.loads(journal("show", full, "--json", "--messages", "--limit", "4").stdout)
    assert [message["id"] for message in found["messages"]] == ["m5", "m6", "m7", "tried"]
    assert found["messages"][3].keys() == {"id", "due", "attempt", "bytes", "expires", "error"}
    assert json.loads(journal("show", full, "--json", "--messages").stdout)["messages"][6]["bytes"] == 2


def test_csv(full: Path) -> None:
    """Of the figures, or of the messages if they are asked for: plain numbers, and nothing of a payload."""
    head, pending, *_, dead = journal("show", full, "--csv").stdout.decode().splitlines()
    assert (head, pending, dead) == (",messages,bytes", "pending,4,22", "dead letters,3,18")
    process = journal("show", full, "--csv", "--messages", "--limit", "1k")
    head, *rows = csv.reader(process.stdout.decode().splitlines())
    assert head == ["id", "due", "attempt", "bytes", "expires", "error"]
    assert [row[0] for row in rows] == ["m5", "m6", "m7", "tried", "m2", "m3", "m4"]
    assert rows[2][2:] == ["1", "6", "", "ValueError('\ufffd[31m')"]
    assert rows[3][2:] == ["3", "8", "", ""]
    assert float(rows[4][1]) > time.time()
    assert b"secret" not in process.stdout


def test_an_empty_journal(tmp_path: Path) -> None:
    """It is shown, exported and purged as any other."""
    path = made(tmp_path / "j")
    assert re.search(rb"^  pending +0 +0$", journal("show", path).stdout, re.MULTILINE)
    assert json.loads(journal("show", path, "--json", "--messages").stdout)["messages"] == []
    process = journal("export", path)
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
    process = journal("purge", path, "--all")
    assert (process.returncode, process.stdout) == (0, b"Nothing to remove, 0 left.\n")


def test_export_is_what_the_relay_reads(full: Path) -> None:
    """Lines come as they are due, with id, headers and due time; dead letters only if asked for."""
    process = journal("export", full)
    assert (process.returncode, told(process)) == (0, ["Left out 3 dead letters: --dead exports them, too."])
    lines = [json.loads(text) for text in process.stdout.splitlines()]
    assert [found["id"] for found in lines] == ["tried", "m2", "m3", "m4"]
    assert lines[0]["headers"] == {"k": "v"}
    assert lines[0].keys() == {"payload", "at", "id", "headers"}
    assert lines[3]["payload_base64"] == "//4="
    process = journal("export", full, "--dead")
    assert (len(process.stdout.splitlines()), process.stderr) == (7, b"")
    process = journal("export", full, "--dead-only")
    (first, *_) = map(json.loads, process.stdout.splitlines())
    assert (first["id"], first["error"]) == ("m5", "PermanentSendError('refused')")
    assert (len(process.stdout.splitlines()), process.stderr) == (3, b"")
    assert len(held(full)) == 7


def test_export_to_a_file(full: Path, tmp_path: Path) -> None:
    """It is for its owner alone, and is appended to."""
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        process = journal("export", full, "--output", output)
        assert (process.returncode, process.stdout) == (0, b"")
        assert told(process)[0] == f"Appended 4 messages to {output}."
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert len(output.read_bytes().splitlines()) == 8


@pytest.mark.parametrize(
    ("options", "said", "left"),
    [
        (["--dead"], "Removed 3 messages (18 bytes), 4 left.", ["tried", "m2", "m3", "m4"]),
        (
            ["--id", "m2", "--id", "m5"],
            "Removed 2 messages (12 bytes), 5 left.",
            ["tried", "m3", "m4", "m6", "m7"],
        ),
        (["--all"], "Removed 7 messages (40 bytes), 0 left.", []),
    ],
)
def test_purge(full: Path, options: list[str], said: str, left: list[str]) -> None:
    """What was asked for is removed and counted, and the rest stays."""
    process = journal("purge", full, *options, "--yes")
    assert (process.returncode, process.stdout.decode(), process.stderr) == (0, f"{said}\n", b"")
    assert held(full) == left


def test_purge_asks(full: Path) -> None:
    """Only a yes is one; where nobody answers, nothing is removed, and the option for scripts is told."""
    process = journal("purge", full, "--dead", given=b"n\n")
    question = f"Remove 3 messages (18 bytes) of 7 from {full}? [y/N]: "
    assert (process.returncode, process.stdout) == (1, b"")
    assert process.stderr.decode() == f"{question}Error: nothing was removed\n"
    process = journal("purge", full, "--dead")
    assert process.returncode == 1
    assert told(process)[1] == "Error: nothing was removed: nobody has answered, and --yes was not given"
    assert len(held(full)) == 7
    process = journal("purge", full, "--dead", given=b"y\n")
    assert (process.returncode, process.stdout) == (0, b"Removed 3 messages (18 bytes), 4 left.\n")


def test_ctrl_c_at_the_question(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no answer: exit code 130, as of any other command that it stops."""

    def pressed(*_: object) -> list[list[object]]:
        raise KeyboardInterrupt

    monkeypatch.setattr("select.select", pressed)
    process = journal("purge", full, "--all")
    assert (process.returncode, process.stdout) == (130, b"")
    assert told(process) == [
        f"Remove 7 messages (40 bytes) of 7 from {full}? [y/N]: Stopped by SIGINT: nothing was removed."
    ]
    assert len(held(full)) == 7


def test_purge_ids_that_are_not_there(full: Path) -> None:
    """The others are removed, these are told, and the exit code is 1."""
    process = journal("purge", full, "--id", "m2", "--id", "none", "--yes")
    assert process.returncode == 1
    assert told(process) == ["There is no message with the id 'none'."]
    assert process.stdout == b"Removed 1 message (6 bytes), 6 left.\n"
    process = journal("purge", full, "--id", "none")
    assert (process.returncode, process.stdout) == (1, b"Nothing to remove, 6 left.\n")


def test_purge_many(tmp_path: Path) -> None:
    """It goes in several commits, and what is left of the log is not worth mentioning."""
    path = made(tmp_path / "j", *(record(key, payload=bytes(2_500)) for key in range(1, 5_001)))
    process = journal("purge", path, "--all", "--yes")
    assert process.stdout == b"Removed 5,000 messages (12,500,000 bytes), 0 left.\n"
    assert held(path) == []
    log = Path(f"{path}-wal")
    assert not log.exists() or log.stat().st_size < 10_000_000


@pytest.mark.parametrize("args", [["show"], ["export"], ["purge", "--all", "--yes"]])
def test_a_journal_that_is_in_use(full: Path, args: list[str]) -> None:
    """One line says by whom, and nothing is changed."""
    with in_use(full):
        process = journal(*args, full)
    assert (process.returncode, process.stdout) == (2, b"")
    assert told(process) == [f"Error: the journal {full} is in use by process {os.getpid()}"]
    assert len(held(full)) == 7


@pytest.mark.parametrize("args", [["show"], ["export"], ["purge", "--all", "--yes"]])
def test_what_is_no_journal(tmp_path: Path, args: list[str]) -> None:
    """One line says why; it is left as it is, and nothing is made beside it."""
    text, empty, other, pipe = (tmp_path / name for name in ("text", "empty", "other", "pipe"))
    text.write_text("hello, world, and so on")
    empty.touch()
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    os.mkfifo(pipe)
    (tmp_path / "directory").mkdir()
    before = files(tmp_path)
    for path, said in (
        (tmp_path / "missing", "there is no such file"),
        (tmp_path / "directory", "it is no file"),
        (pipe, "it is no file"),
        (text, "it is no SQLite database"),
        (empty, "it is no SQLite database"),
        (text / "under", "there is no such file"),
    ):
        process = journal(*args, path)
        assert (process.returncode, process.stdout) == (2, b"")
        (one,) = told(process)
        assert one.startswith("Error: ")
        assert one.endswith(said)
    assert files(tmp_path) == before
    process = journal(*args, other)
    assert (process.returncode, len(told(process))) == (2, 1)
    assert "is not a journal of localdelay, but another database" in told(process)[0]
    assert files(tmp_path)["other"] == before["other"]


@pytest.mark.parametrize("args", [["show"], ["export"], ["purge", "--all", "--yes"]])
def test_a_journal_that_is_torn(full: Path, args: list[str]) -> None:
    """One line says so, nothing else is printed, and it is left as it is."""
    content = full.read_bytes()
    assert content.count(b"secret") >= 6
    full.write_bytes(content.replace(b"secret", b"SECRET", 1))
    before = full.read_bytes()
    process = journal(*args, full)
    assert (process.returncode, process.stdout) == (2, b"")
    (said,) = told(process)
    assert f"the journal {full} is damaged" in said
    assert full.read_bytes() == before
    full.write_bytes(content[:5000])
    process = journal(*args, full)
    assert (process.returncode, process.stdout, len(told(process))) == (2, b"", 1)


def test_salvage(tmp_path: Path) -> None:
    """All but the damaged row goes to a new journal, and the exit code says so; a path may be no UTF-8."""
    path = made(tmp_path / os.fsdecode(b"\xff.journal"), *(record(key) for key in range(1, 1001)))
    assert journal("show", path).returncode == 0
    content = path.read_bytes()
    path.write_bytes(content.replace(b"secret", b"SECRET", 1))
    before = path.read_bytes()
    process = journal("show", path)
    assert process.returncode == 2
    assert told(process)[0].endswith("--to NEW` takes what is sound")
    new = tmp_path / "new"
    process = journal("salvage", path, "--to", new)
    assert (process.returncode, process.stdout) == (
        1,
        b"Salvaged 999 messages (5,994 bytes) to %b.\n" % bytes(new),
    )
    assert len(told(process)) == 1
    assert re.fullmatch(r"Lost: row \d+ is damaged\.", told(process)[0])
    assert path.read_bytes() == before
    lost = int(told(process)[0].split()[2])
    assert sorted(held(new)) == sorted(f"m{key}" for key in range(1, 1001) if key != lost)
    process = journal("salvage", path, "--to", new)
    assert (process.returncode, told(process)[-1]) == (
        2,
        "Error: Invalid value for '--to': must not be there yet",
    )
    process = journal("salvage", new, "--to", tmp_path / "again")
    assert (process.returncode, told(process), len(held(tmp_path / "again"))) == (0, [], 999)


def test_salvage_of_a_page(tmp_path: Path) -> None:
    """What lies before and behind a page that can't be read is sound, and what it hides is named."""
    path = made(tmp_path / "j", *(record(key, payload=bytes(500)) for key in range(1, 1001)))
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 21 * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    found, lost = SqliteJournal(path).salvage()
    assert 980 <= len(found) < 1000
    hidden = set(range(1, 1001)) - {each.key for each in found}
    assert lost == [f"what there is of rows {min(hidden)} to {max(hidden)} can't be read"]


def test_salvage_tells_neighbours_in_one_line(tmp_path: Path) -> None:
    """Rows with nothing sound between them are one loss, whatever keys were never there; of all, too."""
    path = made(tmp_path / "j", *(record(key) for key in (1, 2, 3, 5, 9, 11, 12, 20)))
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE messages SET payload = 'x' WHERE key IN (2, 5, 9, 20)")
        database.commit()
        _, lost = SqliteJournal(path).salvage()
        assert lost == [
            "row 2 is damaged",
            "what there is of rows 5 to 9 is damaged",
            "row 20 is damaged",
        ]
        database.execute("UPDATE messages SET id = CAST(x'ff' AS TEXT)")
        database.commit()
    process = journal("salvage", path, "--to", tmp_path / "new")
    assert (process.returncode, told(process)) == (1, ["Lost: what there is of rows 1 to 20 is damaged."])
    assert process.stdout.startswith(b"Salvaged 0 messages")


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("args", [["show"], ["export"], ["purge", "--all", "--yes"]])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be nobody")
def test_a_journal_of_somebody_else(args: list[str]) -> None:
    """One line says that it must not be read."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = made(Path(directory) / "journal", record(1))
        # The same before as root: then all is imported, which may lie where nobody else can enter.
        assert journal(*args, made(Path(directory) / "own", record(1))).returncode == 0
        with as_nobody():
            process = journal(*args, path)
    assert (process.returncode, process.stdout) == (2, b"")
    assert told(process) == [f"Error: the journal {path}: Permission denied"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["show", "{}", "--limit", "3"], "--limit is for --messages. See 'localdelay journal show --help'."),
        (
            ["show", "{}", "--messages", "--limit", "0"],
            "Invalid value for '--limit': must be at least 1, not 0",
        ),
        (
            ["export", "{}", "--dead", "--dead-only"],
            "only one of --dead and --dead-only can be given. See 'localdelay journal export --help'.",
        ),
        (
            ["export", "{}", "--output", "{}"],
            "Invalid value for '--output': must not be a file of the journal",
        ),
        (
            ["export", "{}", "--output", "{}-wal"],
            "Invalid value for '--output': must not be a file of the journal",
        ),
        (
            ["export", "{}", "--output", "/"],
            "Invalid value for '--output': '/' is no file in a directory that there is",
        ),
        (
            ["purge", "{}"],
            "exactly one of --dead, --id and --all must be given. See 'localdelay journal purge --help'.",
        ),
        (
            ["purge", "{}", "--all", "--dead"],
            "exactly one of --dead, --id and --all must be given. See 'localdelay journal purge --help'.",
        ),
        (["show", ""], "Invalid value for 'PATH': path must name a file, which '' does not"),
        (["show"], "Missing argument 'PATH'. See 'localdelay journal show --help'."),
    ],
)
def test_wrong_options(full: Path, args: list[str], said: str) -> None:
    """One line, and exit code 2."""
    process = journal(*(arg.replace("{}", str(full)) for arg in args))
    assert (process.returncode, process.stdout) == (2, b"")
    assert told(process) == [f"Error: {said}"]
    assert len(held(full)) == 7


@FULL
def test_a_file_that_is_full(full: Path) -> None:
    """One line says how much of it is there, and the exit code is 1."""
    process = journal("export", full, "--output", "/dev/full")
    assert process.returncode == 1
    assert told(process) == [
        "Error: '/dev/full' can't be written: No space left on device; it has 0 of 4 messages"
    ]
