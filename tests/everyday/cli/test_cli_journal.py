"""`localdelay journal` from a shell: what it shows, what the relay makes of its lines, what it removes."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import signal
import sqlite3
import stat
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pytest

from localdelay import SqliteJournal
from localdelay.cli import main
from localdelay.cli.journal_report import message_rows
from localdelay.journal.record import Record
from localdelay.relay.lines import json_lines
from localdelay.relay.orphan import line
from tests.kit.servers.process import Server

COMMAND = str(Path(sysconfig.get_path("scripts"), "localdelay"))
PIPE = subprocess.PIPE
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
NOW = 1_700_000_000.0


def record(key: int, due: float = NOW, payload: bytes = b"secret", dead: str | None = None) -> Record:
    return Record(key, due, 1, f"m{key}", None, payload, dead)


def made(path: Path, *records: Record) -> Path:
    """A journal that holds these."""
    with closing(SqliteJournal(path, "os")) as journal:
        journal.open()
        journal.write(records, [], durable=True)
    return path


def held(path: Path) -> list[str]:
    return [record.id for record in SqliteJournal(path).read()]


def files(path: Path, besides: str = "-nothing") -> dict[str, bytes]:
    names = [found for found in path.iterdir() if found.is_file() and not found.name.endswith(besides)]
    return {found.name: found.read_bytes() for found in names}


def journal(*args: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command in this process: to start one takes long."""
    command = ["journal", *map(str, args)]
    with ExitStack() as stack:
        out, err = (stack.enter_context(io.TextIOWrapper(TemporaryFile())) for _ in range(2))  # noqa: SIM115
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("sys.stdin", io.StringIO(given.decode()))
        with pytest.raises(SystemExit) as ended:
            main(command, prog_name="localdelay")
        printed = []
        for stream in (out, err):
            stream.flush()
            stream.buffer.seek(0)
            printed.append(stream.buffer.read())
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(command, ended.value.code, *printed)


def shell(script: str, *args: object) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `"$@"` is a command about a journal, and `$L` is `localdelay`."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", COMMAND, "journal", *map(str, args)],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "L": COMMAND},
    )


