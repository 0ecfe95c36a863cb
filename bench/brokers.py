"""How fast brokers confirm, through localdelay and through their bare clients: `python -m bench.brokers`.

Each broker is started here, on this machine. Every sample is a process of its own, the two take turns, and
the figures are medians over the rounds. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import click

from tests.kit.servers.all import NAMES, make
from tests.kit.servers.process import NotInstalled, Server

from . import report
from .samples import ROOT, Result, machine

LOCALDELAY, BARE = "localdelay", "bare"
TARGET = 0.8
"""At least this share of the bare client's rate."""
_TIMEOUT = 300.0


@attrs.frozen
class Shape:
    """How many publishes are under way at once, of how many messages each."""

    at_once: int
    batch: int = 1

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.at_once} at once" if self.batch == 1 else f"{self.at_once} x {self.batch}"

    def count(self, messages: int) -> int:
        """How many messages are enough: one at a time takes long."""
        return messages // 5 if self.at_once == 1 else messages


SHAPES = (Shape(1), Shape(20), Shape(200), Shape(4, batch=100))


@attrs.frozen
class Settings:
    """What is run."""

    brokers: tuple[str, ...] = NAMES
    messages: int = 10_000
    size: int = 500
    """Bytes."""
    rounds: int = 3


def measure(
    settings: Settings, run_sample: Callable[[dict[str, Any]], Result], progress: Callable[[str], None]
) -> Result:
    """Run everything, broker by broker, into the object that `--json` prints."""
    brokers: Result = {}
    for name in settings.brokers:
        server = make(name, durable=False)
        try:
            server.start()
            brokers[name] = _measure_broker(name, server, settings, run_sample, progress)
        except NotInstalled as missing:
            progress(f"{name}: left out: {missing}")
        finally:
            server.stop()
    return {"machine": machine(), "settings": attrs.asdict(settings), "brokers": brokers}


def _measure_broker(
    name: str,
    server: Server,
    settings: Settings,
    run_sample: Callable[[dict[str, Any]], Result],
    progress: Callable[[str], None],
) -> Result:
    shapes: Result = {}
    for shape in SHAPES:
        samples: dict[str, list[Result]] = {LOCALDELAY: [], BARE: []}
        for number in range(settings.rounds):
            # Turn and turn about, so that neither always has the warm or the quiet machine.
            for who in (LOCALDELAY, BARE) if number % 2 == 0 else (BARE, LOCALDELAY):
                progress(f"{name}, {shape.title}, round {number + 1}/{settings.rounds}: {who}")
                arguments = {
                    "broker": name,
                    "who": who,
                    "url": server.fresh(),
                    "count": shape.count(settings.messages),
                    "size": settings.size,
                    **attrs.asdict(shape),
                }
                samples[who].append(run_sample(arguments))
        shapes[shape.title] = combined(samples)
    return shapes


def combined(samples: dict[str, list[Result]]) -> Result:
    """The medians of both, and the median of the rounds' ratios."""
    medians = {
        who: {figure: statistics.median(result[figure] for result in results) for figure in results[0]}
        for who, results in samples.items()
    }
    rounds = zip(samples[LOCALDELAY], samples[BARE], strict=True)
    ratio = statistics.median(ours["rate"] / bare["rate"] for ours, bare in rounds)
    return {**medians, "ratio": ratio}


def lines(measured: Result) -> Iterator[str]:
    """The report, 80 columns wide."""
    settings = measured["settings"]
    yield from report.machine_lines(measured["machine"])
    yield (
        f"{settings['messages']:,} messages of {settings['size']} bytes, each confirmed · "
        f"medians of {settings['rounds']} rounds"
    )
    for name, shapes in measured["brokers"].items():
        yield ""
        yield _row(name, "localdelay", "bare", "ratio", "p99 ms", "bare p99")
        for title, shape in shapes.items():
            ours, bare, ratio = shape[LOCALDELAY], shape[BARE], shape["ratio"]
            cells = (f"{ours['rate']:,.0f}/s", f"{bare['rate']:,.0f}/s", f"{ratio:.2f}")
            times = (f"{ours['p99'] * 1e3:.2f}", f"{bare['p99'] * 1e3:.2f}")
            missed = "" if ratio >= TARGET else f"  < {TARGET:g}"
            yield f"{_row(title, *cells, *times)}{missed}"


def _row(first: str, *cells: str) -> str:
    return f"{first:<14}" + "".join(f"{cell:>12}" for cell in cells)


def in_process(arguments: dict[str, Any]) -> Result:
    """Run one sample in a fresh interpreter."""
    command = [sys.executable, "-m", "bench.brokers_sample", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT)
    answer: Result = json.loads(done.stdout)
    return answer


@click.command()
@click.option("--broker", "brokers", multiple=True, type=click.Choice(NAMES), help="Only this; repeatable.")
@click.option("--messages", type=click.IntRange(min=1000), default=Settings().messages, show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=Settings().size, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=Settings().rounds, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(brokers: tuple[str, ...], messages: int, size: int, rounds: int, as_json: bool) -> None:
    """Measure confirmed messages/s and send times for each broker, beside its bare client."""
    settings = Settings(brokers or NAMES, messages, size, rounds)
    measured = measure(settings, in_process, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(measured, indent=2) if as_json else "\n".join(lines(measured)))


if __name__ == "__main__":
    main()
