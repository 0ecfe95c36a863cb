"""Instances of a queue in Redis that come and go at random, with failing sends and cut connections."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import trio

from localdelay import Message, PermanentSendError, RetryPolicy, Throttled
from localdelay.redis_plan import RedisDelayQueue, RedisTuning, open_redis_delay_queue
from tests.kit.servers.redis import RedisServer

SEED = 20261121
LIVES = 3
EACH = 250


@pytest.fixture
def server(start_server: Callable[[str], RedisServer]) -> Iterator[RedisServer]:
    """One that this test may spoil, and that writes nothing to disk."""
    start_server("redis")  # or the test is skipped where there is none
    one = RedisServer(durable=False)
    one.start()
    yield one
    one.stop()


class World:
    """What was put, and what became of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.put: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.left = EACH * LIVES

    async def send(self, message: Message) -> None:
        await trio.sleep(self.random.choice((0, 0, 0.001, 0.01)))
        fate = self.random.random()
        if fate < 0.08:
            raise (
                OSError("no") if fate < 0.05 else Throttled("no") if fate < 0.07 else PermanentSendError("no")
            )
        self.sent[message.id] += 1

    async def bury(self, message: Message, _: Exception) -> None:
        self.dead[message.id] += 1

    async def fill(self, queue: RedisDelayQueue) -> None:
        """Put some messages, and cancel a few of them."""
        for _ in range(self.random.randint(20, 60)):
            if not self.left:
                return
            self.left -= 1
            chosen = f"chosen {self.left}" if self.random.random() < 0.4 else None
            try:
                delay = self.random.choice((0, 0.1, self.random.uniform(0, 1)))
                message = await queue.put(b"x" * self.random.randint(0, 50), delay=delay, id=chosen)
                self.put.add(message.id)
                if self.random.random() < 0.05 and await queue.cancel(message.id):
                    self.cancelled.add(message.id)
            except (ConnectionError, Throttled):
                await trio.sleep(0.02)

    async def live(self, url: str) -> None:
        """One instance after another."""
        choice = self.random.choice
        while self.left:
            async with open_redis_delay_queue(
                self.send,
                url=url,
                shards=4,
                workers=choice((1, 5, 20)),
                capacity=choice((5, 50, 1000)),
                tuning=RedisTuning(
                    claim_ahead=choice((0.05, 0.3, 1.0)),
                    confirm_within=choice((0.0, 0.1)),
                    linger=choice((0.0, 0.01)),
                    heartbeat=0.3,
                ),
                retry=RetryPolicy(wait_initial=choice((0.01, 0.6)), wait_max=1.0, wait_jitter=0.1),
                on_dead_letter=self.bury,
            ) as queue:
                async with trio.open_nursery() as nursery:
                    for _ in range(self.random.randint(1, 5)):
                        nursery.start_soon(self.fill, queue)
                    await self.disturb(queue)
                if choice((True, False)):
                    await queue.drain(choice((0.0, 0.2)))
            s = queue.statistics()
            assert s.accepted == s.sent + s.dead + s.cancelled + s.spooled
            assert s.pending == s.waiting == s.sending == s.retrying == 0

    async def disturb(self, queue: RedisDelayQueue) -> None:
        await trio.sleep(0.1)
        what = self.random.randrange(5)
        if what == 0:
            queue.pause()
            await trio.sleep(0.1)
            queue.resume()
        elif what == 1:
            queue.resize(capacity=self.random.choice((3, 100)), workers=self.random.choice((1, 8)))
        elif what == 2:
            with suppress(ConnectionError, Throttled):
                await queue.set_shards(self.random.choice((1, 2, 5, 16)))

    async def cut(self, server: RedisServer) -> None:
        """Cut the connections that are there, now and then."""
        while True:
            await trio.sleep(self.random.uniform(0.5, 1.0))
            with server.client() as client:
                for kind in ("normal", "pubsub"):
                    client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@pytest.mark.parametrize("faults", [False, True], ids=["calm", "cut off"])
async def test_whatever_happens_nothing_is_lost(server: RedisServer, faults: bool) -> None:
    """Each message is sent, given up or cancelled, and gone from Redis; without faults each is sent once."""
    print("seed", SEED)
    world, url = World(SEED), server.fresh()
    async with trio.open_nursery() as outer:
        if faults:
            outer.start_soon(world.cut, server)

        async def live() -> None:
            while world.left:
                try:
                    await world.live(url)
                except ConnectionError:  # cut off while it was being opened
                    await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for _ in range(LIVES):
                nursery.start_soon(live)
        outer.cancel_scope.cancel()
    retry = RetryPolicy(wait_initial=0.01, wait_jitter=0.0)
    async with open_redis_delay_queue(
        world.send,
        url=url,
        workers=20,
        retry=retry,
        tuning=RedisTuning(confirm_within=0.02),
        on_dead_letter=world.bury,
    ) as queue:
        with trio.fail_after(100):
            while await queue.count():  # noqa: ASYNC110 (others' messages tell nobody)
                await trio.sleep(0.02)
    finished = set(world.sent) | set(world.dead) | world.cancelled
    assert world.put <= finished
    assert not world.cancelled & (set(world.sent) | set(world.dead))
    if not faults:
        assert world.put == finished
        assert set((world.sent + world.dead).values()) == {1}
    with server.client() as client:
        for key in client.keys("localdelay:*"):
            assert key.endswith((b"state", b"layout")), key
            if key.endswith(b"state"):
                assert client.hget(key, "bytes") in (b"0", None)
