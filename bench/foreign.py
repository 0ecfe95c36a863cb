"""The contenders in other languages: built where their compiler is installed, and run as programs.

A program is called with KIND MESSAGES RATE WORKERS PATIENCE, the arguments of the scenario of that name in
scenarios.py. On standard input it gets the delays of the messages, and on standard output it writes

    the figure of this kind, processor time, wall time, how many were sent before their execute-at
    when the send of each message began, NaN where none did
    the runs of puts: how many were put so far, when the last of the puts in a row began and ended

all of them doubles, little end first, times in seconds from the start of the load. So what is made of them
is made here, by the meter that all others have.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from array import array
from itertools import pairwise
from pathlib import Path

from localdelay.benchmark.load import Delays, Pace

from .contenders import GO, JAVA
from .samples import BODY_BYTES, Result
from .times import Times

_HERE = Path(__file__).resolve().parent
_TIMEOUT = 600.0
_HEADER = 4


_LANGUAGES = {
    GO: ("go build -o {out}/demo demo.go", "{out}/demo"),
    JAVA: ("javac -d {out} DelayQueueDemo.java", "java -cp {out} DelayQueueDemo"),
}
"""What builds a program, and what runs it."""


class UnavailableError(Exception):
    """There is no program to run; says why."""


def build(name: str, out: Path) -> list[str]:
    """Compile a contender into a folder that exists, and return the command that runs it.

    `UnavailableError` where its compiler is not installed or fails.
    """
    compiling, run = ([part.format(out=out) for part in command.split()] for command in _LANGUAGES[name])
    if shutil.which(compiling[0]) is None:
        raise UnavailableError(f"{compiling[0]} is not installed")
    done = subprocess.run(compiling, cwd=_HERE, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{compiling[0]} failed: {last[0]}")
    return run


def sample(command: list[str], kind: str, arguments: Result) -> Result:
    """One sample of one scenario, as the scenario itself would answer."""
    pace = Pace(arguments.get("rate", 1.0), arguments.get("rate", 1.0), arguments.get("seconds", 1.0))
    messages = arguments.get("messages", pace.total)
    given = Delays(tuple(arguments.get("delays", (0.0,))), arguments.get("is_range", False))
    table = given.table(arguments.get("seed", 0))
    delays = array("d", (table[number % len(table)] for number in range(messages if kind == "open" else 0)))
    words = [kind, messages, pace.first, arguments.get("workers", 1), arguments.get("patience", 0.0)]
    done = subprocess.run(
        [*command, *map(str, words)],
        input=_swap(delays).tobytes(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=_TIMEOUT,
    )
    answer = array("d")
    answer.frombytes(done.stdout)
    return interpret(kind, messages, _swap(answer), pace, given, arguments.get("seed", 0))


def interpret(
    kind: str, messages: int, answer: array[float], pace: Pace, delays: Delays, seed: int
) -> Result:
    """What a program has answered, as the result of the scenario."""
    figure, cpu, _, early = answer[:_HEADER]
    times = Times(lambda: 0.0, messages)
    times.begun[:] = answer[_HEADER : _HEADER + messages]
    sent = sum(now == now for now in times.begun)  # not NaN
    times.flags.extend(number < early for number in range(sent))
    if kind == "put":
        return {"put_us": 1e6 * figure / messages}
    if kind == "memory":
        return {"beyond_payload": figure / messages - BODY_BYTES}
    if kind == "burst":
        if sent != messages or early:
            return {"failed": f"{sent} of {messages} sent, {early:.0f} early"}
        return {"drained": messages / (max(times.begun) - figure)}
    flat = iter(answer[_HEADER + messages :])
    runs = [(0.0, 0.0, 0.0), *zip(flat, flat, flat, strict=True)]
    for (first, _, _), (stop, began, ended) in pairwise(runs):
        times.put(int(first), int(stop), began, ended)
    return {
        **times.figures(pace, delays, seed, 0.0),
        "cpu_us": 1e6 * cpu / max(1, sent),
        "waited_share": None,
    }


def _swap(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
