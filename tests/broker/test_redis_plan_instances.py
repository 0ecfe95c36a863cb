"""Several instances of a queue in Redis: some die or freeze, clocks are wrong, shards come and go."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from localdelay import Message
from localdelay.redis_plan import RedisDelayQueue, RedisTuning, open_redis_delay_queue
from localdelay.redis_plan.keys import Layout
from tests.kit import redis_plan_worker
from tests.kit.redis_plan_worker import real_time
from tests.kit.redis_queues import confirmed, tuned, until
from tests.kit.servers.redis import RedisServer

SEED = 20261121
WORKER = Path(redis_plan_worker.__file__)


@pytest.fixture
def server(redis: RedisServer, begin: Callable[[RedisServer], RedisServer]) -> RedisServer:
    """A server that writes nothing to disk, for these tests do much and restart nothing."""
    return begin(RedisServer(durable=False))


@attrs.define
class Instance:
    """A process that sends, and the file that it writes."""

    process: subprocess.Popen[bytes]
    file: Path

    def sent(self) -> list[tuple[str, float]]:
        pairs = (line.split() for line in self.file.read_text().splitlines())
        return [(id, float(late)) for id, late in pairs]

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """`start(url, name)` runs an instance in a process."""
    instances: list[Instance] = []

    def started(
        url: str, name: str, *, lease: float = 30.0, skew: float = 0.0, messages: int = 0
    ) -> Instance:
        file = tmp_path / name
        file.touch()
        command = [sys.executable, str(WORKER), url, str(file), str(lease), str(skew), str(messages)]
        root = str(WORKER.parents[2])
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
        )
        instances.append(Instance(process, file))
        return instances[-1]

    yield started
    for one in instances:
        one.process.kill()
        one.process.wait()
        for stream in (one.process.stdin, one.process.stdout):
            assert stream is not None
            stream.close()


@asynccontextmanager
async def queue_of(
    server: RedisServer, url: str, send: Callable[[Message], object] | None = None, **options: object
) -> AsyncIterator[RedisDelayQueue]:
    async def sent(message: Message) -> None:
        if send is not None:
            send(message)

    async with open_redis_delay_queue(sent, url=url, **tuned(**{"workers": 4, **options})) as queue:
        yield queue


async def test_a_killed_and_a_frozen_process_lose_nothing(
    server: RedisServer, start: Callable[..., Instance]
) -> None:
    """Of three processes one is killed and one frozen past its lease: all arrives, only theirs twice."""
    print("seed", SEED)
    seed = random.Random(SEED)
    url, lease, count = server.fresh(), 1.5, 8_000
    ids: set[str] = set()
    async with queue_of(server, url, shards=16, workers=1) as queue:
        queue.pause()
        delays = iter([seed.choice((0.5, 2.0, 4.0, seed.uniform(0, 6))) for _ in range(count)])

        async def put() -> None:
            for delay in delays:
                due = real_time() + delay
                message = await queue.put(f"{due:.6f}".encode(), at=datetime.fromtimestamp(due, UTC))
                ids.add(message.id)

        instances = [start(url, name, lease=lease) for name in ("stays", "killed", "frozen")]
        for one in instances:
            await trio.to_thread.run_sync(one.ready)
        _, killed, frozen = instances
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(put)
            await until(lambda: all(len(one.sent()) > 100 for one in instances))
            killed.process.kill()
            os.kill(frozen.process.pid, signal.SIGSTOP)
        await trio.sleep(2 * lease)
        os.kill(frozen.process.pid, signal.SIGCONT)
        everyone: Counter[str] = Counter()

        def all_arrived() -> bool:
            nonlocal everyone
            everyone = Counter(id for one in instances for id, _ in one.sent())
            return len(everyone) >= count

        await until(all_arrived)
        await confirmed(queue)
        all_arrived()
    assert len(ids) == count
    assert set(everyone) == ids
    theirs = {id for one in (killed, frozen) for id, _ in one.sent()}
    twice = {id for id, times in everyone.items() if times > 1}
    print(f"{len(twice)} twice; " + ", ".join(f"{one.file.name} {len(one.sent())}" for one in instances))
    assert twice <= theirs
    assert min(late for one in instances for _, late in one.sent()) >= 0


async def test_a_wrong_clock_of_an_instance_changes_nothing(
    server: RedisServer, start: Callable[..., Instance]
) -> None:
    """Clocks that are ten seconds fast and slow: nothing is early, and nothing late by that."""
    url, each = server.fresh(), 300
    async with queue_of(server, url, shards=8) as queue:
        queue.pause()
        fast = start(url, "fast", skew=10.0, messages=each)
        slow = start(url, "slow", skew=-10.0, messages=each)
        await until(lambda: len(fast.sent()) + len(slow.sent()) >= 2 * each)
        assert await queue.count() <= 2 * each
    sent = [*fast.sent(), *slow.sent()]
    assert len({id for id, _ in sent}) == len(sent) == 2 * each
    assert all(0 <= late < 9 for _, late in sent), sorted(late for _, late in sent)[-5:]
    assert fast.sent()
    assert slow.sent()


async def test_shards_come_and_go_under_load(server: RedisServer) -> None:
    """From 4 shards to 16 and to 2, by three instances that put and send all the time: each message once."""
    print("seed", SEED)
    seed = random.Random(SEED)
    url, each = server.fresh(), 300
    arrived: Counter[str] = Counter()
    ids: set[str] = set()
    names = itertools.count()

    async def put(queue: RedisDelayQueue) -> None:
        for number in range(each):
            id = f"chosen {next(names)}" if number % 3 == 0 else None
            message = await queue.put(b"x", delay=seed.uniform(0, 2.5), id=id)
            ids.add(message.id)
            await trio.sleep(0.003)

    async with AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(
                queue_of(
                    server,
                    url,
                    lambda message: arrived.update((message.id,)),
                    shards=4,
                    heartbeat=0.3,
                    linger=0.0,
                    claim_ahead=0.3,
                )
            )
            for _ in range(3)
        ]
        async with trio.open_nursery() as nursery:
            for queue in queues:
                nursery.start_soon(put, queue)
            await trio.sleep(0.8)
            await queues[0].set_shards(16)
            await until(lambda: [queue.statistics().shards for queue in queues] == [16, 16, 16])
            await trio.sleep(0.5)
            await queues[1].set_shards(2)
        await until(lambda: len(arrived) == len(ids))
        await until(lambda: all(queue.statistics().retiring == 0 for queue in queues))
        await until(lambda: not any(queue.statistics().unconfirmed for queue in queues))
        await confirmed(queues[2])
        assert {queue.statistics().shards for queue in queues} == {2}
    assert set(arrived) == ids
    assert set(arrived.values()) == {1}
    with server.client() as client:
        kinds = {key.rpartition(b":")[2] for key in client.keys(f"localdelay:*{url.rpartition('/')[2]}*")}
        assert kinds <= {b"state", b"layout"}


async def test_an_instance_that_missed_a_change_is_refused_by_the_shard(server: RedisServer) -> None:
    """What it puts into a closed shard goes where it belongs by now, and is not lost."""
    url = server.fresh()
    arrived: list[str] = []
    async with (
        queue_of(server, url, shards=16) as one,
        queue_of(server, url, lambda message: arrived.append(message.id)),
    ):
        await one.set_shards(2)
        await trio.sleep(0.1)
        one._layouts.layout = Layout(1, 16, 16)
        one.pause()
        for number in range(20):
            await one.put(b"x", delay=0.05, id=f"number {number}")
        await until(lambda: len(arrived) == 20)
        assert one.statistics().shards == 2


async def test_a_message_is_found_where_it_was_put_before_the_change(server: RedisServer) -> None:
    """After a change of shards an id is still pending, can be cancelled, and can't be put again."""
    async with queue_of(server, server.fresh(), shards=16) as queue:
        names = [f"order {number}" for number in range(12)]
        for id in names:
            await queue.put(b"x", delay=60, id=id)
        await queue.set_shards(3)
        await queue.set_shards(7)
        for id in names:
            with pytest.raises(ValueError, match="pending already"):
                await queue.put(b"x", delay=60, id=id)
            assert await queue.is_pending(id)
            assert await queue.cancel(id)
            assert not await queue.is_pending(id)
        assert await queue.count() == 0


