"""A queue in a Redis Cluster of three masters with a replica each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio

from localdelay import Throttled
from localdelay.brokers.redis_masters import SLOTS, slot_of
from localdelay.redis_plan import open_redis_delay_queue
from localdelay.redis_plan.keys import Names
from tests.kit.redis_clusters import SHARDS, opened_on, running
from tests.kit.redis_queues import Sent, confirmed, tuned
from tests.kit.servers.redis import RedisServer
from tests.kit.servers.redis_cluster import RedisCluster


@pytest.fixture
def cluster(start_server: Callable[[str], RedisServer]) -> Iterator[RedisCluster]:
    with running(start_server, RedisCluster()) as one:
        yield one


async def test_messages_are_sent_when_they_are_due(cluster: RedisCluster) -> None:
    """Shards lie on all masters; what one server does the cluster does, by another instance's news, too."""
    send, url = Sent(), cluster.fresh()
    names = Names(url.rpartition("/")[2])
    thirds = {slot_of(names.of(shard)[0]) * 3 // SLOTS for shard in range(SHARDS)}
    assert thirds == {0, 1, 2}
    async with opened_on(cluster, Sent(), url) as other, opened_on(cluster, send, url) as queue:
        other.pause()
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(partial(other.put, b"x", delay=0.2 + number % 10 / 20, id=f"id {number}"))
        far = await other.put(b"far", delay=60, id="far")
        with pytest.raises(ValueError, match="pending already"):
            await queue.put(b"far", delay=60, id="far")
        assert [message.id for message in await queue.messages()][-1] == far.id
        assert await queue.cancel("far")
        await send.wait(200)
        assert len(set(send.ids)) == len(send.ids) == 200
        assert all(at >= message.execute_at for at, message in zip(send.at, send.messages, strict=True))
        await confirmed(queue)
        await queue.set_shards(8)
        await trio.sleep(0.2)
        assert other.statistics().shards == 8
        assert (queue.statistics().connected, queue.statistics().connections) == (True, 3)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no node of the cluster answers: no connection to Redis at 127.0.0.1:1"),
        ("", "cluster support disabled"),
    ],
)
async def test_what_is_no_cluster_is_a_connection_error(redis: RedisServer, address: str, says: str) -> None:
    """At once, by what was wrong, and without the password."""
    url = f"redis+cluster://user:secret@{address or f'127.0.0.1:{redis.port}'}/queue"
    url = url if address else url.replace("user:secret@", "")
    with pytest.raises(ConnectionError, match=says) as raised:
        async with open_redis_delay_queue(Sent(), url=url, workers=1):
            pass
    assert "secret" not in str(raised.value)


async def test_without_the_replicas_a_put_is_throttled(redis: RedisServer) -> None:
    """Redis has it all the same, and the instance that claimed it with its put sends it when it is due."""
    send = Sent()
    options = tuned(replicas=1, heartbeat=60.0)
    async with open_redis_delay_queue(
        send, url=redis.fresh(), workers=1, put_timeout=0.4, **options
    ) as queue:
        await queue.count()  # what it asked at its opening is answered, and would not show it the message
        with pytest.raises(Throttled, match="0 replicas do, and not 1"):
            await queue.put(b"x", delay=0.1, id="a")
        await send.wait(1)
        assert (queue.statistics().put, send.ids) == (1, ["a"])
