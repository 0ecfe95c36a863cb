"""Systems that lack what POSIX has: Windows has neither `fork` nor `fcntl`."""

from __future__ import annotations

import sys

import pytest

from tests.kit.programs import ran

TAKEN_AWAY = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["termios"] = None
del os.fork, os.register_at_fork, signal.SIGHUP
"""


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", TAKEN_AWAY + code]
    done = ran(*command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_plan_works_without_what_posix_has() -> None:
    """The sizing needs nothing of the system's, and so the command works wherever Python does."""
    shown = run(
        "from localdelay.cli import main\n"
        "main('plan --qps 100000 --delay 2m --instances 500 --message-bytes 500 --worker-qps 10'.split())"
    )
    assert "24,000" in shown


@pytest.mark.parametrize("module", ["threads", "journal.sqlite", "brokers.stdout", "relay.run", "testing"])
def test_modules_are_imported_without_what_posix_has(module: str) -> None:
    """What needs it says so when it is used, and not when it is imported."""
    assert run(f"import localdelay.{module}; print(localdelay.Message)") != ""


def test_a_queue_runs_without_what_posix_has() -> None:
    """A message is held and sent."""
    sent = run(
        "import localdelay, trio\n"
        "async def send(message): print(message.payload)\n"
        "async def main():\n"
        "    async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:\n"
        "        queue.put_nowait(b'due', delay=0.01)\n"
        "trio.run(main)"
    )
    assert sent == "b'due'\n"
