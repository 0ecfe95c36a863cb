"""The extreme scenes that the core was shaped by: `python -m bench.extremes`.

Every sample runs in a process of its own. README.md in this folder says what each scene does.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import click

from .extremes_scenes import FROZEN
from .figures import Figure, rows
from .samples import ROOT, Result, command, facts, heading, progress, show, table, table_option

Arguments: TypeAlias = dict[str, Any]


@attrs.frozen
class Sample:
    """One process: one scene with its arguments."""

    scene: str
    title: str
    kind: str
    """A key of `extremes_scenes.SCENES`."""
    arguments: Arguments


@attrs.frozen
class Settings:
    """What is run. Times in seconds."""

    backlog: Arguments = attrs.field(factory=lambda: {"pending": 12_000_000, "rate": 100_000, "seconds": 60})
    cancelled: int = 1_000_000
    indexed: int = 2_000_000
    idle_messages: int = 1_000_000
    idle_seconds: float = 20
    burst: int = 500_000
    frozen: float = 5
    spread: float = 0.5


QUICK = Settings(
    backlog={"pending": 1_200_000, "rate": 100_000, "seconds": 6},
    cancelled=300_000,
    indexed=500_000,
    idle_messages=300_000,
    idle_seconds=3,
    burst=200_000,
    frozen=2,
    spread=0.2,
)


def plan(settings: Settings) -> list[Sample]:
    """Every sample of every scene, in the order of the table."""
    cancel = {"messages": settings.cancelled}
    idle = {"messages": settings.idle_messages, "seconds": settings.idle_seconds}
    freeze = {"messages": settings.burst, "frozen": settings.frozen, "spread": settings.frozen}
    hold = {**freeze, "frozen": 0, "spread": settings.spread}
    return [
        Sample("backlog", "backlog", "backlog", settings.backlog),
        Sample("cancel", "cancel at once", "cancel", {**cancel, "when": "at once"}),
        Sample("cancel", "cancel later", "cancel", {**cancel, "when": "later"}),
        Sample("cancel", "cancellable", "index", {"messages": settings.indexed}),
        Sample("idle", "idle, auto", "idle", {**idle, "timer": "auto"}),
        Sample("idle", "idle, trio", "idle", {**idle, "timer": "trio"}),
        Sample("freeze", "freeze, send", "burst", {**freeze, "sender": "send"}),
        Sample("freeze", "freeze, batch", "burst", {**freeze, "sender": "send_batch"}),
        Sample("hold", "hold, send", "burst", {**hold, "sender": "send"}),
        Sample("hold", "hold, batch", "burst", {**hold, "sender": "send_batch"}),
        Sample("hold", "hold, unordered", "burst", {**hold, "spread": 0, "sender": "send_batch"}),
    ]


NAMES = list(dict.fromkeys(sample.scene for sample in plan(QUICK)))


def in_process(kind: str, arguments: Arguments) -> list[Figure]:
    """Run one sample in a fresh interpreter; stop and wake it when it asks for that.

    Raises `subprocess.CalledProcessError` if it fails.
    """
    words = command("extremes_scenes", kind, arguments)
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None  # noqa: PT018
        try:
            line = child.stdout.readline()
            if line.strip() == FROZEN:
                child.send_signal(signal.SIGSTOP)
                time.sleep(arguments["frozen"])
                woken = time.perf_counter()
                child.send_signal(signal.SIGCONT)
                child.stdin.write(f"{woken!r}\n")
                child.stdin.flush()
                line = child.stdout.readline()
            child.stdin.close()
            status = child.wait()
        finally:
            child.kill()  # also one that is stopped; nothing to one that has ended
    if status:
        raise subprocess.CalledProcessError(status, words)
    return [Figure(**figure) for figure in json.loads(line)]


def measure(
    samples: Sequence[Sample],
    run_sample: Callable[[str, Arguments], list[Figure]],
    progress: Callable[[str], None],
) -> list[tuple[str, list[Figure]]]:
    """Run the samples one after the other. One that fails has a figure that says so, and the others go on."""
    measured: list[tuple[str, list[Figure]]] = []
    for number, sample in enumerate(samples, 1):
        progress(f"{number}/{len(samples)}: {sample.title}: {json.dumps(sample.arguments)}")
        try:
            figures = run_sample(sample.kind, sample.arguments)
        except subprocess.CalledProcessError as failed:
            # A negative status is the signal that ended it, and no figure under the target.
            what = "ended by signal" if failed.returncode < 0 else "failed, with exit status"
            figures = [Figure(what, abs(failed.returncode), at_most=0, note="standard error says why")]
        measured.append((sample.title, figures))
    return measured


def _scenes(measured: Result) -> dict[str, list[Figure]]:
    return {title: [Figure(**figure) for figure in figures] for title, figures in measured["scenes"].items()}


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    yield f"{heading(measured)}; one run; raw: [results/extremes.json](results/extremes.json)."
    yield ""
    yield from table(["scene", "figure", "measured", "at most", ""], rows(_scenes(measured).items()))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="Small and short: to see that it works. It is not saved.")
@table_option
def main(names: tuple[str, ...], quick: bool, saved: bool) -> None:
    """Measure the extreme scenes, all or those named.

    Writes bench/results/extremes.json, unless only some were named, and prints the README's table of it. The
    exit status is 1 if a scene failed, or if a message was lost, early or sent twice. The full `backlog`
    needs 11 GB of memory and some five minutes.
    """
    settings = QUICK if quick else Settings()

    def measured() -> Result:
        samples = [sample for sample in plan(settings) if not names or sample.scene in names]
        scenes = dict(measure(samples, in_process, progress))
        return {
            "facts": facts("extremes"),
            "settings": attrs.asdict(settings),
            "scenes": {title: list(map(attrs.asdict, figures)) for title, figures in scenes.items()},
        }

    told = show("extremes", lines, measured, saved=saved, keep=not quick and not names)
    if any(figure.is_broken_promise for figures in _scenes(told).values() for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