def told(process: subprocess.CompletedProcess[bytes]) -> list[str]:
    return process.stderr.decode().splitlines()


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    with closing(SqliteJournal(path)) as other:
        other.open()
        yield


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A journal with something of everything."""
    now = time.time()
    return made(
        tmp_path / "journal",
        Record(1, now - 60, 3, "tried", {"k": "v"}, b"secret", None),
        record(2, now + 30),
        record(3, now + 1800),
        record(4, now + 7200, b"\xff\xfe"),
        record(5, now - 900, dead="PermanentSendError('refused')"),
        record(6, now - 900, dead="PermanentSendError('refused')"),
        record(7, now - 900, dead="ValueError('\x1b[31m')"),
    )


def test_a_line_is_the_relays() -> None:
    """What the relay makes of it is the message, and its due time to the microsecond, rounded up."""
    for number in range(200):
        due = NOW + number * 12_345.678_901_2
        payload, options = json_lines(None)(line(record(1, due, b"\xff"), NOW).rstrip(b"\n"))
        assert payload == b"\xff"
        assert options["id"] == "m1"
        # A float of today's Unix time has steps of a quarter of a microsecond.
        assert 0 <= options["at"].timestamp() - due + math.ulp(due) < 1.5e-6


def test_a_line_past_the_calendar() -> None:
    """After the year 9999 it is the delay that is left."""
    payload, options = json_lines(None)(line(record(1, NOW + 1e12), NOW).rstrip(b"\n"))
    assert (payload, options) == (b"secret", {"delay": 1e12, "id": "m1"})


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
    assert rows[1].startswith("version 1, ")
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


def test_json(full: Path) -> None:
    """It is one object, with the messages if they are asked for."""
    found = json.loads(journal("show", full, "--json").stdout)
    assert (found["path"], found["version"]) == (str(full), 1)
    assert full.stat().st_size <= found["disk_bytes"] == sum(map(len, files(full.parent, "-lock").values()))
    assert found["pending"] == {"messages": 4, "bytes": 22}
    assert found["errors"][0] == {"error": "PermanentSendError('refused')", "messages": 2}
    assert "messages" not in found
    found = json.loads(journal("show", full, "--json", "--messages", "--limit", "4").stdout)
    assert [message["id"] for message in found["messages"]] == ["m5", "m6", "m7", "tried"]
    assert found["messages"][3].keys() == {"id", "due", "attempt", "bytes", "error"}
    assert json.loads(journal("show", full, "--json", "--messages").stdout)["messages"][6]["bytes"] == 2


def test_an_empty_journal(tmp_path: Path) -> None:
    """It is shown, exported and purged as any other."""
    path = made(tmp_path / "j")
    assert b"pending                           0" in journal("show", path).stdout
    assert json.loads(journal("show", path, "--json", "--messages").stdout)["messages"] == []
    process = journal("export", path)
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
    process = journal("purge", path, "--all")
    assert (process.returncode, process.stdout) == (0, b"Nothing to remove, 0 left.\n")


@pytest.mark.parametrize(("term", "escapes"), [("xterm-256color", 2), ("dumb", 0)])
def test_a_terminal(full: Path, term: str, escapes: int) -> None:
    """The heading is bold where the terminal can do that, and nothing is coloured."""
    primary, secondary = pty.openpty()
    env = {**os.environ, "TERM": term, "COLUMNS": "80"}
    command = [COMMAND, "journal", "show", str(full), "--messages"]
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, env=env) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                shown += os.read(primary, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(30) == 0
    os.close(primary)
    assert shown.startswith(b"\x1b[1mJournal " if escapes else b"Journal ")
    assert shown.count(b"\x1b") == escapes
    assert all(len(row) <= 80 for row in shown.decode().splitlines()[1:])


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
        assert told(process)[0] == "Exported 4 messages."
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert len(output.read_bytes().splitlines()) == 8


def test_relayed_to_standard_output(tmp_path: Path) -> None:
    """What is left of each delay is kept: what is overdue comes at once, and the rest when it is due."""
    now = time.time()
    path = made(tmp_path / "j", record(1, now + 1.5, b"later"), record(2, now - 5, b"overdue"))
    process = shell('"$@" | "$L" relay --to stdout: --format jsonl -q', "export", path)
    assert process.stdout == b"overdue\nlater\n"
    assert process.stderr == b""
    assert time.time() >= now + 1.5


def test_relayed_to_a_real_broker(tmp_path: Path, start_server: Callable[[str], Server]) -> None:
    """Payloads, ids and headers arrive in Redis, in the order in which they are due, dead letters too."""
    now = time.time()
    path = made(
        tmp_path / "j",
        Record(1, now - 1, 3, "m1", {"k": "v"}, b"one", None),
        record(2, now - 2, b"two"),
        record(3, now - 3, b"\xff", "E"),
    )
    server = start_server("redis")
    url = server.fresh()
    relay = f'"$@" | "$L" relay --format jsonl -q --workers 1 --to "{url}"'
    process = shell(relay, "export", path, "--dead")
    assert (process.returncode, process.stderr) == (0, b"")
    arrived = server.read(url, 3)
    assert [found.payload for found in arrived] == [b"\xff", b"two", b"one"]
    assert [found.headers["Localdelay-Id"] for found in arrived] == ["m3", "m2", "m1"]
    assert arrived[2].headers["k"] == "v"


def test_a_line_that_is_too_long_for_the_relay(tmp_path: Path) -> None:
    """The option that it needs is told, and is enough."""
    path = made(tmp_path / "j", record(1, 0.0, b"x" * (1 << 20)))
    (said,) = told(journal("export", path))
    option = said.partition("the relay needs ")[2].rstrip(".")
    assert option.startswith("--max-line 10486")
    relay = f'"$@" 2>/dev/null | "$L" relay --to stdout: --format jsonl -q {option}'
    process = shell(relay, "export", path)
    assert (process.returncode, len(process.stdout)) == (0, (1 << 20) + 1)


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
    path = made(tmp_path / "j", *(record(key, payload=bytes(500)) for key in range(1, 25_001)))
    process = journal("purge", path, "--all", "--yes")
    assert process.stdout == b"Removed 25,000 messages (12,500,000 bytes), 0 left.\n"
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
            "Invalid value for '--limit': 0 is not in the range x>=1.",
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


def test_output_that_is_the_journal_itself(full: Path) -> None:
    """It would be damaged."""
    before = full.read_bytes()
    process = shell(f'"$@" >> "{full}"', "export", full)
    assert process.returncode == 2
    assert told(process) == ["Error: Invalid value for '--output': must not be a file of the journal"]
    assert full.read_bytes() == before


@pytest.mark.parametrize(
    "args",
    [["show", "--messages"], ["show", "--json", "--messages"], ["export"]],
    ids=["text", "json", "export"],
)
def test_a_reader_that_leaves(tmp_path: Path, args: list[str]) -> None:
    """It has seen enough: that is all."""
    path = made(tmp_path / "j", *(record(key, payload=bytes(100)) for key in range(1, 20_001)))
    process = shell('{ "$@"; echo $? >&2; } | head -n 1', *args, path)
    assert len(process.stdout.splitlines()) == 1
    assert process.stderr == b"1\n"


@FULL
@pytest.mark.parametrize("args", [["show"], ["show", "--json"], ["export"], ["purge", "--dead", "--yes"]])
def test_a_full_disk(full: Path, args: list[str]) -> None:
    """One line, and exit code 1."""
    process = shell('"$@" > /dev/full', *args, full)
    assert process.returncode == 1
    assert told(process) == ["Error: standard output can't be written to: No space left on device"]


@FULL
def test_a_file_that_is_full(full: Path) -> None:
    """One line says how much of it is there, and the exit code is 1."""
    process = journal("export", full, "--output", "/dev/full")
    assert process.returncode == 1
    assert told(process) == [
        "Error: '/dev/full' can't be written: No space left on device; it has 0 of 4 messages"
    ]


@pytest.mark.parametrize("args", [["show"], ["export"], ["purge", "--dead", "--yes"]])
def test_a_standard_output_that_is_closed(full: Path, args: list[str]) -> None:
    """Nothing is done where it could not be told, and no file of the journal is written to instead."""
    process = shell('"$@" >&-', *args, full)
    assert process.returncode == 2
    assert told(process) == ["Error: standard output can't be written to: it is closed"]
    assert len(held(full)) == 7


@contextmanager
def running(*args: object, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [COMMAND, "journal", *map(str, args)], **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **streams}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c(tmp_path: Path) -> None:
    """One line and 130; a consumer that is slow is waited for until then."""
    path = made(tmp_path / "j", *(record(key, payload=b"x" * 1000) for key in range(1, 5_001)))
    with running("export", path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert process.stdout.read(10) == b'{"payload"'
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == b"Stopped by SIGINT.\n"


def test_ctrl_c_at_the_question(full: Path) -> None:
    """Nothing is removed."""
    with running("purge", "--all", full) as process:
        assert process.stderr is not None
        assert process.stderr.read(6) == b"Remove"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        assert b"Traceback" not in process.stderr.read()
    assert len(held(full)) == 7


def test_purge_keeps_others_out_while_it_asks(full: Path) -> None:
    """What is removed is what the question was about."""
    with running("purge", "--dead", full) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.read(6) == b"Remove"
        other = journal("purge", "--all", "--yes", full)
        assert told(other) == [f"Error: the journal {full} is in use by process {process.pid}"]
        process.stdin.write(b"y\n")
        process.stdin.close()
        process.stdin = None
        assert process.wait(20) == 0
    assert len(held(full)) == 4
