"""`localdelay relay` from a shell: pipes, files, signals, a terminal, and a real broker."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.kit import commands
from tests.kit.catching import until_it_catches
from tests.kit.commands import COMMAND, FULL

TO_STDOUT = ["relay", "--to", "stdout:"]


def relay(*args: str, given: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [COMMAND, *TO_STDOUT, *args], input=given, capture_output=True, timeout=200, check=False, cwd=cwd
    )


def shell(line: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    return commands.shell(line, *TO_STDOUT, *args)


def running(*args: str, **streams: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return commands.running(*TO_STDOUT, *args, **streams)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_come_out_when_they_are_due() -> None:
    """Standard output carries the messages and nothing else; the summary is on the other."""
    began = time.monotonic()
    process = relay("--delay", "300ms", given=b"one\r\n\ntwo\x00\xff\nlast")
    assert time.monotonic() - began >= 0.3
    assert process.stdout == b"one\n\ntwo\x00\xff\nlast\n"
    assert process.returncode == 0
    first, second = process.stderr.decode().splitlines()
    assert first.startswith("4 lines to stdout: in ")
    assert first.endswith(": 4 sent.")
    assert second.startswith("Late by ")


def test_json_lines_and_wrong_ones() -> None:
    """Each wrong line is told by its number, and not its content; the others are sent; the code is 1."""
    lines = [
        b'{"payload": "second", "delay": "400ms"}',
        b"secret",
        b'{"payload_base64": "/w==", "at": "2020-01-01T00:00:00Z"}',
        b'{"payload": "secret", "delay": -1}',
    ]
    process = relay("--format", "jsonl", "--quiet", given=b"\n".join(lines))
    assert process.stdout == b"\xff\nsecond\n"
    assert process.returncode == 1
    assert process.stderr.decode().splitlines() == [
        "line 2: is no JSON: Expecting value at character 1",
        "line 4: delay must be finite and at least 0, not -1.0",
    ]


READY = b'{"payload": "ready", "delay": 0}\n'


def begin(process: subprocess.Popen[bytes], *lines: str) -> None:
    """Give it lines, and return when it has read them."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(f"{line}\n" for line in lines).encode() + READY)
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n"


def told(process: subprocess.Popen[bytes]) -> list[str]:
    """What it has said on standard error until its end."""
    assert process.stderr is not None
    return process.stderr.read().decode().splitlines()


