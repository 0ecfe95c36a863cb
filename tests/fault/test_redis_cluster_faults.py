"""A queue, or a stream, in a Redis Cluster, while masters die or freeze and slots move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import trio

from localdelay import Message
from localdelay.brokers import open_broker
from tests.kit.redis_clusters import SEED, World, arrived_in, opened_on, running, shards_of, streaming
from tests.kit.redis_plan_worker import real_time
from tests.kit.servers.redis_cluster import RedisCluster

MANY = 20_000


@pytest.fixture
def cluster(start_server: Callable[[str], object]) -> Iterator[RedisCluster]:
    with running(start_server, RedisCluster()) as one:
        yield one


@pytest.mark.parametrize("replicas", [None, 1])
async def test_a_master_dies_and_slots_move_meanwhile(cluster: RedisCluster, replicas: int | None) -> None:
    """Lost is only what was put just before its master died and was not copied; with WAIT, nothing."""
    print("seed", SEED)
    world, url = World(), cluster.fresh()
    options = {"replicas": replicas, "put_timeout": 2.0}
    async with opened_on(cluster, world.send, url, **options) as one:
        async with opened_on(cluster, world.send, url, **options) as other, trio.open_nursery() as nursery:
            nursery.start_soon(world.fill, one, MANY // 2)
            nursery.start_soon(world.fill, other, MANY // 2)
            await world.until_put(MANY // 5)
            victim, source, target = cluster.masters()
            moving = shards_of(cluster, source, url)[:8]
            assert moving
            await trio.to_thread.run_sync(cluster.move_slots, source, target, moving)
            await world.until_put(MANY * 2 // 5)
            await trio.to_thread.run_sync(victim.process.kill)
            killed = real_time()
            await trio.to_thread.run_sync(cluster.wait_until_taken_over, victim)
            await trio.to_thread.run_sync(cluster.run, victim)
        await world.until_empty(one)
        assert victim not in cluster.masters()
        assert one.statistics().connections > 3
    print(world.show(), f"earliest {world.earliest:.6f}")
    assert len(world.put) == MANY
    assert world.earliest >= 0
    assert max(world.sent.values()) <= 3
    assert all(killed - 0.5 <= world.put[id] <= killed + 0.5 for id in world.lost)
    if replicas:
        assert not world.lost


async def test_a_frozen_master_is_left_and_comes_back_as_a_replica(cluster: RedisCluster) -> None:
    """What its replica has is sent meanwhile; the one that comes back late changes nothing."""
    world, url = World(), cluster.fresh()
    async with opened_on(cluster, world.send, url, replicas=1, put_timeout=1.0) as queue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.fill, queue, 2000)
            await world.until_put(500)
            frozen = cluster.masters()[0]
            frozen.process.freeze()
            await trio.to_thread.run_sync(cluster.wait_until_taken_over, frozen)
            frozen.process.thaw()
        await world.until_empty(queue)
    print(world.show())
    assert not world.lost
    assert world.earliest >= 0
    assert frozen not in cluster.masters()


@pytest.mark.parametrize("blow", ["kill", "freeze"])
async def test_the_master_of_a_stream_goes(cluster: RedisCluster, blow: str) -> None:
    """Lost is only what was confirmed just before and not copied; twice there is what was under way."""
    url, count = cluster.fresh(), 2000
    victim = cluster.owner(url)

    def strike() -> None:
        getattr(victim.process, blow)()

    async with streaming(url, count, over=1.5, connect_timeout=1.0) as confirmed:
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(strike)
        struck = real_time()
        await trio.to_thread.run_sync(cluster.wait_until_taken_over, victim)
    if blow == "freeze":
        victim.process.thaw()
        await trio.to_thread.run_sync(cluster.wait_until_well)  # until then it takes itself for the master
    assert cluster.owner(url) is not victim
    arrived = await arrived_in(cluster, url, count - 100)
    lost = confirmed.keys() - arrived.keys()
    twice = arrived.total() - len(arrived)
    print(f"{len(lost)} lost, {twice} twice")
    assert arrived.keys() <= confirmed.keys()
    assert all(struck - 0.5 <= confirmed[id] <= struck + 0.5 for id in lost)
    assert len(lost) <= 100
    assert twice <= 50  # one a worker


async def test_while_the_cluster_is_down_sends_wait(cluster: RedisCluster) -> None:
    """Without most of its masters it refuses all (CLUSTERDOWN): nothing is lost by that, or there twice."""
    url = cluster.fresh()
    owner = cluster.owner(url)
    others = [node for node in cluster.masters() if node is not owner]
    async with open_broker(url, confirm_timeout=30.0) as broker:
        await broker.send(Message("before", b"", 0.0))
        for node in others:
            await trio.to_thread.run_sync(node.process.kill)
        await trio.to_thread.run_sync(cluster.wait_until_down, owner)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(broker.send, Message(f"m{number}", b"", 0.0))
            one = f"redis+cluster://127.0.0.1:{owner.port}/{url.rpartition('/')[2]}"
            async with open_broker(one, confirm_timeout=0.5) as impatient:
                with pytest.raises(
                    (ConnectionError, TimeoutError)
                ):  # between two tries to connect, or in one
                    await impatient.send(Message("never", b"", 0.0))
            for node in others:
                await trio.to_thread.run_sync(cluster.run, node)
    expected = {"before": 1} | {f"m{number}": 1 for number in range(100)}
    assert await arrived_in(cluster, url, 101) == expected
