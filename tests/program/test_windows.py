"""What works where there are no forks, no terminals of Unix and no file locks: as on Windows."""

from __future__ import annotations

import json
import subprocess
import sys

# Other libraries are imported first: they see a Unix, and take what it has.
WITHOUT_UNIX = """
import os, select, signal, sys
import click, hdrh.histogram, rich.console, trio
sys.modules.update(dict.fromkeys(("fcntl", "termios", "pty", "resource", "pwd", "grp"), None))
del os.fork, os.register_at_fork, os.getuid, os.geteuid, signal.SIGHUP, select.poll
"""


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX + code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_library_can_be_imported() -> None:
    """With all its faces, and a queue works."""
    code = """
import localdelay, localdelay.aio, localdelay.testing, localdelay.threads
async def main():
    sender = localdelay.testing.RecordingSender()
    async with localdelay.open_delay_queue(sender, capacity=9, workers=1) as queue:
        await queue.put(b"x", delay=0.01)
    print(len(sender.sent))
trio.run(main)
"""
    assert python(code).stdout == "1\n"


def test_plan_works() -> None:
    """So does the help, which looks at every command."""
    code = "from localdelay.cli import main; main(sys.argv[1:], prog_name='localdelay')"
    figures = ["--qps", "1000", "--delay", "2m", "--instances", "5", "--message-bytes", "500"]
    process = python(code, "plan", *figures, "--worker-qps", "10", "--json")
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["capacity"] == 24_000
    process = python(code, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert "\n  relay " in process.stdout