def test_a_signal_leaves_a_file_that_is_read_back(tmp_path: Path) -> None:
    """What comes due within the grace is sent, the rest is written, and another relay goes on with it."""
    unsent = tmp_path / "unsent.jsonl"
    with running("--format", "jsonl", "--grace", "500ms", "--unsent", str(unsent)) as process:
        began = time.monotonic()
        begin(
            process,
            '{"payload": "soon", "delay": "300ms"}',
            '{"payload": "later", "delay": 1.8}',
            '{"payload": "much later", "delay": "1h"}',
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"payl')
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"soon\n"
        lines = told(process)
        assert process.wait(100) == 143
    assert "Stopped by SIGTERM: the input was read up to line 4." in lines
    assert "The line after it was cut off: its first 6 bytes are kept, and no message." in lines
    assert lines[-1] == f"  localdelay relay --format jsonl --to stdout: < {unsent}"
    later, much_later, cut = records(unsent)
    assert (later["payload"], much_later["payload"], cut) == ("later", "much later", {"cut_off": '{"payl'})
    again = relay("--format", "jsonl", given=unsent.read_bytes().splitlines()[0])
    assert (again.returncode, again.stdout) == (0, b"later\n")
    assert time.monotonic() - began >= 1.8


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_other_signals(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    """Ctrl-C and a terminal that is closed are as good as SIGTERM."""
    unsent = tmp_path / "unsent.jsonl"
    with running("--format", "jsonl", "--unsent", str(unsent)) as process:
        begin(process, '{"payload": "later", "delay": "1h"}')
        process.send_signal(signum)
        assert f"Stopped by {signum.name}: the input was read up to line 2." in told(process)
        assert process.wait(100) == code
    assert [record["payload"] for record in records(unsent)] == ["later"]


def test_a_terminal_that_is_closed_under_nohup(tmp_path: Path) -> None:
    """A SIGHUP that is ignored stays ignored."""
    options = ["--format", "jsonl", "--unsent", str(tmp_path / "unsent.jsonl")]
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with running(*options, preexec_fn=ignore) as process:
        begin(process, '{"payload": "later", "delay": "1h"}')
        process.send_signal(signal.SIGHUP)
        begin(process)
        process.send_signal(signal.SIGTERM)
        assert "Stopped by SIGTERM: the input was read up to line 3." in told(process)
        assert process.wait(100) == 143


def test_a_third_signal_does_no_harm(tmp_path: Path) -> None:
    """While it writes, or says what it has written, nothing stops it: however many come, all is told."""
    unsent = tmp_path / "unsent.jsonl"
    with running("--format", "jsonl", "--unsent", str(unsent)) as process:
        begin(process, *['{"payload": "a", "delay": 20}'] * 20_000)
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        lines = told(process)
        process.wait(100)
    assert lines[-1] == f"  localdelay relay --format jsonl --to stdout: < {unsent}"
    assert not any("Traceback" in line for line in lines)
    assert len(records(unsent)) == 20_000


def test_a_signal_while_the_last_are_waited_for() -> None:
    """Where the input has ended and all comes due within the grace, all was sent: the code is 0."""
    with running("--format", "jsonl", "-q") as process:
        begin(process, '{"payload": "a", "delay": 1}')
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdin = None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"a\n"
        assert process.wait(100) == 0
        assert told(process) == []


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """No traceback: one line, exit code 1, and what was not sent is in a file."""
    unsent = tmp_path / "unsent.jsonl"
    with running("--format", "jsonl", "--unsent", str(unsent)) as process:
        begin(process, '{"payload": "a", "delay": "1s"}', '{"payload": "b", "delay": "1h"}')
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.wait(100) == 1
        lines = told(process)
    assert "Error: nobody reads standard output any more: broken pipe" in lines
    assert not any("Traceback" in line for line in lines)
    assert sorted(record["payload"] for record in records(unsent)) == ["a", "b"]


def test_it_reads_no_faster_than_there_is_room(tmp_path: Path) -> None:
    """A producer without an end is held up: little is read, and all that was read is in the file."""
    unsent = tmp_path / "unsent.jsonl"
    options = ["--delay", "1h", "--capacity", "100", "--grace", "0", "--unsent", str(unsent)]
    reader, writer = os.pipe()
    with running(*options, stdin=reader) as process:
        os.close(reader)
        os.set_blocking(writer, False)
        written = 0
        until_it_catches(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            if select.select([], [writer], [], 0.05)[1]:
                written += os.write(writer, b"x" * 99 + b"\n" * 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
        os.close(writer)
    assert written < 500_000
    assert len(records(unsent)) == written // 100


def test_what_never_ends_a_line() -> None:
    """It is told once, and takes no memory; a strict relay is over with it."""
    process = shell('"$@" < /dev/zero', "--delay", "1", "--strict", "-q")
    assert process.returncode == 1
    assert process.stderr.decode().splitlines() == [
        "line 1: is longer than 1,048,576 bytes",
        "Stopped by a wrong line: the input was read up to line 1.",
    ]


@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        ("<&-", "standard input can't be read: it is closed"),
        ("0>/dev/null", "standard input can't be read: it is not open for reading"),
        (">&- </dev/null", "no connection to standard output: it can't be written to: it is closed"),
    ],
)
def test_streams_that_are_not_there(redirected: str, said: str) -> None:
    """One line, and exit code 2."""
    process = shell(f'"$@" {redirected}', "--delay", "1")
    assert process.returncode == 2
    assert process.stderr.decode() == f"Error: {said}\n"


@pytest.mark.parametrize("redirected", ["2>&-", pytest.param("2>/dev/full", marks=FULL)])
def test_a_standard_error_that_can_not_be_used(redirected: str) -> None:
    """No reason to lose a message."""
    process = shell(f'printf "a\\nlonger\\nb\\n" | "$@" {redirected}', "--delay", "100ms", "--max-line", "5")
    assert process.returncode == 1
    assert process.stdout == b"a\nb\n"


def test_a_standard_error_that_nobody_reads() -> None:
    """It fills up with wrong lines, and messages are sent all the same."""
    with running("--delay", "0", "--max-line", "5") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"longer\n" * 5_000 + b"good\n")
        process.stdin.close()
        assert process.stdout.read() == b"good\n"
        assert process.wait(100) == 1
        process.stdin = None


def test_files_that_would_feed_themselves(tmp_path: Path) -> None:
    """What is read must not be what is written."""
    file = tmp_path / "file"
    file.write_bytes(b"a\n")
    for redirected, option, args in (
        ("", "--unsent", ["--unsent", str(file)]),
        ("", "--dead-letters", ["--dead-letters", str(file)]),
        (f'>> "{file}"', "--to", []),
    ):
        process = shell(f'"$@" < "{file}" {redirected}', "--delay", "0", *args)
        assert process.returncode == 2
        assert process.stderr.decode().startswith(
            f"Error: Invalid value for '{option}': must not be the file that is read"
        )
    assert file.read_bytes() == b"a\n"
