"""`localdelay bench` as a program: a full disk, a real broker, and signals."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import trio

from localdelay.benchmark import hlog
from localdelay.demo.server import running_server
from tests.kit.catching import until_it_catches
from tests.kit.commands import COMMAND, FULL, in_python, run, running, shell, told

SMALL = ["bench", "--rate", "1k", "--seconds", "0.3", "--delay", "100ms", "--warmup", "0"]


def test_files_of_a_real_run(tmp_path: Path) -> None:
    """The log has every latency; the picture is drawn; a log can be laid beside the next run."""
    log, picture, both = tmp_path / "first.hlog", tmp_path / "run.svg", tmp_path / "both.png"
    first = run(*SMALL, "--json", "--hlog", str(log), "--plot", str(picture))
    assert first.exit_code == 0, first.output
    written = hlog.read(log)
    assert sum(interval.count for interval in written.intervals) == 300
    latency = json.loads(first.stdout)["latency"]
    assert max(interval.longest for interval in written.intervals) == pytest.approx(latency["max"], abs=1e-6)
    assert written.began_at == pytest.approx(time.time(), abs=60)
    assert "How late sends begin: 1,000 messages/s, each due after 100 ms" in picture.read_text()
    second = run(*SMALL, "--plot", str(both), "--compare", str(log), "--compare", str(log))
    assert second.exit_code == 0, second.output
    assert both.read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^first ", second.stdout, re.MULTILINE)) == 2
    third = run(*SMALL, "--json", "--compare", str(log))
    assert json.loads(third.stdout)["compare"][0]["name"] == "first"
    assert json.loads(third.stdout)["compare"][0]["latency"]["count"] == 300


def test_files_are_there_though_the_reader_has_gone(tmp_path: Path) -> None:
    """Whoever reads the report may leave: no traceback, and the log is written."""
    process = shell('"$@" | head -n 1', *SMALL, "--hlog", tmp_path / "run.hlog")
    assert process.stdout.count(b"\n") == 1
    assert b"Traceback" not in process.stderr
    assert hlog.read(tmp_path / "run.hlog").intervals


@pytest.mark.parametrize("redirected", ["2>&-", pytest.param("2>/dev/full", marks=FULL)])
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_progress_that_can_not_be_shown(redirected: str, args: list[str]) -> None:
    """Standard error may be closed or full: the report is printed all the same."""
    process = shell(f'"$@" {redirected}', *SMALL, *args)
    assert process.returncode == 0
    assert b"latency" in process.stdout
    assert b"Error" not in process.stdout


@FULL
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_a_report_that_can_not_be_printed(args: list[str], tmp_path: Path) -> None:
    """One line with the reason, and exit code 1; the files are written."""
    log, picture = tmp_path / "run.hlog", tmp_path / "run.svg"
    process = shell('"$@" >/dev/full', *SMALL, *args, "--hlog", str(log), "--plot", str(picture))
    assert process.returncode == 1
    *progress, said = told(process)
    assert said == "Error: standard output can't be written to: No space left on device"
    assert all(" of 0.4 s " in line for line in progress)
    assert sum(interval.count for interval in hlog.read(log).intervals) == 300
    assert picture.stat().st_size


@FULL
def test_a_full_disk(tmp_path: Path) -> None:
    """The file is named as it was given, and whatever has room is written, the report too."""
    picture, full = tmp_path / "run.svg", tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    process = shell('"$@"', *SMALL, "--hlog", "/dev/full", "--plot", str(picture))
    assert process.returncode == 1
    assert told(process)[-1] == ("Error: '/dev/full' can't be written: No space left on device")
    assert b"latency" in process.stdout
    assert picture.stat().st_size
    process = shell('"$@"', *SMALL, "--json", "--hlog", "/dev/full", "--plot", str(full))
    assert process.returncode == 1
    assert told(process) == [
        "Error: '/dev/full' can't be written: No space left on device; "
        f"'{full}' can't be written: No space left on device"
    ]


@pytest.mark.parametrize("options", [[], ["--batch", "5"]])
async def test_a_run_through_a_real_broker(options: list[str]) -> None:
    """One by one or in batches, messages reach the subject of the URL; no password is shown."""
    async with running_server(max_buffered=100_000) as server:
        from nats.aio.client import Client

        from tests.kit.nats_client import connected, trio_asyncio

        client = Client()
        async with connected(client, server.url):
            jetstream = client.jetstream()
            await trio_asyncio.aio_as_trio(jetstream.add_stream)(name="T", subjects=["due"], storage="memory")
            url = server.url.replace("//", "//user:hunter2@") + "/due"
            process = await trio.run_process(
                [COMMAND, *SMALL, "--to", url, "--json", *options], capture_stdout=True, capture_stderr=True
            )
            info = await trio_asyncio.aio_as_trio(jetstream.stream_info)("T")
    shown = json.loads(process.stdout)
    assert (shown["sent"], info.state.messages) == (300, 300)
    assert shown["send_time"]["count"] > 0
    assert shown["send_time"]["p50"] > 0
    assert shown["settings"]["to"].startswith("nats://***@127.0.0.1:")
    assert "hunter2" not in process.stdout.decode() + process.stderr.decode()


async def test_a_broker_that_takes_nothing() -> None:
    """Without a stream for the subject no send succeeds: one line that says so, and exit code 2."""
    async with running_server(max_buffered=100_000) as server:
        process = await trio.run_process(
            [COMMAND, *SMALL, "--to", f"{server.url}/nowhere"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert process.returncode == 2
    *progress, error = process.stderr.decode().splitlines()
    assert error.startswith("Error: no send succeeds: PermanentSendError")
    assert all(" of 0.4 s " in line for line in progress)
    assert process.stdout == b""


def test_a_broker_needs_the_extra() -> None:
    """Without the client it is said in one line; the benchmark itself needs neither it nor matplotlib."""
    without = "nats matplotlib"
    process = in_python("bench", "--to", "nats://host/orders", without=without)
    assert process.returncode == 2
    assert process.stderr == "Error: nats:// needs a client: pip install 'localdelay[nats]'\n"
    assert in_python(*SMALL, without=without).returncode == 0


@pytest.mark.parametrize(
    ("signum", "code", "args", "said"),
    [
        (signal.SIGINT, 130, ["--warmup", "30"], "Stopped before anything was measured."),
        (signal.SIGINT, 130, ["--delay", "20"], "Stopped before anything was measured."),
        (signal.SIGTERM, 143, ["--delay", "0"], "Stopped after "),
    ],
)
def test_a_signal_ends_it(signum: signal.Signals, code: int, args: list[str], said: str) -> None:
    """At once, with what was measured until then, one line, and no traceback."""
    with running("bench", "--seconds", "60", "--warmup", "0", *args, text=True) as process:
        assert process.stderr is not None
        if args[0] == "--delay":
            process.stderr.readline()
        else:
            until_it_catches(process.pid, signal.SIGTERM)
        process.send_signal(signum)
        began = time.monotonic()
        printed, said_last = process.communicate(timeout=200)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert said_last.splitlines()[-1].startswith(said)
    assert "Traceback" not in said_last
    assert ("latency" in printed) == ("after" in said)


def test_ctrl_c_leaves_the_files_of_what_was_measured(tmp_path: Path) -> None:
    """The object says that it was stopped, and the log holds as many latencies as it counts."""
    log = tmp_path / "run.hlog"
    options = ["--seconds", "60", "--delay", "0", "--warmup", "0", "--hlog", log]
    with running("bench", *options, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=200)
    sent = re.search(r"([\d,]+) sent", printed)
    assert sent is not None
    count = int(sent[1].replace(",", ""))
    assert sum(interval.count for interval in hlog.read(log).intervals) == count > 0
    assert "eld: " not in printed
