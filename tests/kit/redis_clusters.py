"""A queue in a Redis Cluster, or one that sends there, and who counts what becomes of its messages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio

from localdelay import Message, RetryPolicy, Throttled, open_delay_queue
from localdelay.brokers import open_broker
from localdelay.brokers.redis_masters import slot_of
from localdelay.brokers.wire import ID
from localdelay.redis_plan import RedisDelayQueue, open_redis_delay_queue
from localdelay.redis_plan.keys import Names
from tests.kit.conserving import conserved
from tests.kit.redis_plan_worker import real_time
from tests.kit.redis_queues import conserve, tuned
from tests.kit.servers.redis_cluster import Node, RedisCluster
from tests.kit.servers.redis_sentinel import RedisSentinels

SEED = 20261130
SHARDS = 64

Servers = TypeVar("Servers", RedisCluster, RedisSentinels)


@contextmanager
def running(start_server: Callable[[str], object], one: Servers) -> Iterator[Servers]:
    """Servers that the test may spoil; where there is no Redis the test is skipped."""
    start_server("redis")
    try:
        one.start()
        yield one
    finally:
        one.stop()


@asynccontextmanager
async def opened_on(
    servers: RedisCluster | RedisSentinels,
    send: Callable[[Message], object],
    url: str = "",
    **options: object,
) -> AsyncIterator[RedisDelayQueue]:
    usual = {"workers": 10, "shards": SHARDS, "claim_ahead": 0.5, "lease": 3.0}
    url = url or servers.fresh()
    async with open_redis_delay_queue(send, url=url, **tuned(**usual | options)) as queue:
        yield queue
    conserve(queue)


class World:
    """What was put, and what was sent: how often, and by how much too early at worst."""

    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.put: dict[str, float] = {}
        self.refused = 0
        self.sent: Counter[str] = Counter()
        self.earliest = 1e9

    async def send(self, message: Message) -> None:
        self.earliest = min(self.earliest, real_time() - float(message.payload))
        self.sent[message.id] += 1

    async def fill(self, queue: RedisDelayQueue, count: int, *, tasks: int = 50) -> None:
        """Put so many messages; what the cluster does not take at once is put again, under another id."""
        left = iter(range(count))

        async def put() -> None:
            for _ in left:
                while True:
                    delay = self.random.choice((1.0, self.random.uniform(0.5, 4.0)))
                    try:
                        message = await queue.put(f"{real_time() + delay:.6f}".encode(), delay=delay + 1e-6)
                    except (ConnectionError, Throttled):
                        self.refused += 1
                        await trio.sleep(0.05)
                        continue
                    self.put[message.id] = real_time()
                    break

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(put)

    async def until_put(self, count: int) -> None:
        """Wait until Redis has confirmed so many."""
        while len(self.put) < count:  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def until_empty(self, queue: RedisDelayQueue, *, within: float = 200.0) -> None:
        """Wait until Redis holds nothing any more."""
        with trio.fail_after(within):
            while True:
                try:
                    if not await queue.count():
                        return
                except (ConnectionError, Throttled):
                    pass
                await trio.sleep(0.05)

    @property
    def lost(self) -> set[str]:
        """What Redis had confirmed, and nobody has sent."""
        return self.put.keys() - self.sent.keys()

    def show(self) -> str:
        twice = sum(times > 1 for times in self.sent.values())
        return f"{len(self.put)} put, {self.refused} refused, {len(self.lost)} lost, {twice} sent twice"


@asynccontextmanager
async def streaming(url: str, count: int, over: float, **options: float) -> AsyncIterator[dict[str, float]]:
    """Send so many messages to a stream, due one after the other over so many seconds.

    Gives when each was confirmed; all are when the block has been left.
    """
    confirmed: dict[str, float] = {}

    async def send(message: Message) -> None:
        await broker.send(message)
        confirmed[message.id] = real_time()

    retry = RetryPolicy(wait_initial=0.05, wait_max=0.5)
    with trio.fail_after(100):
        async with (
            open_broker(url, **options) as broker,
            open_delay_queue(send, capacity=count, workers=50, retry=retry) as queue,
        ):
            for number in range(count):
                queue.put_nowait(b"m%d" % number, delay=over * number / count, id=f"m{number}")
            yield confirmed
    assert conserved(queue.statistics()).sent == len(confirmed) == count


async def arrived_in(cluster: RedisCluster | RedisSentinels, url: str, count: int) -> Counter[str]:
    """How often each id is in the stream, once it has so many entries."""
    received = await trio.to_thread.run_sync(cluster.read, url, count)
    return Counter(one.headers[ID] for one in received)


def shards_of(cluster: RedisCluster, node: Node, url: str) -> list[int]:
    """The slots of the shards of this queue that this node has."""
    names, owned = Names(url.rpartition("/")[2]), cluster.slots_of(node)
    slots = [slot_of(names.of(shard)[0]) for shard in range(SHARDS)]
    return [slot for slot in slots if any(slot in some for some in owned)]
