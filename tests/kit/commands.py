"""The commands, run in this process, from a shell, and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from localdelay.cli import main

COMMAND = str(Path(sysconfig.get_path("scripts"), "localdelay"))
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


def run(*args: object, input: bytes | None = None, **environ: str) -> Result:
    """Run a command in this process: to start one takes long. No colour, and a known width."""
    environment = {"COLUMNS": "80", "FORCE_COLOR": None, "TTY_COMPATIBLE": None, **environ}
    command = list(map(str, args))
    return CliRunner().invoke(main, command, prog_name="localdelay", env=environment, input=input)


def shell(line: str, *args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `"$@"` is a command, and `$L` is `localdelay`."""
    return subprocess.run(
        ["/bin/sh", "-c", line, "sh", COMMAND, *map(str, args)],
        capture_output=True,
        timeout=200,
        check=False,
        cwd=cwd,
        env={**os.environ, "L": COMMAND},
    )


def in_python(*args: object, given: str = "", without: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a Python of its own, in which these modules can't be imported."""
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))"
    command = [sys.executable, "-c", f"{code}; from localdelay.cli import main; main()", without]
    return subprocess.run(
        [*command, *map(str, args)], input=given, capture_output=True, text=True, timeout=200, check=False
    )


@contextmanager
def full_disk(path: Path) -> Iterator[Path]:
    """A directory on a disk of its own, which has room for one file or directory: a second one fails."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("needs root, to mount a disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def told(process: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines that it has said on standard error."""
    return process.stderr.decode().splitlines()


@contextmanager
def running(*args: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command while it runs; it is killed at the end of the block."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([COMMAND, *map(str, args)], **{**pipes, **options})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def at_a_keyboard(*args: object, shown: str, keys: bytes) -> tuple[str, int]:
    """What a command shows on a terminal of its own, where keys are pressed once it shows this; its code."""
    primary, secondary = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), secondary)
    command = ["setsid", "--ctty", "--wait", COMMAND, *map(str, args)]
    process = subprocess.Popen(command, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}, **streams)
    os.close(secondary)
    found, pressed = b"", False
    try:
        while select.select([primary], [], [], 100)[0]:
            try:
                found += os.read(primary, 4096)
            except OSError:  # the other end is closed
                break
            if not pressed and shown.encode() in found:
                os.write(primary, keys)
                pressed = True
        return found.decode().replace("\r\n", "\n"), process.wait(100)
    finally:
        process.kill()
        process.wait()
        os.close(primary)


def on_a_terminal(
    *args: object, stream: str = "stderr", term: str = "xterm", columns: int = 80, given: bytes = b""
) -> tuple[str, int]:
    """What a command shows where this stream is a terminal, and its exit code."""
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": term}
    shown = b""
    with running(*args, env=environment, **{stream: secondary}) as process:
        os.close(secondary)
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
        while select.select([primary], [], [], 100)[0]:
            try:
                shown += os.read(primary, 4096)
            except OSError:  # the other end is closed
                break
        os.close(primary)
        code = process.wait(100)
    return shown.decode().replace("\r\n", "\n"), code
