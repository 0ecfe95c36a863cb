"""`localdelay bench`: its options, what it prints and writes, and how it is stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from localdelay.benchmark import hlog, plot
from localdelay.benchmark.load import Delays
from localdelay.cli import main
from localdelay.cli.loads import parse_delays, parse_rate
from localdelay.demo.server import running_server
from tests.kit.catching import until_it_catches

COMMAND = str(Path(sysconfig.get_path("scripts"), "localdelay"))
SMALL = ["--rate", "1k", "--seconds", "0.3", "--delay", "100ms", "--warmup", "0"]


def run(*args: str) -> Result:
    environment = {"COLUMNS": "80", "FORCE_COLOR": None, "TTY_COMPATIBLE": None}
    return CliRunner().invoke(main, ["bench", *args], prog_name="localdelay", env=environment)


def test_the_report_of_a_real_run() -> None:
    """A table of 80 columns at most on standard output, and plain lines of progress on the other."""
    result = run(*SMALL)
    assert result.exit_code == 0, result.output
    printed = result.stdout.splitlines()
    assert printed[0] == "1,000 messages/s for 300 ms, each due after 100 ms"
    assert printed[1] == "500 bytes, 20 workers, one message a send"
    assert printed[3].split() == ["p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert [line.split("  ")[0] or line.split()[0] for line in printed[4:7]] == ["latency", "puts", "queue"]
    assert "300 of 300 put, 300 sent, 0 unsent, 0 early;" in result.stdout
    assert "\x1b" not in result.output
    assert max(map(len, printed)) <= 80
    progress = result.stderr.splitlines()
    assert re.fullmatch(r"0\.\d of 0\.4 s  [\d,]+/s put  \d+ pending  \d+ sent", progress[0])


def test_json_of_a_real_run() -> None:
    """One object with everything that was measured, its settings and its machine; nothing else is said."""
    result = run(*SMALL, "--json", "--batch", "50", "--delay", "0,50ms", "--seed", "9", "--no-cancellable")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    shown = json.loads(result.stdout)
    assert shown["settings"] == {
        "to": None,
        "rate": [1_000.0, 1_000.0],
        "seconds": 0.3,
        "delays": [0.0, 0.05],
        "delay_is_range": False,
        "size": 500,
        "workers": 20,
        "batch": 50,
        "warmup": 0.0,
        "seed": 9,
        "cancellable": False,
        "timer": "auto",
    }
    assert shown["machine"].keys() == {"cores", "system", "python", "trio", "localdelay"}
    names = ["count", "p50", "p90", "p99", "p999", "p9999", "max"]
    for name in ("latency", "queue_lateness", "put_lateness", "send_time"):
        assert list(shown[name]) == names
    latency = shown["latency"]
    assert [latency[name] for name in names[1:]] == sorted(latency[name] for name in names[1:])
    assert (shown["offered"], shown["put"], shown["sent"], latency["count"]) == (300, 300, 300, 300)
    assert (shown["unsent"], shown["refused"], shown["early"], shown["failures"]) == (0, 0, 0, 0)
    assert shown["stopped_by"] is shown["failure"] is shown["held_up_to"] is None
    assert shown["held"] in (True, False)
    assert shown["cpu_us_per_message"] > 0
    assert 0 < shown["cpu_share"] < 4
    assert shown["compare"] == []
    assert "intervals" not in shown


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
    process = subprocess.run(
        [
            "/bin/sh",
            "-c",
            '"$0" bench "$@" | head -n 1',
            COMMAND,
            *SMALL,
            "--hlog",
            str(tmp_path / "run.hlog"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.stdout.count("\n") == 1
    assert "Traceback" not in process.stderr
    assert hlog.read(tmp_path / "run.hlog").intervals


def test_a_file_that_can_not_be_written_after_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report is printed, the file is named in one line, and the exit code is 2."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hlog, "write", full)
    result = run(*SMALL, "--hlog", str(tmp_path / "run.hlog"))
    assert result.exit_code == 2
    said = f"Error: '{tmp_path / 'run.hlog'}' can't be written: No space left on device"
    assert result.stderr.splitlines()[-1] == said
    assert "latency" in result.stdout


def shell(redirected: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a small load with standard output or error sent elsewhere, as a shell does it."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" bench "$@" {redirected}', COMMAND, *SMALL, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


@pytest.mark.parametrize("redirected", ["2>&-", pytest.param("2>/dev/full", marks=FULL)])
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_progress_that_can_not_be_shown(redirected: str, args: list[str]) -> None:
    """Standard error may be closed or full: the report is printed all the same."""
    process = shell(redirected, *args)
    assert process.returncode == 0
    assert "latency" in process.stdout
    assert "Error" not in process.stdout


@FULL
def test_an_error_that_can_not_be_shown() -> None:
    """The exit code tells it, and nothing else gets into the report."""
    for redirected in ("2>&-", "2>/dev/full"):
        process = shell(redirected, "--json", "--hlog", "/dev/full")
        assert process.returncode == 2
        assert json.loads(process.stdout)["sent"] == 300


@FULL
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_a_report_that_can_not_be_printed(args: list[str], tmp_path: Path) -> None:
    """One line with the reason, and exit code 1; the files are written."""
    log, picture = tmp_path / "run.hlog", tmp_path / "run.svg"
    process = shell(">/dev/full", *args, "--hlog", str(log), "--plot", str(picture))
    assert process.returncode == 1
    *progress, said = process.stderr.splitlines()
    assert said == "Error: standard output can't be written to: No space left on device"
    assert all(" of 0.4 s " in line for line in progress)
    assert sum(interval.count for interval in hlog.read(log).intervals) == 300
    assert picture.stat().st_size


@FULL
def test_a_full_disk(tmp_path: Path) -> None:
    """The file is named as it was given, and whatever has room is written, the report too."""
    picture, full = tmp_path / "run.svg", tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    process = shell("", "--hlog", "/dev/full", "--plot", str(picture))
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == ("Error: '/dev/full' can't be written: No space left on device")
    assert "latency" in process.stdout
    assert picture.stat().st_size
    process = shell("", "--json", "--hlog", "/dev/full", "--plot", str(full))
    assert process.returncode == 2
    assert process.stderr == (
        "Error: '/dev/full' can't be written: No space left on device; "
        f"'{full}' can't be written: No space left on device\n"
    )


@pytest.mark.parametrize("options", [[], ["--batch", "5"]])
async def test_a_run_through_a_real_broker(options: list[str]) -> None:
    """One by one or in batches, messages reach the subject of the URL; no password is shown."""
    async with running_server(max_buffered=100_000) as server:
        import trio_asyncio
        from nats.aio.client import Client

        from localdelay.brokers.nats import connected

        client = Client()
        async with connected(client, server.url):
            jetstream = client.jetstream()
            await trio_asyncio.aio_as_trio(jetstream.add_stream)(name="T", subjects=["due"], storage="memory")
            url = server.url.replace("//", "//user:hunter2@") + "/due"
            process = await trio.run_process(
                [COMMAND, "bench", "--to", url, *SMALL, "--json", *options],
                capture_stdout=True,
                capture_stderr=True,
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
            [COMMAND, "bench", "--to", f"{server.url}/nowhere", *SMALL],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert process.returncode == 2
    *progress, error = process.stderr.decode().splitlines()
    assert error.startswith("Error: no send succeeds: PermanentSendError")
    assert all(" of 0.4 s " in line for line in progress)
    assert process.stdout == b""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--rate", "0"], "'--rate': must be over 0 and at most 100,000,000 a second, not 0"),
        (["--rate", "-1"], "'--rate': '-1' is no rate; write 500, 10k, 1.5M or 1k..100k"),
        (["--rate", "fast"], "'--rate': 'fast' is no rate"),
        (["--rate", "1k.."], "'--rate': '1k..' is no rate"),
        (["--rate", "1k..2k..3k"], "'--rate': '1k..2k..3k' is no rate"),
        (["--rate", "1G"], "'--rate': '1G' is no rate"),
        (["--rate", "nan"], "'--rate': 'nan' is no rate"),
        (["--rate", "9" * 500], "'--rate': '999"),
        (["--rate", "1..200M"], "'--rate': must be over 0 and at most"),
        (["--seconds", "0"], "'--seconds': must be finite and at least 0.001"),
        (["--seconds", "2d"], "'--seconds': must be at most 86,400, not 172,800"),
        (["--seconds", "soon"], "'--seconds': 'soon' is no duration"),
        (["--delay", "-1"], "'--delay': a duration can't be negative"),
        (["--delay", "1s,"], "'--delay': '' is no duration"),
        (["--delay", "1s..soon"], "'--delay': 'soon' is no duration"),
        (["--delay", "5s..1s"], "'--delay': must be a range from the shorter to the longer"),
        (["--delay", "2d"], "'--delay': must be at most 86,400 seconds"),
        (["--size", "7"], "'--size': must be finite and at least 8"),
        (["--size", "big"], "'--size': 'big' is no size"),
        (["--workers", "0"], "'--workers': must be finite and at least 1"),
        (["--workers", "many"], "'--workers': 'many' is not a valid integer"),
        (["--to", "stdout:"], "'--to': must be a broker: standard output is for the report"),
        (["--batch", "0"], "'--batch': must be finite and at least 1"),
        (["--warmup", "-1"], "'--warmup': a duration can't be negative"),
        (["--seed", "x"], "'--seed': 'x' is not a valid integer"),
        (["--timer", "sundial"], "'--timer': 'sundial' is not one of"),
        (["--to", "mqtt://host/topic"], "'--to': must begin with one of kafka://"),
        (["--to", "nats://user:hunter2@host"], "'--to': must end with the subject to publish to"),
        (["--to", "nats://127.0.0.1:1/orders"], "no connection to the NATS server"),
        (["--hlog", "/no/such/run.hlog"], "'--hlog': '/no/such/run.hlog' is no file in a directory"),
        (["--hlog", "/"], "'--hlog': '/' is no file in a directory"),
        (["--plot", "run.jpeg"], "'--plot': 'run.jpeg' must end in .svg or .png"),
        (["--plot", "/no/such/run.svg"], "'--plot': '/no/such/run.svg' is no file"),
        (["--compare", "/no/such"], "'--compare': '/no/such' can't be read: No such file"),
        (
            ["--compare", os.devnull],
            "'--compare': '/dev/null' can't be used: it is no regular file",
        ),
        (["--compare", "/dev/zero"], "'--compare': '/dev/zero' can't be used: it is no regular file"),
        (["--compare", __file__], "can't be used: it is no log of localdelay bench"),
        (
            ["--rate", "1M", "--delay", "1d", "--seconds", "1d"],
            "'--delay': is too long for this rate and size",
        ),
        (["--colour"], "No such option '--colour'"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_bad_options(args: list[str], said: str) -> None:
    """What is wrong is said in one line that names the option, with exit code 2, and nothing runs."""
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "hunter2" not in result.stderr


def test_a_picture_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib it is said before the run, with the command."""
    monkeypatch.setattr(plot, "available", lambda: False)
    result = run(*SMALL, "--plot", "run.svg")
    assert result.exit_code == 2
    assert result.stderr == "Error: --plot needs matplotlib: pip install 'localdelay[plot]'\n"