async def test_what_one_instance_has_claimed_others_send_when_it_leaves(server: RedisServer) -> None:
    """An instance that is left, even by an exception, gives back at once: nobody waits for its lease."""
    url = server.fresh()
    arrived: list[str] = []
    async with queue_of(server, url, lambda message: arrived.append(message.id)) as stays:
        stays.pause()
        with pytest.raises(KeyError):
            async with queue_of(server, url) as leaves:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(partial(leaves.put, b"x", delay=0.9))
                assert leaves.statistics().pending == 20
                raise KeyError
        assert leaves.statistics().spooled == 20
        left = trio.current_time()
        stays.resume()
        await until(lambda: len(arrived) == 20)
        assert trio.current_time() - left < RedisTuning().lease


async def test_who_comes_late_removes_no_other_message_of_the_same_id(server: RedisServer) -> None:
    """One sends past its lease, another has sent the message, and its id was put again: that one stays."""
    url, go_on = server.fresh(), trio.Event()
    begun: list[str] = []
    others: list[bytes] = []

    async def slow(message: Message) -> None:
        begun.append(message.id)
        await go_on.wait()

    options: dict[str, Any] = {
        "url": url,
        "workers": 1,
        "shards": 1,
        "confirm_within": 0.0,
        "claim_ahead": 0.1,
    }
    async with open_redis_delay_queue(slow, **tuned(lease=0.3, **options)) as late:
        late._leases.renew_all = lambda: None  # type: ignore[method-assign]  # it is frozen
        await late.put(b"old", delay=0, id="order")
        await until(lambda: bool(begun))
        late.pause()
        async with queue_of(server, send=lambda message: others.append(message.payload), **options) as queue:
            await until(lambda: others == [b"old"] and not queue.statistics().unconfirmed)
            queue.pause()
            await queue.put(b"new", delay=0.0, id="order")
            go_on.set()
            await trio.sleep(0.2)
            assert await queue.is_pending("order")
            queue.resume()
            await until(lambda: others == [b"old", b"new"])


