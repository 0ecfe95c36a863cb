"""Programs of this process's own, ended whatever happens to it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

_STOP_TIMEOUT = 3.0

# It reads a line that only a tidy end writes. If this process dies of whatever, the pipe closes without one.
_GUARD = 'read -r _ && exit; kill -9 "$1"; rm -rf -- "$2"'


class Guarded:
    """One program and its new directory, both gone at the end of an `async with` block.

    If this process is killed, a watching shell ends the one and removes the other.
    """

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))
        self._process: trio.Process | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    async def start(self, command: Sequence[str]) -> trio.Process:
        """Start the program; it says nothing. To be called again only where the one before has ended."""
        self._release()
        # In a session of its own: Ctrl-C is for this process, which ends the program when it is done with it.
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = process
        self._guard = start_guard(process.pid, self.directory)
        return process

    async def __aenter__(self) -> Guarded:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            if self._process is not None:
                await _end(self._process)
            shutil.rmtree(self.directory, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"done\n")
            self._guard = None


def last_words(log: Path) -> str:
    """The end of a program's log, for an error."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return f"its last words: {lines[-1]}" if lines else "it has said nothing"


def start_guard(pid: int, directory: Path) -> subprocess.Popen[bytes]:
    """A shell that ends the process and removes the directory if we die before we write it a line."""
    return subprocess.Popen(  # noqa: S603 (nothing in it comes from outside)
        ["/bin/sh", "-c", _GUARD, "localdelay-guard", str(pid), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def _end(process: trio.Process) -> None:
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(_STOP_TIMEOUT):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