def test_a_broker_needs_the_extra() -> None:
    """Without the client it is said in one line; the benchmark itself needs neither it nor matplotlib."""
    code = (
        "import sys; sys.modules.update(nats=None, trio_asyncio=None, matplotlib=None); "
        "from localdelay.cli import main; main(sys.argv[1:])"
    )

    def python(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False
        )

    process = python("bench", "--to", "nats://host/orders")
    assert process.returncode == 2
    assert process.stderr == "Error: nats:// needs a client: pip install 'localdelay[nats]'\n"
    assert python("bench", *SMALL).returncode == 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500", (500.0, 500.0)),
        ("0.5", (0.5, 0.5)),
        (".5k", (500.0, 500.0)),
        ("10K", (10_000.0, 10_000.0)),
        ("1.5M", (1_500_000.0, 1_500_000.0)),
        ("1k..100k", (1_000.0, 100_000.0)),
        (" 2k .. 500 ", (2_000.0, 500.0)),
    ],
)
def test_rates(text: str, rate: tuple[float, float]) -> None:
    """A number, with k or M, or a ramp from one to another."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "delays"),
    [
        ("2", Delays((2.0,))),
        ("100ms..5s", Delays((0.1, 5.0), is_range=True)),
        (".5..1", Delays((0.5, 1.0), is_range=True)),
        ("1s,5s,30s", Delays((1.0, 5.0, 30.0))),
        ("1 s, 2 min", Delays((1.0, 120.0))),
    ],
)
def test_delays(text: str, delays: Delays) -> None:
    """One, a range, or several."""
    assert parse_delays(text) == delays


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
    process = subprocess.Popen(
        [COMMAND, "bench", "--seconds", "60", "--warmup", "0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    if args[0] == "--delay":
        process.stderr.readline()
    else:
        until_it_catches(process.pid, signal.SIGTERM)
    process.send_signal(signum)
    began = time.monotonic()
    printed, told = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert told.splitlines()[-1].startswith(said)
    assert "Traceback" not in told
    assert ("latency" in printed) == ("after" in said)


def test_ctrl_c_leaves_the_files_of_what_was_measured(tmp_path: Path) -> None:
    """The object says that it was stopped, and the log holds as many latencies as it counts."""
    log = tmp_path / "run.hlog"
    process = subprocess.Popen(
        [COMMAND, "bench", "--seconds", "60", "--delay", "0", "--warmup", "0", "--hlog", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    sent = re.search(r"([\d,]+) sent", printed)
    assert sent is not None
    count = int(sent[1].replace(",", ""))
    assert sum(interval.count for interval in hlog.read(log).intervals) == count > 0
    assert "eld: " not in printed


def test_one_live_line_on_a_terminal() -> None:
    """On a terminal the progress is one line that changes, no wider than it, and gone at the end."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "bench", *SMALL, "--seconds", "1"],
        stdout=subprocess.PIPE,
        stderr=secondary,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "40"},
    )
    os.close(secondary)
    shown = b""
    while select.select([primary], [], [], 20)[0]:
        try:
            shown += os.read(primary, 4096)
        except OSError:  # the other end is closed
            break
    os.close(primary)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"\n" not in shown
    *states, rest = shown.decode().split("\x1b[K")
    assert rest == ""
    assert states[-1] == "\r", "the line is wiped"
    assert len(states) >= 3
    assert all(state.startswith("\r") and len(state) <= 40 for state in states)


def test_help_fits_80_columns() -> None:
    """Every option is explained, and no line is longer than a terminal."""
    result = run("--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert {"--to", "--rate", "--seconds", "--delay", "--size", "--workers", "--batch", "--warmup"} <= set(
        re.findall(r"--\w+", result.stdout)
    )
