"""`open_redis_delay_queue`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

from localdelay import arguments
from localdelay.brokers import redis_masters
from localdelay.brokers.address import Form, of_redis, parse
from localdelay.brokers.redis_masters import Masters, Nodes
from localdelay.nurseries import bare_nursery
from localdelay.queue.core import CoreOptions, make_core
from localdelay.queue.sending import DeadLetterHook, Send, SendBatch
from localdelay.redis_plan.cluster import Cluster
from localdelay.redis_plan.keys import Names, check_shards
from localdelay.redis_plan.link import Link
from localdelay.redis_plan.queue import RedisDelayQueue
from localdelay.redis_plan.settings import RedisTuning
from localdelay.redis_plan.store import Store
from localdelay.worlds import check_trio

_FORMS = of_redis(
    Form(
        "redis://host:6379/NAME",
        r"[^\s{}\x00-\x1f\x7f]{1,200}",  # braces would be the keys' hash tag
        "db eviction",
        named="the name of the queue",
    )
)


@asynccontextmanager
async def open_redis_delay_queue(
    send: Send | None = None,
    *,
    send_batch: SendBatch | None = None,
    url: str,
    shards: int | None = None,
    workers: int,
    capacity: int = 10_000,
    tuning: RedisTuning = RedisTuning(),  # noqa: B008 (it is frozen)
    on_dead_letter: DeadLetterHook | None = None,
    put_timeout: float = 5.0,
    connect_timeout: float = 5.0,
    **options: Unpack[CoreOptions],
) -> AsyncIterator[RedisDelayQueue]:
    """Run one instance of a delay queue in Redis for the length of an `async with` block.

    `url` is `redis://[user:password@]host[:port]/NAME[?db=N]`, or `rediss://`; or of a Redis Cluster
    `redis+cluster://host[:port][,host[:port]]/NAME`, some of its nodes; or of what sentinels look after,
    `redis+sentinel://host[:port][,host[:port]]/SERVICE/NAME`; with `rediss` both times for TLS. All instances
    with the same name share the messages. `send`, `send_batch`, `workers`, `on_dead_letter` and `options`
    (`batch`, `timer`, `retry`, `send_timeout`, `limit`, `probe`, `listener`) are those of `open_delay_queue`;
    there is no `key`, for what an instance has claimed of one key would hold up the others.

    `shards` is how many there are where the queue is new (None: 16); an existing one keeps what it has until
    `set_shards`. `capacity` and `capacity_bytes` bound what this instance has claimed; the bytes may be
    exceeded by one claim. An instance whose messages are overdue claims no more than its workers need next.
    `tuning` says what a shard may hold, how long before it is due a message is claimed, and for how long.
    A command that Redis does not answer within `put_timeout` seconds has failed; what a claim has taken whose
    answer was lost waits for the end of its lease.

    Leaving the block normally ends this instance: sends that run are waited for, and what it has claimed
    besides goes back. Messages that wait stay in Redis. Raises `ConnectionError` where no Redis answers
    within `connect_timeout`, and `TypeError` and `ValueError` for an argument that is wrong.
    """
    check_trio("open_redis_delay_queue")
    masters, names = masters_of(url)
    if shards is not None:
        check_shards(shards)
    arguments.check_kind("tuning", tuning, RedisTuning, "a RedisTuning")
    for name, seconds in (("put_timeout", put_timeout), ("connect_timeout", connect_timeout)):
        arguments.at_least(name, seconds, 0.001, "a number of seconds")
    if "key" in options:
        raise TypeError(
            "key is for a queue in memory: here what is claimed of one key would hold up the others"
        )
    hook = on_dead_letter
    core = make_core(send, send_batch, workers=workers, capacity=capacity, on_dead_letter=hook, **options)
    how = names.channel, connect_timeout, put_timeout
    link = Cluster(masters, *how) if isinstance(masters, Nodes) else Link(masters, *how)
    queue = RedisDelayQueue(core, Store(link, names, tuning))
    async with bare_nursery() as connection:
        await connection.start(link.keep)
        try:
            async with bare_nursery() as nursery:
                try:
                    await queue.begin(nursery, shards)
                    yield queue
                    await queue.leave()
                finally:
                    await queue.end()
                    nursery.cancel_scope.cancel()
        finally:
            link.end()


def check_url(url: str) -> None:
    """Raise a `ValueError` unless `open_redis_delay_queue` takes this; it says no password."""
    masters_of(url)


def masters_of(url: str) -> tuple[Masters, Names]:
    """Who takes writes, and the keys of the queue; raises as `check_url` does."""
    masters, name = redis_masters.masters_of(parse(url, _FORMS))
    return masters, Names(name)
