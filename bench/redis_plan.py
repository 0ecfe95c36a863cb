"""Plan 1 on a real Redis: how fast it is, and what it asks of Redis beside the literal plan 1.

    python -m bench.redis_plan [--rate 200] [--shards 64] [--seconds 10]

It starts a redis-server of its own on a free port, and measures:

- speed: messages through put, claim, send and confirm of one instance, put as fast as it goes by many tasks;
  and how late they are at a given rate.
- idle: commands a second while messages wait in every shard and none comes due.
- commands: what one message costs, and the same in the literal plan 1, where every shard is polled every
  200 ms behind a lock (SET NX).

"sent" is what travels to Redis; "inside" is INFO's commandstats, which have what scripts call, too.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import attrs
import trio
from redis import Redis

from localdelay import LatencySummary, Message
from localdelay.benchmark.redis import SortedSets
from localdelay.brokers.redis_line import Place
from localdelay.redis_plan import open_redis_delay_queue
from localdelay.redis_plan.link import Link
from tests.kit.servers.redis import RedisServer

SEED = 7
PAYLOAD = bytes(500)
WORKERS = 20
PUTTERS = 200


@attrs.frozen
class Cost:
    messages: int
    seconds: float
    sent: int
    inside: int
    lateness: LatencySummary | None = None

    def line(self, name: str) -> str:
        if not self.messages:
            rate, inside = self.sent / self.seconds, self.inside / self.seconds
            return f"{name:34} {rate:8.2f} sent/s {inside:8.2f} inside/s"
        text = (
            f"{name:34} {self.messages / self.seconds:8,.0f} messages/s "
            f"{self.sent / self.messages:7.2f} sent, {self.inside / self.messages:6.2f} inside a message"
        )
        if self.lateness is None:
            return text
        p50, p99 = (self.lateness.p50 or 0) * 1e3, (self.lateness.p99 or 0) * 1e3
        return f"{text}; late p50 {p50:.2f} p99 {p99:.2f} max {(self.lateness.max or 0) * 1e3:.2f} ms"


def calls(client: Redis) -> int:
    """All commands so far, those inside scripts included, without the asking itself."""
    found = client.info("commandstats")
    return sum(int(one["calls"]) for name, one in found.items() if not name.startswith("cmdstat_info"))


@contextmanager
def server() -> Iterator[tuple[RedisServer, Redis]]:
    one = RedisServer(durable=False)
    try:
        one.start()
        with one.client() as client:
            yield one, client
    finally:
        one.stop()


async def _nothing(_: Message) -> None:
    pass


async def closed(one: RedisServer, client: Redis, shards: int, count: int, delay: float) -> Cost:
    """Put as fast as it goes, by tasks that each wait for their put; until all is confirmed."""
    async with open_redis_delay_queue(
        _nothing, url=one.fresh(), shards=shards, workers=WORKERS, capacity=20_000
    ) as queue:
        before, inside = queue.statistics().commands, calls(client)
        begun = trio.current_time()
        left = iter(range(count))

        async def put() -> None:
            for _ in left:
                await queue.put(PAYLOAD, delay=delay)

        async with trio.open_nursery() as nursery:
            for _ in range(PUTTERS):
                nursery.start_soon(put)
        while (found := queue.statistics()).sent < count or found.unconfirmed:  # noqa: ASYNC110
            await trio.sleep(0.01)
        seconds = trio.current_time() - begun
        sent = queue.statistics().commands - before
        assert await queue.count() == 0
        return Cost(count, seconds, sent, calls(client) - inside, found.lateness)


async def paced(
    one: RedisServer, client: Redis, shards: int, rate: float, seconds: float, delay: tuple[float, float]
) -> Cost:
    """Put at a rate, each message in a task of its own; count from when messages come due."""
    seed = random.Random(SEED)
    async with open_redis_delay_queue(
        _nothing, url=one.fresh(), shards=shards, workers=WORKERS, capacity=20_000
    ) as queue:

        async def put() -> None:
            await queue.put(PAYLOAD, delay=seed.uniform(*delay))

        async def put_all() -> None:
            when = trio.current_time()
            async with trio.open_nursery() as nursery:
                while True:
                    when += seed.expovariate(rate)
                    await trio.sleep_until(when)
                    nursery.start_soon(put)

        async with trio.open_nursery() as putting:
            putting.start_soon(put_all)
            await trio.sleep(delay[1])
            before, inside = queue.statistics(), calls(client)
            await trio.sleep(seconds)
            after, inside = queue.statistics(), calls(client) - inside
            putting.cancel_scope.cancel()
        return Cost(
            after.sent - before.sent, seconds, after.commands - before.commands, inside, after.lateness
        )


async def idle(one: RedisServer, client: Redis, shards: int, seconds: float) -> Cost:
    """Messages wait in all shards, and none comes due."""
    async with open_redis_delay_queue(_nothing, url=one.fresh(), shards=shards, workers=WORKERS) as queue:
        async with trio.open_nursery() as nursery:
            for number in range(shards * 10):
                nursery.start_soon(partial(queue.put, PAYLOAD, delay=3600, id=f"waits {number}"))
        await trio.sleep(1)
        before, inside = queue.statistics().commands, calls(client)
        await trio.sleep(seconds)
        return Cost(0, seconds, queue.statistics().commands - before, calls(client) - inside)


async def literal(
    one: RedisServer, client: Redis, shards: int, rate: float, seconds: float, delay: float
) -> Cost:
    """The write-up's plan 1: sorted sets with the bodies in them, polled by one instance."""
    seed = random.Random(SEED)
    link = Link(
        Place("127.0.0.1", one.port),
        b"-",
        connect_timeout=5,
        reply_timeout=5,
        on_news=lambda _: None,
        on_connected=lambda: None,
    )
    name = one.fresh()
    sent = 0

    async def send(_: float, __: bytes) -> None:
        nonlocal sent
        sent += 1

    sets = SortedSets(link, name, shards, send)

    async def put() -> None:
        await sets.put(PAYLOAD, delay=delay)

    async with trio.open_nursery() as nursery:
        await nursery.start(link.keep)
        nursery.start_soon(sets.run)

        async def put_all() -> None:
            when = trio.current_time()
            while True:
                when += seed.expovariate(rate)
                await trio.sleep_until(when)
                nursery.start_soon(put)

        nursery.start_soon(put_all)
        await trio.sleep(delay)
        before, asked, inside = sent, link.commands, calls(client)
        await trio.sleep(seconds)
        cost = Cost(sent - before, seconds, link.commands - asked, calls(client) - inside)
        nursery.cancel_scope.cancel()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan 1 on a real Redis.")
    parser.add_argument("--rate", type=float, default=200.0, help="messages/s of the comparison")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--messages", type=int, default=30_000, help="of the closed loop")
    asked = parser.parse_args()
    shards, rate, seconds = asked.shards, asked.rate, asked.seconds
    with server() as (one, client):
        gc.collect()
        gc.freeze()  # or each full collection walks all that the imports have made, for 40 ms
        print(f"{shards} shards, {len(PAYLOAD)} bytes, {WORKERS} workers, seed {SEED}")
        print(trio.run(closed, one, client, shards, asked.messages, 0.5).line("as fast as it goes"))
        fast = trio.run(paced, one, client, shards, 5000.0, seconds, (1.0, 1.0))
        print(fast.line("5,000/s, delay 1 s"))
        print(trio.run(idle, one, client, shards, seconds).line("idle"))
        ours = trio.run(paced, one, client, shards, rate, seconds, (2.0, 2.0))
        print(ours.line(f"{rate:g}/s, delay 2 s"))
        mixed = trio.run(paced, one, client, shards, rate, seconds, (0.0, 5.0))
        print(mixed.line(f"{rate:g}/s, delays 0 to 5 s"))
        theirs = trio.run(literal, one, client, shards, rate, seconds, 2.0)
        print(theirs.line(f"the literal plan 1, {rate:g}/s, 2 s"))
        for name, cost in (("delay 2 s", ours), ("delays 0 to 5 s", mixed)):
            ratio = (theirs.sent / theirs.messages) / (cost.sent / cost.messages)
            print(f"the literal plan sends {ratio:.1f} times as many commands a message ({name})")


if __name__ == "__main__":
    main()
