"""The contenders in other languages: built where their compiler is installed, and run as programs.

A program is called with KIND MESSAGES RATE WORKERS PATIENCE, the arguments of the scenario of that name
in scenarios.py. On standard input it gets the delays of the messages, and on standard output it writes

    the figure of this kind, processor time, wall time, how many were sent
    the lateness of each message that was sent
    the runs of puts (`pace.Run`)

all of them doubles, little end first, times in seconds. So what is made of them is made here, as it is for
the others.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import attrs

from .pace import BODY_BYTES, Outcome, draw_delays

GO = "go"
JAVA = "java"
_HERE = Path(__file__).resolve().parent
_TIMEOUT = 600.0
_HEADER = 4


@attrs.frozen
class _Language:
    compiler: str
    build: tuple[str, ...]
    run: tuple[str, ...]


_LANGUAGES = {
    GO: _Language("go", ("go", "build", "-o", "{out}/demo", "demo.go"), ("{out}/demo",)),
    JAVA: _Language(
        "javac",
        ("javac", "-d", "{out}", "DelayQueueDemo.java"),
        ("java", "-cp", "{out}", "DelayQueueDemo"),
    ),
}


class UnavailableError(Exception):
    """There is no program to run; says why."""


def build(name: str, out: Path) -> list[str]:
    """Compile a contender into a folder that exists, and return the command that runs it.

    `UnavailableError` where its compiler is not installed or fails.
    """
    language = _LANGUAGES[name]
    if shutil.which(language.compiler) is None:
        raise UnavailableError(f"{language.compiler} is not installed")
    command = [part.format(out=out) for part in language.build]
    done = subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{language.compiler} failed: {last[0]}")
    return [part.format(out=out) for part in language.run]


def sample(command: list[str], kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One sample of one scenario, as the scenario itself would answer."""
    rate, seconds = arguments.get("rate", 1.0), arguments.get("seconds", 0.0)
    messages = arguments.get("messages") or round(rate * seconds)
    delays = array("d")
    if kind == "open":
        low, high = arguments["delay"]
        delays = draw_delays(messages, low, high, arguments["seed"])
    words = [kind, messages, rate, arguments.get("workers", 1), arguments.get("patience", seconds / 2 + 2)]
    done = subprocess.run(
        [*command, *map(str, words)],
        input=_swap(delays).tobytes(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=_TIMEOUT,
    )
    answer = array("d")
    answer.frombytes(done.stdout)
    return interpret(kind, messages, rate, _swap(answer))


def interpret(kind: str, messages: int, rate: float, answer: array[float]) -> dict[str, Any]:
    """What a program has answered, as the result of the scenario."""
    figure, cpu, wall, sent = answer[:_HEADER]
    late = answer[_HEADER : _HEADER + int(sent)]
    early = sum(lateness < 0 for lateness in late)
    if kind == "put":
        return {"put_nowait": 1e6 * figure / messages}
    if kind == "memory":
        return {"messages": messages, "beyond_payload": figure / messages - BODY_BYTES}
    if kind == "burst":
        return {"drained": messages / max(late) if sent == messages else None, "early": early}
    flat = iter(answer[_HEADER + int(sent) :])
    runs = list(zip(flat, flat, flat, strict=True))
    outcome = Outcome(messages, late, runs, rate, cpu, wall)
    return {**outcome.figures(), "own": None, "waited_share": None}


def _swap(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