async def test_an_instance_that_does_not_keep_up_leaves_messages_to_others(server: RedisServer) -> None:
    """It holds few while it is behind, and another sends the rest."""
    url = server.fresh()
    held: list[int] = []
    others: list[str] = []

    async def slow(_: Message) -> None:
        held.append(one.statistics().pending)
        await trio.sleep(0.2)

    tuning = RedisTuning(claim_ahead=0.02)
    async with open_redis_delay_queue(slow, url=url, shards=32, workers=1, tuning=tuning) as one:
        for number in range(150):
            await one.put(b"x", delay=0.1 + number / 100, id=f"number {number}")
        await trio.sleep(1.0)
        async with queue_of(server, url, lambda message: others.append(message.id)):
            await until(lambda: len(others) + len(held) >= 146)
        assert held[-1] <= 4 + 40
        assert len(others) > 80


async def test_rubbish_on_the_channel_is_ignored(server: RedisServer) -> None:
    """The connection stays as it is."""
    url = server.fresh()
    async with queue_of(server, url) as queue:
        with server.client() as client:
            for rubbish in (b"", b"x", b"a b c d e", b"99 1 1 1 token"):
                client.publish(f"localdelay:{{{url.rpartition('/')[2]}}}:news", rubbish)
        await trio.sleep(0.1)
        assert queue.statistics().connections == 1
        await queue.put(b"x", delay=0)
        await until(lambda: queue.statistics().sent == 1)


async def test_idle_instances_ask_little(server: RedisServer) -> None:
    """At most ten commands a heartbeat, or two a second, scripts' own included, with 10 or 200 shards."""
    beat = 1.0
    async with (
        queue_of(server, server.fresh(), shards=10, heartbeat=beat) as few,
        queue_of(server, server.fresh(), shards=200, heartbeat=beat) as many,
    ):
        async with trio.open_nursery() as nursery:
            for queue in (few, many):
                for number in range(600):
                    nursery.start_soon(partial(queue.put, b"x", delay=3600, id=f"id {number}"))
        for queue in (few, many):
            await queue.set_shards(3)  # the others are to be emptied, which takes long
        await trio.sleep(0.5)
        with server.client() as client:

            def calls() -> int:
                found = client.info("commandstats")
                return sum(one["calls"] for name, one in found.items() if name != "cmdstat_info")

            for _ in range(5):  # a busy machine may need longer for what comes before
                begun = trio.current_time()
                before, ours = calls(), few.statistics().commands + many.statistics().commands
                await trio.sleep(2.2 * beat)
                ours = few.statistics().commands + many.statistics().commands - ours
                asked = calls() - before
                if asked <= 2 * 10 * (trio.current_time() - begun) / beat:
                    break
            print(ours, asked)
            assert 0 < ours <= asked <= 2 * 10 * (trio.current_time() - begun) / beat
