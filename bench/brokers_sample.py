"""One sample of `bench.brokers`, in a process of its own: through localdelay, or the bare client."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import trio

from bench.bare import Bare, Sent
from bench.brokers import LOCALDELAY
from bench.samples import Result, distribution
from localdelay import Message
from localdelay.brokers import Broker, open_broker


async def through_localdelay(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """What `bare` does, with `send` or `send_batch`."""
    times: list[float] = []
    numbers = iter(range(count // batch))
    async with open_broker(url) as broker:
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(_send_in_turn, broker, numbers, payload, batch, times)
        return Sent(time.perf_counter() - begun, times)


async def _send_in_turn(
    broker: Broker, numbers: Iterator[int], payload: bytes, batch: int, times: list[float]
) -> None:
    for number in numbers:
        begun = time.perf_counter()
        due = trio.current_time()
        if batch == 1:
            await broker.send(Message(f"m{number}", payload, due))
        else:
            await broker.send_batch([Message(f"m{number}-{i}", payload, due) for i in range(batch)])
        times.append(time.perf_counter() - begun)


def figures(sent: Sent, batch: int) -> Result:
    """Messages/s, and the percentiles of the times, in seconds."""
    found = distribution(sent.times)
    return {
        "rate": found.count * batch / sent.seconds,
        "p50": found.p50,
        "p99": found.p99,
        "max": found.max,
    }


def main(arguments: dict[str, Any]) -> None:
    """Run it, and print the figures as JSON."""
    url, payload = arguments["url"], bytes(arguments["size"])
    load = {name: arguments[name] for name in ("count", "at_once", "batch")}
    if arguments["who"] != LOCALDELAY:
        bare: Bare = getattr(import_module(f"bench.bare.{arguments['broker']}"), arguments["who"])
        sent = bare(url, payload, **load)
    else:

        async def ours() -> Sent:
            return await through_localdelay(url, payload, **load)

        sent = trio.run(ours)
    print(json.dumps(figures(sent, arguments["batch"])))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
