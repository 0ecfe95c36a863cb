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
