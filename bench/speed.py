"""How fast localdelay is, beside the literal port of the write-up: `python -m bench.speed`.

Every sample runs in a process of its own, the contenders take turns within a run, and the figures are
medians over the runs. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import click

from . import report
from .contenders import BARE, BATCH, DEGRADED, LITERAL, LOCALDELAY, NOTHING, PAYLOADS, UNCANCELLABLE
from .samples import Result, RunSample, in_process, is_held, machine, medians, ratio
from .targets import Target

FIXED, MIXED = "fixed", "mixed"


@attrs.frozen
class Settings:
    """What is run. Times in seconds; a delay is (shortest, longest)."""

    rates: tuple[float, ...] = (200, 10_000, 50_000)
    seconds: float = 8.0
    runs: int = 3
    seed: int = 20_240_601
    workers: int = 20
    fixed: tuple[float, float] = (2.0, 2.0)
    mixed: tuple[float, float] = (0.1, 5.0)
    closed_messages: int = 100_000
    memory_messages: int = 200_000


QUICK = Settings(seconds=2.0, runs=1, closed_messages=20_000, memory_messages=100_000)


@attrs.frozen
class Sample:
    """One process: one scenario for one contender. The samples of a group are compared."""

    group: tuple[str, str, float]
    """Kind, delays, rate."""
    contender: str
    arguments: dict[str, Any]


def plan(settings: Settings) -> Iterator[Sample]:
    """The samples of one run, those of a group side by side."""
    for contender in (LOCALDELAY, UNCANCELLABLE, BATCH, LITERAL, BARE):
        yield Sample(("closed", "", 0), contender, {"messages": settings.closed_messages})
    for contender in (LOCALDELAY, UNCANCELLABLE, DEGRADED, LITERAL, PAYLOADS):
        yield Sample(("memory", "", 0), contender, {"messages": settings.memory_messages})
    for rate in settings.rates:
        load = {"rate": rate, "seconds": settings.seconds, "seed": settings.seed, "workers": settings.workers}
        for name, delay in ((FIXED, settings.fixed), (MIXED, settings.mixed)):
            for contender in (LOCALDELAY, BATCH, LITERAL):
                yield Sample(("open", name, rate), contender, {**load, "delay": delay})
            alone = {**load, "delay": delay, "seconds": min(2.0, settings.seconds)}
            yield Sample(("open", name, rate), NOTHING, alone)


def measure(settings: Settings, run_sample: RunSample, progress: Callable[[str], None]) -> Result:
    """Run everything, and combine the runs into the object that `--json` prints."""
    samples = list(plan(settings))
    results: dict[tuple[str, str, float], dict[str, list[Result]]] = {}
    for run in range(settings.runs):
        # Every other run goes backwards, so that no contender always has the warm or the quiet machine.
        for number, sample in enumerate(samples if run % 2 == 0 else reversed(samples), 1):
            kind, delays, rate = sample.group
            what = f"{kind} loop, {rate:,.0f}/s, {delays} delays" if rate else kind
            progress(f"run {run + 1}/{settings.runs}, {number}/{len(samples)}: {what}: {sample.contender}")
            result = run_sample(kind, {"contender": sample.contender, **sample.arguments})
            results.setdefault(sample.group, {}).setdefault(sample.contender, []).append(result)
    loops = [
        {"rate": rate, "delays": delays, **_compare_open(contenders)}
        for (kind, delays, rate), contenders in results.items()
        if kind == "open"
    ]
    return {
        "machine": machine(),
        "settings": attrs.asdict(settings),
        "closed": {name: medians(runs) for name, runs in results["closed", "", 0].items()},
        "open": loops,
        "memory": {name: medians(runs) for name, runs in results["memory", "", 0].items()},
        "targets": targets(loops),
    }


def _compare_open(contenders: dict[str, list[Result]]) -> Result:
    compared: Result = {"contenders": {}}
    for name, runs in contenders.items():
        combined = medians(runs)
        if name == NOTHING:
            compared["generator_cpu_us"] = combined["cpu_us"]
        else:
            combined["held_runs"] = sum(map(is_held, runs))
            compared["contenders"][name] = combined
    ours, literal = (compared["contenders"][name] for name in (LOCALDELAY, LITERAL))
    compared["p99_ratio"] = ratio(ours["lateness"]["p99"], literal["lateness"]["p99"])
    compared["cpu_ratio"] = ratio(ours["cpu_us"], literal["cpu_us"])
    return compared


def targets(loops: Iterable[Result]) -> list[Result]:
    """What was aimed at and what came out; `measured` is None where it was not run."""
    p99 = {
        (loop["delays"], loop["rate"]): loop["contenders"][LOCALDELAY]["lateness"]["p99"] for loop in loops
    }
    fixed, fast, mixed = (p99.get(key) for key in ((FIXED, 10_000), (FIXED, 50_000), (MIXED, 10_000)))
    both = [
        Target("fixed delay, 50,000/s: p99 in ms", None if fast is None else 1e3 * fast, at_most=10.0),
        Target(
            "10,000/s: p99 with mixed delays / with a fixed one",
            mixed / fixed if mixed is not None and fixed else None,
            at_most=2.0,
        ),
    ]
    return [target.as_json() for target in both]


def _parse_rates(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers like 200,10000") from None
    if not all(0 < rate < math.inf for rate in rates):
        raise click.BadParameter("every rate must be over 0 and finite")
    return rates


@click.command()
@click.option("--rates", callback=_parse_rates, default="200,10000,50000", help="Messages/s, with commas.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), help="Length of the load in each open loop.")
@click.option("--runs", type=click.IntRange(1), help="Runs of everything; figures are medians over them.")
@click.option("--seed", type=int, default=Settings().seed, show_default=True, help="Of the mixed delays.")
@click.option("--quick", is_flag=True, help="One short run: to see that it works, not how fast it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    rates: tuple[float, ...], seconds: float | None, runs: int | None, seed: int, quick: bool, as_json: bool
) -> None:
    """Measure localdelay beside the literal port: closed loop, open loop, memory."""
    settings = attrs.evolve(QUICK if quick else Settings(), rates=rates, seed=seed)
    if seconds is not None:
        settings = attrs.evolve(settings, seconds=seconds)
    if runs is not None:
        settings = attrs.evolve(settings, runs=runs)
    measured = measure(settings, in_process, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(measured) if as_json else "\n".join(report.lines(measured)))


if __name__ == "__main__":
    main()
