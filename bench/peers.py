"""localdelay beside other ways to delay a message, in Python and not: `python -m bench.peers`.

Every sample runs in a process of its own, the contenders take turns within a run, and the figures are
medians over the runs. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import click

from localdelay.benchmark.result import best, ladder, next_rate

from . import foreign, peers_table
from .contenders import CONTENDERS, PROGRAM
from .samples import Result, facts, in_process, or_failed, progress, show, table_option

_CONFIRMATIONS = 4

Progress: TypeAlias = Callable[[str], None]
RunSample: TypeAlias = Callable[[str, Result], Result]


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
    """What is put or sent so long after its time is given up."""
    rates: tuple[float, float] = (100, 2_000_000)
    """Between these, the rate that is held is looked for."""
    workers: int = 20
    seed: int = 20_240_601
    margin: float = 0.2
    """Between the last put and the first due time of messages that are all due at once."""
    messages: int = 100_000
    """Of each closed loop."""


QUICK = Settings(
    runs=1,
    seconds=0.4,
    delay=0.1,
    mixed=(0.05, 0.3),
    five=(0.05, 0.1, 0.15, 0.2, 0.3),
    probe_seconds=0.4,
    probe_delay=0.1,
    patience=0.2,
    rates=(3_000, 1_000_000),
    messages=20_000,
)


def samples(settings: Settings) -> dict[str, tuple[str, Result]]:
    """The samples of one contender in one run, but for the search: each a scenario and its arguments."""
    messages, workers = {"messages": settings.messages}, {"workers": settings.workers}
    fixed = (settings.delay,)
    return {
        "put": ("put", messages),
        "await": ("await", messages),
        "memory": ("memory", messages),
        "burst": ("burst", {**messages, **workers, "margin": settings.margin}),
        "producers": ("producers", {**messages, **workers}),
        "low": ("open", open_load(settings, settings.low, settings.seconds, fixed)),
        "high": ("open", open_load(settings, settings.high, settings.seconds, fixed)),
        "mixed": ("open", open_load(settings, settings.low, settings.seconds, settings.mixed, is_range=True)),
        "five": ("open", open_load(settings, settings.low, settings.seconds, settings.five)),
    }


def open_load(
    settings: Settings, rate: float, seconds: float, delays: Sequence[float], *, is_range: bool = False
) -> Result:
    """The arguments of an open loop."""
    return {
        "rate": rate,
        "seconds": seconds,
        "delays": list(delays),
        "is_range": is_range,
        "patience": settings.patience,
        "seed": settings.seed,
        "workers": settings.workers,
    }


class Search:
    """Looks for the highest rate that each contender holds; from where it was found, the next time."""

    def __init__(self, settings: Settings, run_sample: RunSample, progress: Progress) -> None:
        self._settings = settings
        self._run_sample = run_sample
        self._progress = progress
        self._rungs = ladder(*settings.rates)
        self._start: dict[str, float] = {}

    def rate(self, name: str) -> float | None:
        """The highest of the ladder, by short loads and then by one of the full length; None if none is."""
        settings, rungs = self._settings, self._rungs
        start = self._start.get(name, CONTENDERS[name].likely)
        rate: float | None = max((rung for rung in rungs if rung <= start), default=rungs[0])
        tried: dict[float, bool] = {}
        while rate is not None:
            tried[rate] = self._holds(name, rate, settings.probe_seconds, settings.probe_delay)
            rate = next_rate(rungs, tried)
        found = best(tried)
        for _ in range(_CONFIRMATIONS):
            if found is None:
                break
            self._start[name] = found
            if settings.probe_seconds == settings.seconds or self._holds(
                name, found, settings.seconds, settings.delay
            ):
                return found
            found = max((rung for rung in rungs if rung < found), default=None)
        return None

    def _holds(self, name: str, rate: float, seconds: float, delay: float) -> bool:
        arguments = {"contender": name, **open_load(self._settings, rate, seconds, (delay,))}
        result = or_failed(lambda: self._run_sample("open", arguments), self._progress)
        held: bool = result.get("held", False)
        self._progress(f"    {rate:,.0f}/s for {seconds:g} s: {'held' if held else 'not held'}")
        return held


def measure(
    settings: Settings,
    names: Sequence[str],
    run_sample: RunSample,
    progress: Progress,
    unavailable: Mapping[str, str] | None = None,
) -> Result:
    """Run everything; what was measured in each run stands beside the medians."""
    search = Search(settings, run_sample, progress)
    runs: dict[str, dict[str, list[Any]]] = {name: {} for name in names}
    for run in range(settings.runs):
        # Every other run goes backwards, so that no contender always has the warm or the quiet machine.
        order = list(names) if run % 2 == 0 else list(reversed(names))
        told = f"run {run + 1}/{settings.runs}"
        for name in order:
            if "held" in CONTENDERS[name].figures:
                progress(f"{told}: the rate that is held: {name}")
                runs[name].setdefault("held", []).append(search.rate(name))
        # Figure by figure, so that what is compared is measured close together.
        for figure, (kind, arguments) in samples(settings).items():
            for name in order:
                if figure not in CONTENDERS[name].figures:
                    continue
                progress(f"{told}: {figure}: {name}")
                held = runs[name].get("held", [None])[-1] or 0.0
                result: Result = {"failed": "over twice the rate that is held"}
                if figure != "high" or arguments["rate"] <= 2 * held:
                    asked = {"contender": name, **arguments}
                    result = or_failed(lambda: run_sample(kind, asked), progress)  # noqa: B023 (called at once)
                runs[name].setdefault(figure, []).append(result)
    rows = {name: peers_table.row(taken) for name, taken in runs.items()}
    rows |= {name: {"unavailable": why} for name, why in (unavailable or {}).items()}
    return {
        "facts": facts("peers"),
        "settings": attrs.asdict(settings),
        "rows": {name: rows[name] for name in CONTENDERS if name in rows},
        "runs": {name: peers_table.compact(taken) for name, taken in runs.items()},
    }


@contextmanager
def programs(names: Sequence[str]) -> Iterator[tuple[RunSample, dict[str, str]]]:
    """What runs a sample of any contender, and which contenders cannot be run, with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, list[str]] = {}
        unavailable: dict[str, str] = {}
        for name in names:
            if CONTENDERS[name].world == PROGRAM:
                try:
                    commands[name] = foreign.build(name, Path(folder))
                except foreign.UnavailableError as error:
                    unavailable[name] = str(error)

        def run_sample(kind: str, arguments: Result) -> Result:
            command = commands.get(arguments["contender"])
            if command is not None:
                return foreign.sample(command, kind, arguments)
            result: Result = in_process("scenarios", kind, arguments)
            return result

        yield run_sample, unavailable


