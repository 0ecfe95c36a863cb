"""Programs of these tests in processes of their own: started, signalled, and read."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from tests.kit.faults.victim import BEGUN, CANCELLED, CANCELLING, MARKS, NOT_CANCELLED

_ROOT = Path(__file__).parents[2]
_START_TIMEOUT = 150.0

T = TypeVar("T", bound="Child")


def epoch() -> float:
    """Unix time minus `time.monotonic()`."""
    return time.time() - time.monotonic()


class Failed(Exception):
    """A process ended otherwise than it should."""


class Child:
    """`python -m MODULE ORDERS`, until the `with` block is left."""

    def __init__(
        self, module: str, orders: attrs.AttrsInstance, environ: Mapping[str, str] | None = None
    ) -> None:
        self._read = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `__exit__`)
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(attrs.asdict(orders))],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._errors.close()

    def wait_ready(self) -> None:
        """Wait until it has said so."""
        line = self._line(_START_TIMEOUT)
        if line != "ready":
            self._fail(f"it said {line!r} instead of ready")

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._child.kill()
        self._child.wait()

    def report(self, timeout: float) -> dict[str, Any]:
        """What it says in the end, once it has ended by itself."""
        line = self._line(timeout)
        try:
            code = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail("it does not end")
        if code or not line:
            self._fail(f"it has ended with {code}")
        told: dict[str, Any] = json.loads(line)
        return told

    def _line(self, timeout: float) -> str:
        assert self._child.stdout is not None
        pipe, until = self._child.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._read:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self._fail(f"it says nothing for {timeout:g} s")
            some = os.read(pipe, 1 << 16)
            if not some:
                break
            self._read += some
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def _fail(self, why: str) -> None:
        self.kill()
        self._errors.seek(0)
        words = "\n".join(self._errors.read().decode(errors="replace").splitlines()[-30:])
        raise Failed(f"{why}\n{words}")


def read_log(path: Path) -> dict[str, str]:
    """Ids by keys, of all that was accepted."""
    return {key: id for key, id in _lines(path) if key[0] not in MARKS}


def read_begun(path: Path) -> set[str]:
    """The keys of all that somebody has begun to put."""
    return {key[1:] for key, _ in _lines(path) if key[0] == BEGUN}


def read_cancelled(path: Path) -> tuple[set[str], set[str]]:
    """The keys of what was cancelled, and of what a kill came in between."""
    marked = {mark: {key[1:] for key, _ in _lines(path) if key[0] == mark} for mark in MARKS}
    return marked[CANCELLED], marked[CANCELLING] - marked[CANCELLED] - marked[NOT_CANCELLED]


def _lines(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    text = path.read_text()
    assert not text or text.endswith("\n"), "a line was torn"
    return [line.split(" ", 1) for line in text.splitlines()]
