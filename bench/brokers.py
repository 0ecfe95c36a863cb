"""How fast brokers confirm, through localdelay and through their bare clients: `python -m bench.brokers`.

Each broker is started here, on this machine. Every sample is a process of its own, the two take turns, and
the figures are medians over the rounds. README.md in this folder says what each figure means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import attrs
import click
import trio

from localdelay import Message
from localdelay.brokers import open_broker
from tests.kit.servers.all import NAMES, make
from tests.kit.servers.process import NotInstalled, Server

from .bare import Bare, Sent, in_nursery, on_trio
from .samples import (
    Result,
    distribution,
    facts,
    heading,
    in_process,
    median,
    medians,
    ms,
    or_failed,
    progress,
    show,
    shown,
    table,
    table_option,
)

LOCALDELAY, BARE, AWAITED = "localdelay", "bare", "awaited"
NOBODY_WAITS = frozenset(NAMES) - {"nats", "redis"}
"""Where the fastest program of the bare client has no task that waits: there is another one that has."""
TARGET = 0.8
"""At least this share of the bare client's rate."""


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
    return {"facts": facts("brokers"), "settings": attrs.asdict(settings), "brokers": brokers}


def _measure_broker(
    name: str,
    server: Server,
    settings: Settings,
    run_sample: Callable[[dict[str, Any]], Result],
    progress: Callable[[str], None],
) -> Result:
    shapes: Result = {}
    contenders = (LOCALDELAY, BARE, *((AWAITED,) if name in NOBODY_WAITS else ()))
    for shape in SHAPES:
        samples: dict[str, list[Result]] = {who: [] for who in contenders}
        for number in range(settings.rounds):
            # Turn and turn about, so that neither always has the warm or the quiet machine.
            for who in contenders if number % 2 == 0 else contenders[::-1]:
                progress(f"{name}, {shape.title}, round {number + 1}/{settings.rounds}: {who}")
                arguments = {
                    "broker": name,
                    "who": who,
                    "url": server.fresh(),
                    "count": shape.count(settings.messages),
                    "size": settings.size,
                    **attrs.asdict(shape),
                }
                taken = or_failed(lambda: run_sample(arguments), progress)  # noqa: B023 (called at once)
                samples[who].append(taken)
        shapes[shape.title] = combined(samples)
    return shapes


def combined(samples: dict[str, list[Result]]) -> Result:
    """The medians of all, those of the rounds' ratios to ours, and the rates that they come from.

    A round in which one of the two failed has no ratio, and counts as the worst.
    """
    ratios = {
        who: [_ratio(ours, theirs) for ours, theirs in zip(samples[LOCALDELAY], results, strict=True)]
        for who, results in samples.items()
        if who != LOCALDELAY
    }
    return {
        **{who: medians(results, frozenset({"rate"})) for who, results in samples.items()},
        "ratios": {who: median(of_rounds, highest_is_best=True) for who, of_rounds in ratios.items()},
        "rates": {who: [result.get("rate") for result in results] for who, results in samples.items()},
    }


def _ratio(ours: Result, bare: Result) -> float | None:
    return ours["rate"] / bare["rate"] if "rate" in ours and "rate" in bare else None


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    settings = measured["settings"]
    yield (
        f"{heading(measured)}; {settings['messages']:,} messages of {settings['size']} bytes, each "
        f"confirmed; medians of {settings['rounds']} rounds; "
        f"raw: [results/brokers.json](results/brokers.json)."
    )
    yield ""
    head = ["", "", "localdelay", "bare", "ratio", "awaited", "ratio", "p99", "bare p99"]
    rows = [
        [name, title, *_cells(shape)]
        for name, shapes in measured["brokers"].items()
        for title, shape in shapes.items()
    ]
    yield from table(head, rows)


def _cells(shape: Result) -> Sequence[str]:
    cells = [_rate(shape[LOCALDELAY])]
    for who in (BARE, AWAITED):
        if who in shape:
            ratio = shape["ratios"][who]
            missed = f" < {TARGET:g}" if ratio is not None and ratio < TARGET else ""
            cells += [_rate(shape[who]), f"{shown(ratio, '.2f')}{missed}"]
        else:
            cells += ["", ""]
    return [*cells, *(shown(ms(shape[who].get("p99")), ".2f", " ms") for who in (LOCALDELAY, BARE))]


def _rate(figures: Result) -> str:
    return shown(figures.get("rate"), ",.0f", "/s")


@on_trio
async def _through_localdelay(url: str, payload: bytes, *, count: int, at_once: int, batch: int) -> Sent:
    """What `bare` does, with `send` or `send_batch`."""
    numbers = iter(range(count))
    async with open_broker(url) as broker:

        async def publish() -> None:
            due = trio.current_time()
            messages = [Message(f"m{next(numbers)}", payload, due) for _ in range(batch)]
            await (broker.send(*messages) if batch == 1 else broker.send_batch(messages))

        return await in_nursery(publish, turns=count // batch, at_once=at_once)


def confirmed(broker: str, who: str, url: str, size: int, batch: int, **load: int) -> Result:
    """One sample: messages/s, and the percentiles of the times, in seconds."""
    publish: Bare = getattr(import_module(f"bench.bare.{broker}"), who, _through_localdelay)
    sent = publish(url, bytes(size), batch=batch, **load)
    found = distribution(sent.times)
    return {
        "rate": found.count * batch / sent.seconds,
        "p50": found.p50,
        "p99": found.p99,
        "max": found.max,
    }


SAMPLES = {"confirmed": confirmed}


@click.command()
@click.option("--broker", "brokers", multiple=True, type=click.Choice(NAMES), help="Only this; repeatable.")
@click.option("--messages", type=click.IntRange(min=1000), default=Settings().messages, show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=Settings().size, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=Settings().rounds, show_default=True)
@click.option("--quick", is_flag=True, help="One short round: to see that it works. It is not saved.")
@table_option
def main(brokers: tuple[str, ...], messages: int, size: int, rounds: int, quick: bool, saved: bool) -> None:
    """Measure confirmed messages/s and send times for each broker, beside its bare client.

    Writes bench/results/brokers.json, and prints the README's table of it.
    """
    settings = Settings(brokers or NAMES, *((1000, size, 1) if quick else (messages, size, rounds)))
    take = partial(in_process, "brokers", "confirmed")
    show("brokers", lines, partial(measure, settings, take, progress), saved=saved, keep=not quick)


if __name__ == "__main__":
    main()
