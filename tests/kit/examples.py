"""Programs that serve, for the tests that use them as their users do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest


def need(*modules: str) -> None:
    """Skip the test where one of them is missing, or fail it with LOCALDELAY_REQUIRE_BROKERS=1."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        said = f"{', '.join(missing)} not installed: python -m pip install --group examples"
        if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
            pytest.fail(said)
        pytest.skip(said)


@contextmanager
def serving(
    directory: Path, command: Sequence[str], port: int, needs: Sequence[str] = (), **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """A module's program (`["uvicorn", ...]`) that has begun to listen; killed at the end, with its workers.

    `communicate()` of what is yielded gives all it has printed, errors among it.
    """
    need(command[0], *needs)
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    process.communicate()[0] if process.poll() is not None else "does not listen"
                )
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
