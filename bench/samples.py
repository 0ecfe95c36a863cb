"""What all the bench commands share: a sample in a process of its own, what several come to, and their file.

A run that failed is a result, too: `{"failed": why}`. It counts as the worst there is.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import click

from localdelay.benchmark import process
from localdelay.benchmark.load import NUMBER_BYTES, filling
from localdelay.benchmark.result import Distribution
from localdelay.lateness import LatencyRecorder

from .figures import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BODY_BYTES = 500
_REST = filling(BODY_BYTES, 1)
_TIMEOUT = 600.0
"""Seconds for a sample."""
_SCHEDSTAT = Path("/proc/self/schedstat")
_DIGITS = 5
"""Of a figure in a file."""

Result: TypeAlias = dict[str, Any]

table_option = click.option("--table", "saved", is_flag=True, help="Only print the table of what was saved.")


def body(number: int) -> bytes:
    """The 500 bytes of this message, as those of the load: its number, and noise."""
    return number.to_bytes(NUMBER_BYTES, "big") + _REST


def distribution(seconds: Iterable[float]) -> Distribution:
    """What these times come to."""
    recorder = LatencyRecorder()
    for value in seconds:
        recorder.record(max(0.0, value))
    return Distribution.of(recorder.take())


def progress(line: str) -> None:
    """Say on standard error what is going on."""
    click.echo(line, err=True)


def command(module: str, kind: str, arguments: Result) -> list[str]:
    """What prints one sample as JSON: of the `SAMPLES` of that module the one of this kind."""
    return [sys.executable, "-m", "bench.samples", module, kind, json.dumps(arguments)]


def in_process(module: str, kind: str, arguments: Result) -> Any:
    """One sample, in a process of its own. Raises `subprocess.SubprocessError`."""
    words = command(module, kind, arguments)
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT)
    return json.loads(done.stdout)


def or_failed(take: Callable[[], Result], told: Callable[[str], None]) -> Result:
    """A sample, or that it has failed: one that runs out of memory or time does not end the others."""
    try:
        return take()
    except subprocess.SubprocessError as error:
        told(f"    {error}")
        ended = getattr(error, "returncode", None)
        return {"failed": f"{type(error).__name__}, {ended}"}


def median(values: Sequence[float | None], *, highest_is_best: bool = False) -> float | None:
    """The median over the runs; None stands for a run that failed, which is worse than any other.

    None if the median is, or lies beside, a run that failed.
    """
    worst = -math.inf if highest_is_best else math.inf
    if not values:
        return None
    middle = statistics.median([worst if value is None else value for value in values])
    return None if math.isinf(middle) else middle


def medians(results: Sequence[Result], best: frozenset[str] = frozenset()) -> Result:
    """Of each figure of several runs its median, where `best` names those that are to be high."""
    names = dict.fromkeys(name for result in results for name in result if name != "failed")
    return {
        name: median([result.get(name) for result in results], highest_is_best=name in best) for name in names
    }


def waited_for_a_core() -> float | None:
    """Seconds that this process could have run and others ran instead, where Linux tells."""
    if not _SCHEDSTAT.exists():
        return None
    return int(_SCHEDSTAT.read_text().split()[1]) / 1e9


def facts(name: str) -> Result:
    """What figures depend on: the command, the commit, the Python and the machine; no names and no paths."""
    options = ["..." if os.sep in word else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python -m", f"bench.{name}", *options]),
        "commit": _commit(),
        **attrs.asdict(process.machine()),
        "cores_of_the_machine": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
    }


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        return f"{commit} with changes" if git("status", "--porcelain", "--", "*.py") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(name: str, measured: Result, folder: Path | None = None) -> None:
    """Write what was measured beside the programs, as the README's figures are to have it."""
    folder = RESULTS if folder is None else folder
    folder.mkdir(exist_ok=True)
    text = json.dumps(_rounded(measured), indent=1)
    (folder / f"{name}.json").write_text(text + "\n")


def load(name: str, folder: Path | None = None) -> Result:
    """What was measured last."""
    found: Result = json.loads(((RESULTS if folder is None else folder) / f"{name}.json").read_text())
    return found


def show(
    name: str,
    lines: Callable[[Result], Iterator[str]],
    measure: Callable[[], Result],
    *,
    saved: bool,
    keep: bool,
) -> Result:
    """Print the table of what was saved, or of what is measured now, which is to be kept or not."""
    measured = load(name) if saved else measure()
    if keep and not saved:
        save(name, measured)
    click.echo("\n".join(lines(measured)))
    return measured


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def heading(measured: Result) -> str:
    """Where the figures under it come from, in a line."""
    where = measured["facts"]
    return (
        f"`{where['command']}`, commit {where['commit']}, {where['python']}, Trio {where['trio']}, "
        f"{where['cores']} of {where['cores_of_the_machine']} cores, {where['system']} {where['kernel']}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown: names to the left, figures to the right."""
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def shown(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    """A figure; None is a failure."""
    return "fails" if value is None else f"{value:{form}}{unit}"


def targets(found: Sequence[Figure]) -> Iterator[str]:
    """What was aimed at, and what came out. A target that is missed fails no command."""
    yield ""
    yield from (f"- {target.line}" for target in found)


def ms(seconds: float | None) -> float | None:
    """The same in milliseconds."""
    return None if seconds is None else 1e3 * seconds


def main(module: str, kind: str, arguments: str) -> None:
    """Take a sample, and print it."""
    # A block that is left with messages pending says so in the log, which here is on purpose.
    logging.getLogger("localdelay").setLevel(logging.ERROR)
    print(json.dumps(import_module(f"bench.{module}").SAMPLES[kind](**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
