"""What the degrade path costs, and puts from other worlds: `python -m bench.degrade`.

Each figure is the median of several samples, taken turn and turn about; README.md in this folder says what
each one means.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import click
import trio

from localdelay import BreakerPolicy, Fallback, Message, RateLimit, aio, open_delay_queue, threads

from . import report
from .samples import Result, machine
from .targets import Target

_MESSAGES = 20_000
_FOREIGN = 100_000
_DELAY = 3600.0
_PAYLOAD = bytes(500)


async def _primary(message: Message, delay: float) -> None:
    pass


async def _send(message: Message) -> None:
    pass


async def _send_batch(messages: Sequence[Message]) -> None:
    pass


def trio_figures() -> Result:
    """Microseconds a publish, on a Trio loop, with nobody else on it."""

    async def main() -> Result:
        figures: Result = {"call": await _each(lambda: _primary(_MESSAGE, 1.0))}
        for name, limit in (("closed", None), ("closed, with a limit", RateLimit(1e9))):
            async with open_delay_queue(_send, capacity=2 * _MESSAGES, workers=2) as queue:
                fallback = Fallback(_primary, queue, limit=limit)
                cost = await _each(lambda: fallback.publish(_PAYLOAD, delay=_DELAY))  # noqa: B023
                figures[name] = cost - figures["call"]
        async with open_delay_queue(_send, capacity=2 * _MESSAGES, workers=2) as queue:
            fallback = Fallback(_primary, queue, breaker=BreakerPolicy())
            fallback.force_open()
            figures["open"] = await _each(lambda: fallback.publish(_PAYLOAD, delay=_DELAY))
            for message in queue.messages():
                queue.cancel(message.id)
        return figures

    return trio.run(main)


_MESSAGE = Message("m", _PAYLOAD, 0.0)


async def _each(publish: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    for _ in range(_MESSAGES):
        await publish()
    return (time.perf_counter() - begun) / _MESSAGES * 1e6


def foreign_figures() -> Result:
    """Puts/s from one other thread, and from an asyncio loop, until the last is in the queue."""
    with threads.open_delay_queue(send_batch=_send_batch, capacity=_FOREIGN, workers=2) as queue:
        begun = time.perf_counter()
        for _ in range(_FOREIGN):
            queue.put_nowait(_PAYLOAD, delay=_DELAY)
        put = time.perf_counter()
        assert queue.statistics().waiting == _FOREIGN
        arrived = time.perf_counter()
        queue.drain(grace=0.0)

    async def main() -> float:
        async with aio.open_delay_queue(send_batch=_send_batch, capacity=_FOREIGN, workers=2) as queue:
            begun = time.perf_counter()
            for _ in range(_FOREIGN):
                queue.put_nowait(_PAYLOAD, delay=_DELAY)
            took = time.perf_counter() - begun
            await queue.drain(grace=0.0)
            return took

    return {
        "thread": _FOREIGN / (put - begun),
        "thread, until they are in the queue": _FOREIGN / (arrived - begun),
        "asyncio": _FOREIGN / asyncio.run(main()),
    }


def soon_figures() -> Result:
    """What Trio's own `run_sync_soon` does from one other thread: the floor of a hop a put."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    async def main() -> float:
        token = trio.lowlevel.current_trio_token()

        def call() -> float:
            begun = time.perf_counter()
            for _ in range(_FOREIGN):
                token.run_sync_soon(count)
            return time.perf_counter() - begun

        return await trio.to_thread.run_sync(call)

    return {"run_sync_soon": _FOREIGN / trio.run(main)}


def measure(runs: int, progress: Callable[[str], None]) -> Result:
    """Run everything, and take the medians."""
    samples: list[tuple[Result, Result, Result]] = []
    for run in range(runs):
        progress(f"run {run + 1}/{runs}")
        samples.append((trio_figures(), foreign_figures(), soon_figures()))
    publish, foreign, soon = (
        {name: statistics.median(figures[name] for figures in column) for name in column[0]}
        for column in zip(*samples, strict=True)
    )
    targets = [
        Target("what a publish adds to the primary's call, closed, in us", publish["closed"], at_most=15.0),
        Target("a publish while the breaker is open, in us", publish["open"], at_most=15.0),
        Target("puts/s from one foreign thread", foreign["thread"], at_least=100_000.0),
    ]
    return {
        "machine": machine(),
        "runs": runs,
        "publish": publish,
        "foreign": {**foreign, **soon},
        "targets": [target.as_json() for target in targets],
    }


def lines(measured: dict[str, Any]) -> Iterator[str]:
    """The report."""
    yield from report.machine_lines(measured["machine"])
    yield f"medians of {measured['runs']} runs"
    yield ""
    yield "FALLBACK, µs a publish beyond the primary's own call ('open': in all)"
    for name, cost in measured["publish"].items():
        yield f"  {name:<40}{cost:>12.2f}"
    yield ""
    yield "PUTS/s from outside the queue's loop"
    for name, rate in measured["foreign"].items():
        yield f"  {name:<40}{rate:>12,.0f}"
    yield from report.target_lines(measured["targets"])


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(runs: int, as_json: bool) -> None:
    """Measure what a publish costs through a Fallback, and puts from threads and from asyncio."""
    measured = measure(runs, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(measured, indent=2) if as_json else "\n".join(lines(measured)))


if __name__ == "__main__":
    main()
