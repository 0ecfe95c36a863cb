"""localdelay beside other ways to delay a message, in Python and not: `python -m bench.peers`.

Every sample runs in a process of its own, the contenders take turns within a run, and the figures are
medians over the runs. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs
import click

from . import foreign, peers_report
from .contenders import BARE, BATCH, BATCH_UNCANCELLABLE, CALL_AT, LITERAL, LOCALDELAY, TASKS, THREADS
from .foreign import GO, JAVA
from .ladder import highest, ladder, rung_at
from .peers_table import belongs, row, targets, with_ratios
from .samples import Result, RunSample, in_process, is_held, machine

LIKELY = {
    GO: 700_000,
    JAVA: 100_000,
    LITERAL: 30_000,
    TASKS: 5_000,
    CALL_AT: 70_000,
    THREADS: 50_000,
    LOCALDELAY: 150_000,
    BATCH: 300_000,
    BATCH_UNCANCELLABLE: 300_000,
}
"""The contenders, in the order of the table, and where to begin the search for the rate that each holds."""
_CONFIRMATIONS = 4

Progress: TypeAlias = Callable[[str], None]


@attrs.frozen
class Settings:
    """What is run. Times in seconds."""

    runs: int = 3
    seconds: float = 4.0
    """Length of the load in each open loop."""
    delay: float = 2.0
    low: float = 10_000
    high: float = 100_000
    """Messages/s of the two columns with a fixed delay; the mixed delays come at the lower one."""
    mixed: tuple[float, float] = (0.1, 5.0)
    five: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 5.0)
    probe_seconds: float = 1.5
    probe_delay: float = 0.5
    patience: float = 0.5
    """A message that is not sent so long after it was due counts as not sent."""
    rates: tuple[float, float] = (100, 2_000_000)
    """Between these, the rate that is held is looked for."""
    workers: int = 20
    seed: int = 20_240_601
    margin: float = 0.2
    """Between the last put and the first due time of messages that are all due at once."""
    put_messages: int = 100_000
    burst_messages: int = 100_000
    memory_messages: int = 100_000


QUICK = Settings(
    runs=1,
    seconds=0.5,
    delay=0.2,
    mixed=(0.1, 0.5),
    five=(0.1, 0.2, 0.3, 0.4, 0.5),
    probe_seconds=0.5,
    probe_delay=0.2,
    patience=0.3,
    put_messages=20_000,
    burst_messages=30_000,
    memory_messages=50_000,
)


def figures(settings: Settings) -> dict[str, tuple[str, Result]]:
    """The samples of one contender in one run, but for the search: each a scenario and its arguments."""

    def load(rate: float, delay: Sequence[float]) -> Result:
        return open_load(settings, rate, settings.seconds, delay)

    workers = {"workers": settings.workers}
    fixed = (settings.delay, settings.delay)
    return {
        "put": ("put", {"messages": settings.put_messages}),
        "await": ("await", {"messages": settings.put_messages}),
        "memory": ("memory", {"messages": settings.memory_messages}),
        "burst": ("burst", {"messages": settings.burst_messages, "margin": settings.margin, **workers}),
        "low": ("open", load(settings.low, fixed)),
        "high": ("open", load(settings.high, fixed)),
        "mixed": ("open", load(settings.low, settings.mixed)),
        "five": ("open", {**load(settings.low, settings.five), "in_turn": True}),
    }


def open_load(settings: Settings, rate: float, seconds: float, delay: Sequence[float]) -> Result:
    """The arguments of an open loop."""
    load = {"rate": rate, "seconds": seconds, "delay": delay, "patience": settings.patience}
    return {**load, "seed": settings.seed, "workers": settings.workers}


class Search:
    """Looks for the highest rate that each contender holds; from where it was found, the next time."""

    def __init__(self, settings: Settings, run_sample: RunSample, progress: Progress) -> None:
        self._settings = settings
        self._run_sample = run_sample
        self._progress = progress
        self._rungs = ladder(*settings.rates)
        self._start = {name: rung_at(self._rungs, rate) for name, rate in LIKELY.items()}

    def rate(self, name: str) -> float | None:
        """The highest of the ladder, by short loads and then by one of the full length; None if none is."""
        settings, rungs = self._settings, self._rungs
        probe = partial(self._holds, name, seconds=settings.probe_seconds, delay=settings.probe_delay)
        found = highest(rungs, self._start[name], probe)
        short = (settings.probe_seconds, settings.probe_delay)
        for _ in range(_CONFIRMATIONS):
            if found is None or found < 0:
                return None
            self._start[name] = found
            if short == (settings.seconds, settings.delay):
                return rungs[found]
            if self._holds(name, rungs[found], seconds=settings.seconds, delay=settings.delay):
                return rungs[found]
            found -= 1
        return None

    def _holds(self, name: str, rate: float, *, seconds: float, delay: float) -> bool:
        load = open_load(self._settings, rate, seconds, (delay, delay))
        try:
            held = is_held(self._run_sample("open", {"contender": name, **load}))
        except subprocess.SubprocessError as error:
            # A load that is far too high can run out of memory or time: that is not held either.
            self._progress(f"    {name} at {rate:,.0f}/s: {error}")
            return False
        self._progress(f"    {rate:,.0f}/s for {seconds:g} s: {'held' if held else 'not held'}")
        return held


def measure(
    settings: Settings,
    names: Sequence[str],
    run_sample: RunSample,
    progress: Progress,
    unavailable: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Run everything for these contenders, and combine the runs into the object that `--json` prints."""
    search = Search(settings, run_sample, progress)
    samples: dict[str, dict[str, list[Any]]] = {name: {} for name in (*names, BARE)}
    for run in range(settings.runs):
        # Every other run goes backwards, so that no contender always has the warm or the quiet machine.
        order = [*names, BARE] if run % 2 == 0 else [BARE, *reversed(names)]
        for name in order:
            if name != BARE:
                progress(f"run {run + 1}/{settings.runs}: the rate that is held: {name}")
                samples[name].setdefault("held", []).append(search.rate(name))
        # Figure by figure, so that what is compared is measured close together.
        for figure, (kind, arguments) in figures(settings).items():
            for name in order:
                if not belongs(figure, name):
                    continue
                progress(f"run {run + 1}/{settings.runs}: {figure}: {name}")
                result = None  # for a rate so far over the one that is held that it need not be tried
                if arguments.get("rate", 0.0) <= 2 * (samples[name].get("held", [0.0])[-1] or 0.0):
                    result = run_sample(kind, {"contender": name, **arguments})
                samples[name].setdefault(figure, []).append(result)
    rows = {name: row(taken) for name, taken in samples.items()}
    return {
        "machine": machine(),
        "settings": attrs.asdict(settings),
        "rows": {name: {"unavailable": why} for name, why in unavailable.items()} | with_ratios(rows),
        "targets": [target.as_json() for target in targets(rows)],
    }


