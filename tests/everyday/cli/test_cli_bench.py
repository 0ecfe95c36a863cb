"""`localdelay bench`: its options, what it prints, and what it writes."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import Result

from localdelay.benchmark import plot
from localdelay.benchmark.load import Delays
from localdelay.cli.options import parse_delays, parse_rate
from tests.kit import commands
from tests.kit.commands import FULL

SMALL = ["--rate", "1k", "--seconds", "0.3", "--delay", "100ms", "--warmup", "0"]


def run(*args: str) -> Result:
    return commands.run("bench", *args)


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


@FULL
def test_a_log_that_can_not_be_written() -> None:
    """It was measured: the report is there, and exit code 1 says what is not."""
    result = run(*SMALL, "-q", "--hlog", "/dev/full")
    assert (result.exit_code, result.stdout.count("latency")) == (1, 1)
    assert result.stderr == "Error: '/dev/full' can't be written: No space left on device\n"


def test_a_picture_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib it is said before the run, with the command."""
    monkeypatch.setattr(plot, "available", lambda: False)
    result = run(*SMALL, "--plot", "run.svg")
    assert result.exit_code == 2
    assert result.stderr == "Error: --plot needs matplotlib: pip install 'localdelay[plot]'\n"


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
