"""A queue in a Redis Cluster, while masters die or freeze and slots move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import trio

from tests.kit.redis_clusters import SEED, World, opened_on, running, shards_of
from tests.kit.redis_plan_worker import real_time
from tests.kit.servers.redis_cluster import RedisCluster

MANY = 20_000


@pytest.fixture
def cluster(start_server: Callable[[str], object]) -> Iterator[RedisCluster]:
    with running(start_server) as one:
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