def _parse_names(_: click.Context, __: click.Parameter, text: str | None) -> list[str]:
    chosen = set(CONTENDERS) if text is None else {name.strip() for name in text.split(",")}
    if unknown := sorted(chosen - CONTENDERS.keys()):
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(CONTENDERS)}")
    return [name for name in CONTENDERS if name in chosen]


@click.command()
@click.option("--only", "names", callback=_parse_names, help="Some contenders, by name, with commas.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), help="Length of the load in each open loop.")
@click.option("--delay", type=click.FloatRange(0.001, 3600), help="The fixed delay, in seconds.")
@click.option("--runs", type=click.IntRange(1), help="Runs of everything; figures are medians over them.")
@click.option("--quick", is_flag=True, help="One short run: to see that it works. It is not saved.")
@table_option
def main(
    names: list[str], seconds: float | None, delay: float | None, runs: int | None, quick: bool, saved: bool
) -> None:
    """Measure localdelay beside other ways to delay a message: rates, lateness, costs, memory.

    Writes bench/results/peers.json, and prints the README's table of it.
    """
    given: dict[str, Any] = {"seconds": seconds, "delay": delay, "runs": runs}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = attrs.evolve(QUICK if quick else Settings(), **changed)

    def measured() -> Result:
        with programs(names) as (run_sample, unavailable):
            available = [name for name in names if name not in unavailable]
            return measure(settings, available, run_sample, progress, unavailable)

    show("peers", peers_table.lines, measured, saved=saved, keep=not quick)


if __name__ == "__main__":
    main()
