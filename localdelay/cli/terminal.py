"""What the commands share of the terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


def ask(question: str) -> bool | None:
    """Ask on standard error, and read the answer from standard input; None: nobody answers, or Ctrl-C."""
    try:
        while True:
            click.echo(f"{question} [y/N]: ", err=True, nl=False)
            line = _read_line()
            answer = line.strip().lower()
            if answer in ("y", "yes"):
                return True
            if line and answer in ("", "n", "no"):
                return False
            if not line:
                break
            click.echo("Error: invalid input", err=True)
    except KeyboardInterrupt:
        pass
    click.echo(err=True)
    return None


def _read_line() -> str:
    """A line of standard input; "" where it has ended. Ctrl-C is never missed."""
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError):  # it was closed before Python began, or is no file
        return sys.stdin.readline() if sys.stdin else ""
    if sys.platform == "win32":  # which can wait for sockets only
        return sys.stdin.readline()
    line = b""
    with _woken_by_signals() as signals:
        # A signal that comes between Python's last look for one and the read would not be seen while that
        # goes on: nothing would interrupt it. So it has to end a wait that it is one of the reasons to end.
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor, signals], [], [])
            if signals in ready:
                os.read(signals, 512)
                continue
            # A byte at a time: what comes after the line is another answer.
            byte = os.read(descriptor, 1)
            if not byte:
                break
            line += byte
    return line.decode(sys.stdin.encoding, "replace")


@contextmanager
def _woken_by_signals() -> Iterator[int]:
    """A descriptor that can be read from as soon as there is a signal."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
