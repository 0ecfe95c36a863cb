"""The servers that tests start are ended whatever happens to the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.servers.artifacts import bring
from tests.kit.servers.process import NotInstalled

STARTS = """
import sys, time
from tests.kit.servers.process import Process
process = Process("kept")
process.start(["sleep", "60"], lambda: True)
print(process.pid, process.directory, flush=True)
time.sleep(60)
"""


def test_a_server_does_not_outlive_tests_that_are_killed() -> None:
    """SIGKILL of the tests: their server is gone a moment later, and its directory."""
    with subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        pid, directory = tests.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        assert Path(directory).exists()
        os.kill(tests.pid, signal.SIGKILL)
    until = time.monotonic() + 100
    while (Path(directory).exists() or Path(f"/proc/{pid}/exe").exists()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(directory).exists()
    assert not Path(f"/proc/{pid}/exe").exists()


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Go, or without Java, the line names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, package in (("nsq", "golang-go"), ("kafka", "default-jre-headless")):
        with pytest.raises(NotInstalled, match=f"apt-get install {package}"):
            bring(name)
