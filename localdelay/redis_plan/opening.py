"""`open_redis_delay_queue`."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from localdelay import arguments
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.brokers.address import Form, parse
from localdelay.brokers.redis_line import OPTIONS, Place
from localdelay.brokers.redis_line import place_of as place_at
from localdelay.limit import Limit
from localdelay.listening import Listener
from localdelay.message import numbers
from localdelay.nurseries import bare_nursery
from localdelay.probe import ProbePolicy
from localdelay.queue.batch import BatchPolicy
from localdelay.queue.core import make_core
from localdelay.queue.retry import RetryPolicy
from localdelay.queue.sending import DeadLetterHook, Send, SendBatch
from localdelay.redis_plan import leaving
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held
from localdelay.redis_plan.keys import Names, check_shards
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.link import Link
from localdelay.redis_plan.puts import Putter
from localdelay.redis_plan.queue import Parts, RedisDelayQueue
from localdelay.redis_plan.sending import Arrivals, Leases
from localdelay.redis_plan.store import Limits, Store
from localdelay.timer import TimerKind

_FORM = Form(
    "redis://host:6379/NAME",
    "the name of the queue",
    re.compile(r"[^\s{}\x00-\x1f\x7f]{1,200}"),
    default_port=6379,
    options=OPTIONS,
)
_SHORTEST = 0.001


@asynccontextmanager
async def open_redis_delay_queue(
    send: Send | None = None,
    *,
    send_batch: SendBatch | None = None,
    batch: BatchPolicy = BatchPolicy(),  # noqa: B008 (it is frozen)
    url: str,
    shards: int | None = None,
    workers: int,
    capacity: int = 10_000,
    capacity_bytes: int | None = None,
    shard_messages: int = 4_000,
    shard_bytes: int = 8_000_000,
    lease: float = 30.0,
    claim_ahead: float = 1.0,
    confirm_within: float = 0.1,
    linger: float = 0.01,
    heartbeat: float = 5.0,
    timer: TimerKind = "auto",
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
    send_timeout: float | None = 30.0,
    on_dead_letter: DeadLetterHook | None = None,
    limit: Limit | NotGiven | None = NOT_GIVEN,
    probe: ProbePolicy | None = ProbePolicy(),  # noqa: B008 (it is frozen)
    listener: Listener | None = None,
    put_timeout: float = 5.0,
    connect_timeout: float = 5.0,
) -> AsyncIterator[RedisDelayQueue]:
    """Run one instance of a delay queue in Redis for the length of an `async with` block.

    `url` is `redis://[user:password@]host[:port]/NAME[?db=N]`, or `rediss://`; all instances with the same
    name share the messages. `send`, `send_batch`, `batch`, `workers`, `retry`, `send_timeout`,
    `on_dead_letter`, `limit`, `probe`, `listener` and `timer` are those of `open_delay_queue`.

    `shards` is how many there are where the queue is new (None: 16); an existing one keeps what it has until
    `set_shards`. Each holds up to `shard_messages` messages and `shard_bytes` of them, which is what one key
    may hold. `capacity` and `capacity_bytes` bound what this instance has claimed; the bytes may be exceeded
    by one claim. An instance whose messages are overdue claims no more than its workers need next.

    A message is claimed up to `claim_ahead` seconds before it is due, for `lease` seconds, which are renewed
    for as long as it is here: an instance that dies holds its messages up for that long. It is confirmed up
    to `confirm_within` seconds after its send: what a crash sends again. A put waits up to `linger` seconds
    for those of other tasks. Every `heartbeat` seconds this instance asks whether all is as it thinks. A
    command that Redis does not answer within `put_timeout` seconds has failed; what a claim has taken whose
    answer was lost waits for the end of its lease.

    Leaving the block normally ends this instance: sends that run are waited for, and what it has claimed
    besides goes back. Messages that wait stay in Redis. Raises `ConnectionError` where no Redis answers
    within `connect_timeout`, and `TypeError` and `ValueError` for an argument that is wrong.
    """
    place, names = place_of(url)
    if shards is not None:
        check_shards(shards)
    arguments.count("shard_messages", shard_messages)
    arguments.count("shard_bytes", shard_bytes)
    for name, seconds in (
        ("lease", lease),
        ("put_timeout", put_timeout),
        ("connect_timeout", connect_timeout),
    ):
        arguments.at_least(name, seconds, _SHORTEST, "a number of seconds")
    for name, seconds in (("confirm_within", confirm_within), ("linger", linger)):
        arguments.at_least(name, seconds, 0, "a number of seconds")
    for name, seconds in (("claim_ahead", claim_ahead), ("heartbeat", heartbeat)):
        arguments.at_least(name, seconds, 0.01, "a number of seconds")
    core = make_core(
        send,
        send_batch,
        batch,
        capacity=capacity,
        workers=workers,
        capacity_bytes=capacity_bytes,
        cancellable=True,
        timer=timer,
        retry=retry,
        send_timeout=send_timeout,
        on_dead_letter=on_dead_letter,
        limit=limit,
        catch_up_rate=None,
        probe=probe,
        listener=listener,
    )
    pending, pool = core.pending, core.workers
    token = secrets.token_hex(6)
    clock = RedisClock()

    def heard(data: bytes) -> None:
        try:
            news = store.heard(data)
        except ValueError:
            return  # it is not one of ours who says so
        if news is None:
            layouts.heard()
        elif news[1]:
            claimer.hear(news[0], foreign=True)

    def connected() -> None:
        clock.forget()
        claimer.ask_all()
        claimer.change()
        layouts.heard()

    link = Link(
        place,
        names.channel,
        connect_timeout=connect_timeout,
        reply_timeout=put_timeout,
        on_news=heard,
        on_connected=connected,
    )
    limits = Limits(elements=shard_messages, bytes=shard_bytes, claim_ahead=claim_ahead, lease=lease)
    store = Store(link, names, clock, token, limits)
    held = Held(store, lease=lease, confirm_within=confirm_within)
    pending.keeper = leases = Leases(
        pending,
        pool,
        held,
        keep_within=claim_ahead,
        on_room=lambda: claimer.made_room(),  # noqa: PLW0108 (it is made below)
    )
    arrivals = Arrivals(pending, pool, held, clock, numbers())
    claimer = Claimer(
        store,
        link,
        clock,
        pending.ledger,
        held,
        arrivals,
        pending.schedule,
        pool,
        batch=core.batch,
        token=token,
        claim_ahead=claim_ahead,
    )
    held.on_news = claimer.hear
    layouts = Layouts(
        store,
        link,
        heartbeat=heartbeat,
        on_layout=lambda layout: claimer.serve(layout.served),
        on_glance=claimer.glanced,
    )
    putter = Putter(store, layouts, claimer, arrivals, linger=linger)
    parts = Parts(
        link=link,
        clock=clock,
        store=store,
        schedule=pending.schedule,
        ledger=pending.ledger,
        pending=pending,
        workers=pool,
        core=core,
        held=held,
        leases=leases,
        arrivals=arrivals,
        claimer=claimer,
        layouts=layouts,
        putter=putter,
    )
    queue = RedisDelayQueue(parts)
    begun = False
    try:
        async with bare_nursery() as connection:
            scope = await connection.start(_keep, link)
            try:
                async with bare_nursery() as nursery:
                    try:
                        await layouts.open(shards)
                        for task in (claimer.run, putter.run, held.tell, held.renew, layouts.beat):
                            nursery.start_soon(task)
                        nursery.start_soon(pool.run, core.delivery)
                        begun = True
                        yield queue
                        await queue.leave()
                    finally:
                        claimer.paused = True
                        with trio.CancelScope(shield=True):
                            await claimer.settle()
                            if begun:
                                await leaving.end(parts)
                        nursery.cancel_scope.cancel()
            finally:
                scope.cancel()
    finally:
        queue.end()


async def _keep(link: Link, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Keep the connection also while all else is cancelled: what is claimed is then given back."""
    with trio.CancelScope() as scope:

        class Started:
            def started(self, value: None = None) -> None:
                scope.shield = True
                task_status.started(scope)

        await link.keep(task_status=Started())


def check_url(url: str) -> None:
    """Raise a `ValueError` unless `open_redis_delay_queue` takes this; it says no password."""
    place_of(url)


def place_of(url: str) -> tuple[Place, Names]:
    """The server and the name of the queue; raises as `check_url` does."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, not {type(url).__name__}")
    scheme = url.partition(":")[0].lower()
    if scheme not in ("redis", "rediss") or not url[len(scheme) :].startswith("://"):
        raise ValueError(f"url must begin with redis:// or rediss://, like {_FORM.example}")
    where = parse(url, _FORM)
    return place_at(where), Names(where.target)
