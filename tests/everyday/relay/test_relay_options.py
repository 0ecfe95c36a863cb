"""The options of `localdelay relay`."""

from __future__ import annotations

import os
import signal
from typing import cast

import pytest
from click.testing import Result

from localdelay import DelayQueue
from localdelay.cli.relay import Display
from localdelay.cli.terminal import Teller
from localdelay.relay.settings import Settings
from tests.kit import commands

TO_STDOUT = ["--to", "stdout:"]


def run(*args: str) -> Result:
    return commands.run("relay", *args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Missing option '--to'"),
        (["--to", "stdout:"], "'--delay': must be given for text"),
        (["--to", "nowhere", "--delay", "1"], "'--to': must begin with one of kafka://"),
        (["--to", "stdout", "--delay", "1"], "did you mean stdout:"),
        (["--to", "nats://host:99999/orders", "--delay", "1"], "'--to': must have a port from 1 to 65535"),
        (["--to", "nats://user:hunter2@host", "--delay", "1"], "'--to': must end with the subject"),
        ([*TO_STDOUT, "--delay", "-1"], "'--delay': a duration can't be negative"),
        ([*TO_STDOUT, "--delay", "soon"], "'--delay': 'soon' is no duration"),
        (
            [*TO_STDOUT, "--delay", "1", "--format", "csv"],
            "'--format': 'csv' is not one of 'text', 'jsonl'",
        ),
        ([*TO_STDOUT, "--delay", "1", "--workers", "0"], "'--workers': must be at least 1, not 0"),
        ([*TO_STDOUT, "--delay", "1", "--workers", "many"], "'--workers': 'many' is no number"),
        ([*TO_STDOUT, "--delay", "1", "--batch", "0"], "'--batch': must be at least 1, not 0"),
        ([*TO_STDOUT, "--delay", "1", "--capacity", "0"], "'--capacity': must be at least 1, not 0"),
        ([*TO_STDOUT, "--delay", "1", "--capacity-bytes", "0"], "'--capacity-bytes': must be at least 1"),
        ([*TO_STDOUT, "--delay", "1", "--capacity-bytes", "big"], "'--capacity-bytes': 'big' is no size"),
        ([*TO_STDOUT, "--delay", "1", "--max-line", "0"], "'--max-line': must be at least 1, not 0"),
        ([*TO_STDOUT, "--delay", "1", "--attempts", "0"], "'--attempts': must be at least 1, not 0"),
        ([*TO_STDOUT, "--delay", "1", "--send-timeout", "0"], "'--send-timeout': must be more than 0"),
        ([*TO_STDOUT, "--delay", "1", "--grace", "-5"], "'--grace': a duration can't be negative"),
        ([*TO_STDOUT, "--delay", "1", "--unsent", "/no/such"], "'--unsent': '/no/such' is no file in"),
        ([*TO_STDOUT, "--delay", "1", "--dead-letters", "/"], "'--dead-letters': '/' is no file in"),
        (
            [*TO_STDOUT, "--delay", "1", "--metrics", "65536"],
            "'--metrics': '65536' is no port: write a number",
        ),
        ([*TO_STDOUT, "--colour"], "No such option '--colour'"),
        ([*TO_STDOUT, "--delay", "1", "file"], "unexpected extra argument"),
    ],
)
def test_bad_options(args: list[str], said: str) -> None:
    """What is wrong is said in one line that names the option, with exit code 2, and nothing is read."""
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_around_a_relay(signum: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read they end it; when all is saved they keep nothing from being told."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    display = Display(Teller(), Settings(to="stdout:", delay=1.0))
    display.signal(signum, None)
    assert codes == [128 + signum]
    display.opened(cast("DelayQueue", None))
    display.signal(signum, None)
    assert codes == [128 + signum]


def test_hand_back_to_a_broker_that_has_no_delay() -> None:
    """It is an option that can't be had here."""
    process = commands.in_python("relay", *TO_STDOUT, "--delay", "0", "--hand-back", given="a\n")
    assert (process.returncode, process.stdout) == (2, "")
    said = "Error: Invalid value for '--hand-back': needs a broker that has a delay"
    assert process.stderr.startswith(said)
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "url", "said"),
    [
        ("relay", "redis://127.0.0.1:1/x?db=zz", "can't be used: db must be a whole number"),
        ("bench", "kafka://127.0.0.1:1/x?acks=7", "can't be used: options that librdkafka does not take"),
    ],
)
def test_an_option_that_only_the_client_knows_to_be_wrong(command: str, url: str, said: str) -> None:
    """It is one line that names the option of the command."""
    process = commands.in_python(command, "--to", url, "--delay", "1")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"Error: Invalid value for '--to': {said}")
    assert process.stderr.count("\n") == 1
