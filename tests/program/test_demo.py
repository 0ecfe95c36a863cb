"""`localdelay demo`: against the real server, and how it refuses."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from localdelay.cli import main
from localdelay.demo import scene as scenes
from localdelay.demo import server as servers
from localdelay.demo.report import Run
from tests.kit import commands
from tests.kit.commands import COMMAND
from tests.kit.programs import ran

SMALL = ["--seconds", "0.4", "--delay", "0.6"]


def run(*args: str, input: bytes | None = None) -> Result:
    return commands.run("demo", *args, input=input)


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where the processes of this test keep their temporary files; empty again at the end."""
    yield tmp_path
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def started(temporary: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, once its server answers."""
    environment = {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "80"}
    with commands.running("demo", *args, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("NATS server ")
        yield process


def server_pid(temporary: Path) -> int:
    (ports,) = temporary.glob("localdelay-demo-*/nats-server_*.ports")
    return int(re.findall(r"_(\d+)\.ports", ports.name)[0])


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_json_of_a_real_run() -> None:
    """Both runs have all keys in order; the plain one has lost what was refused, the other nothing.

    A rate is found, and what is over it goes back; all that is told of it adds up to the counts. How much the
    broker gets of what it takes plain is asserted in virtual time, in `test_demo_natively`: here it is nearly
    all on a quiet machine, and less on a busy one. In `test_valve` the rate is that of the primary.
    """
    result = run("--seconds", "0.4", "--delay", "2.5", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report) == ["plain", "fallback"]
    keys = ["published", "accepted", "refused", "degraded", "received", "lost", "duplicates"]
    keys += ["lateness_p50", "lateness_p99", "lateness_max"]
    plain, fallback = report["plain"], report["fallback"]
    assert list(plain) == keys
    assert list(fallback) == [*keys, "handed_back", "timeline"]
    for figures in report.values():
        assert figures["published"] == 1200
        assert figures["received"] + figures["lost"] == 1200
        assert 0 <= figures["lateness_p50"] <= figures["lateness_p99"] <= figures["lateness_max"]
    assert plain["degraded"] == plain["duplicates"] == 0
    assert plain["accepted"] + plain["refused"] == 1200
    assert plain["lost"] == plain["refused"] > 0
    assert fallback["accepted"] + fallback["degraded"] == 1200
    assert fallback["lost"] == 0
    assert fallback["degraded"] >= fallback["refused"] > 0
    assert fallback["degraded"] >= fallback["handed_back"] > 0
    # A hand-back that a busy machine did not get confirmed in time may have arrived all the same.
    assert fallback["duplicates"] <= fallback["degraded"] - fallback["handed_back"]
    assert result.stderr == ""
    buckets = fallback["timeline"]
    assert any(bucket["found"] is not None and bucket["found"] > 0 for bucket in buckets)
    step = buckets[1]["at"] - buckets[0]["at"]
    for rate, count in (("primary", "accepted"), ("local", "degraded"), ("handed_back", "handed_back")):
        assert sum(bucket[rate] for bucket in buckets) * step == pytest.approx(fallback[count])


def test_table_of_a_real_run(temporary: Path) -> None:
    """Where nothing is a terminal: plain lines on standard error, the table on standard output."""
    environment = {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "80"}
    process = ran(COMMAND, "demo", *SMALL, env=environment, timeout=200)
    assert process.returncode == 0, process.stderr
    assert "\x1b" not in process.stdout + process.stderr
    lines = process.stdout.splitlines()
    assert re.fullmatch(r"NATS server 2\.[0-9.]+, started for this demo; .*", lines[0])
    assert lines[1] == "Two runs of 1,200 messages at 3,000/s, each due 600 ms after it is published:"
    assert max(map(len, lines)) <= 80
    numbers = dict(re.findall(r"^(\w[\w ]*\w) {2,}([\d,]+ {2,}[\d,]+)", process.stdout, re.MULTILINE))
    assert numbers["published"].split() == ["1,200", "1,200"]
    assert numbers["received"].split()[1] == "1,200"
    assert numbers["lost"].split()[1] == "0"
    assert "With localdelay all 1,200 arrived" in process.stdout
    assert len(lines) <= 23  # and a prompt
    assert re.search(r"^handed back +0 +[\d,]+ +to the broker, before due$", process.stdout, re.MULTILINE)
    for row in ("primary", "local", "handed back", "rate found"):
        assert re.search(rf"^{row} {{2,}}\S+$", process.stdout, re.MULTILINE), row
    progress = process.stderr.splitlines()
    assert progress[-1].startswith("with localdelay: 1,200 published")
    assert re.search(r"  1,200 received .*  [\d,]+ held  [\d,]+ handed back$", progress[-1])
    assert any(line.startswith("plain: 1,200 published") for line in progress)


@pytest.mark.parametrize("args", [["--json"], []])
def test_never_throttled(args: list[str]) -> None:
    """A trickle is no burst: exit code 3, and a sentence that says so, with `--json` on standard error."""
    result = run("--rate", "20", "--seconds", "0.2", "--delay", "0.1", *args)
    assert result.exit_code == 3
    said = result.stderr if args else result.stdout
    assert "The broker never throttled" in said
    assert "Try a higher --rate" in said
    if args:
        assert json.loads(result.stdout)["fallback"]["received"] == 4


class Caught(Exception):
    """Stands for a run; carries the scene that was to be played."""


def messages_of(monkeypatch: pytest.MonkeyPatch, *args: str, input: bytes | None = None) -> list[bytes]:
    def caught(scene: scenes.Scene, *_: object) -> None:
        raise Caught(scene)

    monkeypatch.setattr(scenes, "run", caught)
    result = run(*args, input=input)
    assert isinstance(result.exception, Caught), result.output
    return list(result.exception.args[0].messages)


def test_input_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a message, as bytes, without its end; empty ones too, and one without an end."""
    lines = messages_of(monkeypatch, "--input", "-", input=b"one\n\ntw\xff\r\n three \nfour")
    assert lines == [b"one", b"", b"tw\xff", b" three ", b"four"]


def test_input_is_cut_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--seconds` no more lines are taken than the peak has room for."""
    args = ["--input", "-", "--seconds", "2", "--rate", "2.5"]
    assert messages_of(monkeypatch, *args, input=b"x\n" * 100) == [b"x"] * 5
    assert messages_of(monkeypatch, *args, input=b"x\n" * 3) == [b"x"] * 3


def test_made_up_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--input`: rate times seconds messages of 500 bytes, all different."""
    messages = messages_of(monkeypatch, "--rate", "100", "--seconds", "3")
    assert len(messages) == len(set(messages)) == 300
    assert {len(message) for message in messages} == {500}


def test_a_line_too_long() -> None:
    """A line that no NATS message can hold is named by its number, and is not read to its end."""
    file = io.BytesIO(b"short\n" + b"x" * 1_000_001 + b"y" * 1_000_000)
    result = CliRunner().invoke(main, ["demo", "--input", "-"], input=file)
    assert result.exit_code == 2
    assert result.stderr.endswith("'--input': has more than 1,000,000 bytes in line 2\n")


def test_too_much_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input without an end is refused once it is too much to keep."""
    # By name, `localdelay.cli.demo` is the command.
    monkeypatch.setattr(sys.modules["localdelay.cli.demo"], "_MAX_INPUT_BYTES", 1000)
    result = run("--input", "-", input=b"x" * 500 + b"\n" + b"x" * 501)
    assert result.exit_code == 2
    assert "'--input': has more than 1 kB" in result.stderr


def test_too_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """More lines than the demo can keep are cut where `--seconds` says so, and refused where it does not."""
    monkeypatch.setattr(scenes, "MAX_MESSAGES", 10)
    result = run("--input", "-", input=b"x\n" * 11)
    assert result.exit_code == 2
    assert "'--input': has more than 10 lines" in result.stderr
    assert len(messages_of(monkeypatch, "--input", "-", input=b"x\n" * 10)) == 10


def test_without_the_client() -> None:
    """Without the extra the demo says in one line what to install, and other commands work."""
    process = commands.in_python("demo", without="nats")
    assert process.returncode == 2
    assert (
        process.stderr == "Error: the demo needs a NATS client and server: pip install 'localdelay[demo]'\n"
    )
    assert commands.in_python("plan", "--help", without="nats").returncode == 0


def test_without_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, and with no server on the PATH, likewise."""

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("PATH", "/nowhere")
    result = run()
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'localdelay[demo]'" in result.stderr


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """A server that ends at once is an error in one line, and leaves no files."""
    monkeypatch.setattr(servers, "find_server", lambda: "/bin/false")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    result = run()
    assert result.exit_code == 2
    assert result.stderr == ("Error: the NATS server does not start; it has said nothing\n")


@pytest.mark.parametrize(
    ("signum", "code", "pause"),
    [
        (signal.SIGINT, 130, 0.0),
        (signal.SIGINT, 130, 0.1),
        (signal.SIGINT, 130, 1.2),  # when all is published, and nothing is due yet
        (signal.SIGTERM, 143, 0.5),
    ],
)
def test_a_signal_ends_it(temporary: Path, signum: signal.Signals, code: int, pause: float) -> None:
    """Ctrl-C in the first run, or a SIGTERM: one line, no traceback, no server and no files left."""
    with started(temporary, "--seconds", "1", "--delay", "60") as process:
        pid = server_pid(temporary)
        time.sleep(pause)
        process.send_signal(signum)
        _, said = process.communicate(timeout=200)
    assert process.returncode == code
    assert said.splitlines()[-1] == "Stopped. No NATS server is left behind."
    assert all(line.startswith("plain: ") for line in said.splitlines()[:-1])
    assert not runs(pid)


def test_ctrl_c_while_messages_wait_here(temporary: Path) -> None:
    """Ctrl-C in the second run, when the local queue holds messages, ends it in the same way."""
    with started(temporary, "--seconds", "0.5", "--delay", "1.5") as process:
        pid = server_pid(temporary)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("with localdelay: "):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    *progress, last = said.splitlines()
    assert last == "Stopped. No NATS server is left behind."
    assert all(line.startswith("with localdelay: ") for line in progress)
    assert not runs(pid)


def test_nothing_is_left_of_a_demo_that_was_killed(temporary: Path) -> None:
    """Even SIGKILL leaves no server and no files: the guard sees to that."""
    with started(temporary) as process:
        pid = server_pid(temporary)
        process.kill()
        process.communicate(timeout=200)
    deadline = time.monotonic() + 100
    while (runs(pid) or list(temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(pid)


def test_a_server_that_dies(temporary: Path) -> None:
    """When the server ends in mid-run, so does the demo, in one line."""
    with started(temporary) as process:
        os.kill(server_pid(temporary), signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 2
    *progress, last = said.splitlines()
    assert last.startswith("Error: the NATS server has ended by itself; its last words: ")
    assert all(line.startswith("plain: ") for line in progress)


async def test_a_peak_that_this_machine_has_no_time_for() -> None:
    """Publishes that have waited too long for a server that answers: it is the demo that did not keep up."""
    run = Run("plain")

    async def publish(*_: object) -> None:
        run.start, run.refused, run.primary = trio.current_time() - 12.5, 5, [0.1, 0.2]
        raise ExceptionGroup("", [TimeoutError("it took no more within 10 s")] * 2)

    scene = scenes.Scene([b"x"] * 9000, 4500.0, 1.0)
    async with servers.running_server(max_buffered=20) as server:
        with pytest.raises(servers.ServerError) as raised:
            await scenes._one_run(run, publish, scene, server, lambda _: None)
    assert str(raised.value) == (
        "the demo could not keep up on this machine: of 9,000 publishes at 4,500/s 7 had an answer after "
        "12.5 s; try a lower --rate"
    )
