"""Starting the process of a plan, and hearing what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from localdelay.brokers.address import hide_secrets
from localdelay.errors import LocalDelayError

from .child import Job

_MODULE = "localdelay.compare.child"
_MOST = 50_000_000
"""Bytes of one line."""


class CompareError(LocalDelayError):
    """The comparison could not run."""


class Child:
    """One process that does one job."""

    def __init__(self, process: trio.Process, job: Job, stderr: str) -> None:
        self._process = process
        self._job = job
        self._stderr = stderr
        self._received = b""

    async def message(self) -> dict[str, Any]:
        """What it says next. Raises `CompareError` for an error of its, and where it has ended."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 (for mypy)
        while b"\n" not in self._received:
            more = await stdout.receive_some()
            if not more or len(self._received) > _MOST:
                raise CompareError(f"the process of {self._job.plan} has ended; {self._last_words()}")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise CompareError(hide_secrets(said["error"], self._job.server))
        return said

    async def result(self, on_step: Callable[[str], None]) -> dict[str, Any]:
        """What it comes to."""
        while True:
            said = await self.message()
            if "result" in said:
                found: dict[str, Any] = said["result"]
                return found
            on_step(said["step"])

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()

    def _last_words(self) -> str:
        try:
            with open(self._stderr, errors="replace") as file:  # noqa: PTH123 (a few bytes of a small file)
                lines = file.read()[-10_000:].splitlines()
        except OSError:
            lines = []
        return f"its last words: {lines[-1]}" if lines else "it has said nothing"


@asynccontextmanager
async def running(job: Job) -> AsyncIterator[Child]:
    """The process that does this, for the length of an `async with` block; then it is killed."""
    log = job.directory / "stderr"
    with log.open("ab") as stderr:
        # In a session of its own: Ctrl-C is for this process, which ends it.
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        assert process.stdin is not None  # noqa: S101 (for mypy)
        with suppress(trio.BrokenResourceError):  # it has ended: `message` says so
            await process.stdin.send_all(job.line())
        yield Child(process, job, str(log))
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