@contextmanager
def programs(names: Sequence[str]) -> Iterator[tuple[RunSample, dict[str, str]]]:
    """What runs a sample of any contender, and which contenders cannot be run, with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, list[str]] = {}
        unavailable: dict[str, str] = {}
        for name in (GO, JAVA):
            if name not in names:
                continue
            try:
                commands[name] = foreign.build(name, Path(folder))
            except foreign.UnavailableError as error:
                unavailable[name] = str(error)

        def run_sample(kind: str, arguments: Result) -> Result:
            command = commands.get(arguments["contender"])
            if command is None:
                return in_process(kind, arguments)
            return foreign.sample(command, kind, arguments)

        yield run_sample, unavailable


def _parse_names(_: click.Context, __: click.Parameter, text: str | None) -> list[str]:
    if text is None:
        return list(LIKELY)
    chosen = {name.strip() for name in text.split(",")}
    if unknown := sorted(chosen - LIKELY.keys()):
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(LIKELY)}")
    return [name for name in LIKELY if name in chosen]


@click.command()
@click.option("--only", "names", callback=_parse_names, help="Some contenders, by name, with commas.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), help="Length of the load in each open loop.")
@click.option("--delay", type=click.FloatRange(0.001, 3600), help="The fixed delay, in seconds.")
@click.option("--runs", type=click.IntRange(1), help="Runs of everything; figures are medians over them.")
@click.option("--quick", is_flag=True, help="One short run: to see that it works, not how fast it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    names: list[str],
    seconds: float | None,
    delay: float | None,
    runs: int | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure localdelay beside other ways to delay a message: rates, lateness, costs, memory."""
    chosen = {"seconds": seconds, "delay": delay, "runs": runs}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    settings = attrs.evolve(QUICK if quick else Settings(), **given)
    with programs(names) as (run_sample, unavailable):
        available = [name for name in names if name not in unavailable]
        measured = measure(
            settings, available, run_sample, lambda line: click.echo(line, err=True), unavailable
        )
    click.echo(json.dumps(measured) if as_json else "\n".join(peers_report.lines(measured)))


if __name__ == "__main__":
    main()
