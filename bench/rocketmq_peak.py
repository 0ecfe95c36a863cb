"""The evening peak on a real RocketMQ, which refuses by the second in which a message is due.

`python -m bench.rocketmq_peak`. Half of the messages are due at a turn of five seconds (orders close,
auctions end), the rest at any time; the broker's timer takes `--slot` of one instant
(`timerCongestNumEachSlot`). Once with one valve for all, once with `Fallback(key=due second)`: then only what
is due in a full second is held here.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import trio

from localdelay import Fallback, Message, Route, open_delay_queue
from localdelay.brokers import open_broker
from localdelay.brokers.wire import EXECUTE_AT, ID, wall_clock
from tests.kit.servers.rocketmq import RocketServer

from .samples import table

_TURN = 5.0
_SHORTEST, _LONGEST = 3.0, 12.0
_SEED = 20261121
_NAMES = [f"{route} {turn}" for route in ("primary", "local") for turn in ("at a turn", "at any time")]


def due_second(message: Message) -> int:
    """What the timer counts by: it takes whole seconds, rounded up."""
    return math.ceil(wall_clock(message.execute_at, trio.current_time()))


async def publish(
    url: str, rate: int, seconds: float, key: Callable[[Message], int] | None
) -> tuple[Counter[str], Any]:
    """Publish the peak, and wait until what was held here is sent: the routes, and the fallback's figures."""
    draws = random.Random(_SEED)
    routes: Counter[str] = Counter()
    async with (
        open_broker(url) as broker,
        open_delay_queue(broker.send, capacity=100_000, workers=40) as queue,
        trio.open_nursery() as nursery,
    ):
        fallback = Fallback(broker.publish_delayed, queue, key=key)

        async def one(number: int) -> None:
            delay = draws.uniform(_SHORTEST, _LONGEST)
            if number % 2:
                now = time.time()
                delay = math.ceil((now + delay) / _TURN) * _TURN - now
            receipt = await fallback.publish(b"%d" % number, delay=delay, id=f"m{number}")
            turn = "at a turn" if number % 2 else "at any time"
            routes[f"{'primary' if receipt.route is Route.PRIMARY else 'local'} {turn}"] += 1

        begun = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(begun + number / rate)
            nursery.start_soon(one, number)
        await trio.sleep_until(begun + seconds + 1)
        statistics = fallback.statistics()
    return routes, statistics


def run(
    server: RocketServer, rate: int, seconds: float, key: Callable[[Message], int] | None
) -> dict[str, str]:
    """One peak, counted by a consumer."""
    url = server.fresh()
    routes, statistics = trio.run(publish, url, rate, seconds, key)
    count = int(rate * seconds)
    arrived = server.read(url, count)
    ids = Counter(one.headers[ID] for one in arrived)
    dues = [(datetime.fromisoformat(one.headers[EXECUTE_AT]).timestamp(), one.at) for one in arrived]
    return {
        "published": f"{count:,}",
        **{name: f"{routes[name]:,}" for name in _NAMES},
        "calls of the primary": f"{statistics.calls:,}",
        "lost": f"{count - len(ids):,}",
        "twice": f"{len(arrived) - len(ids):,}",
        "early": f"{sum(due > at + 0.002 for due, at in dues):,}",
    }


@click.command()
@click.option("--rate", type=click.IntRange(min=1), default=200, show_default=True, help="Messages a second.")
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, show_default=True)
@click.option("--slot", type=click.IntRange(min=1), default=100, show_default=True)
def main(rate: int, seconds: float, slot: int) -> None:
    """Show what becomes of the peak with one valve for all, and with one for each second."""
    server = RocketServer(timerCongestNumEachSlot=str(slot))
    server.start()
    try:
        one = run(server, rate, seconds, None)
        each = run(server, rate, seconds, due_second)
    finally:
        server.stop()
    rows = [[name, one[name], each[name]] for name in one]
    click.echo("\n".join(table(["", "one valve", "a valve a second"], rows)))


if __name__ == "__main__":
    main()
