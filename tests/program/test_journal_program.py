"""`localdelay journal` as a program: pipes, a terminal, a real broker, Ctrl-C, and other people's files."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localdelay.journal.record import Record
from tests.kit.commands import on_a_terminal, run, running, shell, told
from tests.kit.journal_files import filled, held, made, record
from tests.kit.servers.process import Server


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return filled(tmp_path / "journal")


@pytest.mark.parametrize(("term", "escapes"), [("xterm-256color", 4), ("dumb", 0)])
def test_a_terminal(full: Path, term: str, escapes: int) -> None:
    """The heading and the table's head are bold where the terminal can do that; nothing is coloured."""
    shown, code = on_a_terminal("journal", "show", full, "--messages", stream="stdout", term=term)
    assert code == 0
    assert shown.startswith("\x1b[1mJournal " if escapes else "Journal ")
    assert shown.count("\x1b") == escapes
    assert all(len(row) <= 80 for row in shown.splitlines()[1:])


def test_relayed_to_standard_output(tmp_path: Path) -> None:
    """What is left of each delay is kept: what is overdue comes at once, and the rest when it is due."""
    now = time.time()
    path = made(tmp_path / "j", record(1, now + 1.5, b"later"), record(2, now - 5, b"overdue"))
    process = shell('"$@" | "$L" relay --to stdout: --format jsonl -q', "journal", "export", path)
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
    process = shell(relay, "journal", "export", path, "--dead")
    assert (process.returncode, process.stderr) == (0, b"")
    arrived = server.read(url, 3)
    assert [found.payload for found in arrived] == [b"\xff", b"two", b"one"]
    assert [found.headers["Localdelay-Id"] for found in arrived] == ["m3", "m2", "m1"]
    assert arrived[2].headers["k"] == "v"


def test_a_line_that_is_too_long_for_the_relay(tmp_path: Path) -> None:
    """The option that it needs is told, and is enough."""
    path = made(tmp_path / "j", record(1, 0.0, b"x" * (1 << 20)))
    (said,) = run("journal", "export", path).stderr.splitlines()
    option = said.partition("the relay needs ")[2].rstrip(".")
    assert option.startswith("--max-line 10486")
    relay = f'"$@" 2>/dev/null | "$L" relay --to stdout: --format jsonl -q {option}'
    process = shell(relay, "journal", "export", path)
    assert (process.returncode, len(process.stdout)) == (0, (1 << 20) + 1)


def test_output_that_is_the_journal_itself(full: Path) -> None:
    """It would be damaged."""
    before = full.read_bytes()
    process = shell(f'"$@" >> "{full}"', "journal", "export", full)
    assert process.returncode == 2
    assert told(process) == ["Error: Invalid value for '--output': must not be a file of the journal"]
    assert full.read_bytes() == before


def test_ctrl_c(tmp_path: Path) -> None:
    """One line and 130; a consumer that is slow is waited for until then."""
    path = made(tmp_path / "j", *(record(key, payload=b"x" * 1000) for key in range(1, 5_001)))
    with running("journal", "export", path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert process.stdout.read(10) == b'{"payload"'
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert process.stderr.read() == b"Stopped by SIGINT.\n"


def test_ctrl_c_at_the_question(full: Path) -> None:
    """Nothing is removed, and the exit code is that of Ctrl-C, as the help says."""
    with running("journal", "purge", "--all", full) as process:
        assert process.stderr is not None
        assert process.stderr.read(6) == b"Remove"
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert process.stderr.read().endswith(b"Stopped by SIGINT: nothing was removed.\n")
    assert len(held(full)) == 7


def test_purge_keeps_others_out_while_it_asks(full: Path) -> None:
    """What is removed is what the question was about."""
    with running("journal", "purge", "--dead", full) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.read(6) == b"Remove"
        other = run("journal", "purge", "--all", "--yes", full)
        assert other.stderr.splitlines() == [f"Error: the journal {full} is in use by process {process.pid}"]
        process.stdin.write(b"y\n")
        process.stdin.close()
        process.stdin = None
        assert process.wait(100) == 0
    assert len(held(full)) == 4
