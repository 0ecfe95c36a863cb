"""One instance of a queue in Redis, against a real one: what it does, and how its keys stay small."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
import trio

from localdelay import Message, QueueFull, RetryPolicy, Throttled
from localdelay.redis_plan.keys import Names
from localdelay.redis_plan.puts import MOST
from tests.kit.redis_plan_worker import real_time
from tests.kit.redis_queues import Sent, confirmed, conserve, opened, until
from tests.kit.servers.redis import RedisServer

# ---------------------------------------------------------------- what it does


async def test_messages_are_sent_when_they_are_due(redis: RedisServer) -> None:
    """In due order, with all that they had, never early by Redis's clock, and gone from Redis then."""
    send = Sent()
    async with opened(redis, send, claim_ahead=0.1) as queue:
        late = await queue.put(b"late", delay=1.4, headers={"a": "ü"})
        early = await queue.put(b"early", delay=1.0, id="order 7")
        soon = await queue.put(b"soon", at=datetime.now(UTC) + timedelta(seconds=1.2))
        now = await queue.put(b"now", at=datetime(2020, 1, 1, tzinfo=UTC))
        assert await queue.count() >= 3
        await send.wait(4)
        assert [message.payload for message in send.messages] == [b"now", b"early", b"soon", b"late"]
        assert send.ids == [now.id, "order 7", soon.id, late.id]
        assert early.id == "order 7"
        assert dict(send.messages[3].headers) == {"a": "ü"}
        assert [message.attempt for message in send.messages] == [1, 1, 1, 1]
        assert all(at >= message.execute_at for at, message in zip(send.at, send.messages, strict=True))
        assert send.messages[3].execute_at == pytest.approx(late.execute_at, abs=0.5)
        await confirmed(queue)
        found = conserve(queue)
        assert (found.put, found.accepted, found.sent, found.pending, found.unconfirmed) == (4, 4, 4, 0, 0)
        assert found.lateness.count == 4
        assert (found.shards, found.retiring, found.connected, found.at_risk) == (4, 0, True, 0)


async def test_never_early_by_redis_clock(redis: RedisServer) -> None:
    """Redis's clock, which here is this machine's, is past execute-at at the start of each send."""
    early: list[float] = []

    async def send(message: Message) -> None:
        early.append(float(message.payload) - real_time())

    async with opened(redis, send, claim_ahead=0.3) as queue:
        for number in range(60):
            due = real_time() + 0.1 + number % 7 / 10
            await queue.put(f"{due:.6f}".encode(), at=datetime.fromtimestamp(due, UTC))
        await until(lambda: len(early) == 60)
    assert max(early) <= 2e-6  # a datetime has microseconds


async def test_many_tasks_put_at_once(redis: RedisServer) -> None:
    """Their messages go together, in a few commands."""
    send = Sent()
    async with opened(redis, send, linger=0.01) as queue:
        await trio.sleep(0.05)  # it asks every shard at the beginning
        before = queue.statistics().commands
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(partial(queue.put, b"x", delay=0.2))
        assert queue.statistics().commands - before <= 20
        await send.wait(200)
        assert len(set(send.ids)) == 200


async def test_as_many_as_one_command_takes_do_not_linger(redis: RedisServer) -> None:
    """They go as soon as they are so many, however long there was to wait for company."""
    async with opened(redis, linger=600.0) as queue:
        for together in (2, MOST):  # from the two it knows that there are several
            async with trio.open_nursery() as nursery:
                for _ in range(together):
                    nursery.start_soon(partial(queue.put, b"x", delay=600.0))


async def test_a_single_task_does_not_linger(redis: RedisServer) -> None:
    """Nobody else puts: there is nobody to wait for."""
    async with opened(redis, linger=0.5) as queue:
        begun = trio.current_time()
        for _ in range(5):
            await queue.put(b"x", delay=60)
        assert trio.current_time() - begun < 5 * 0.5


async def test_an_id_that_is_pending_is_refused(redis: RedisServer) -> None:
    """Also between two instances, and within one command; a finished one may come again."""
    send, url = Sent(), redis.fresh()
    async with opened(redis, send, url) as queue, opened(redis, send, url) as other:
        queue.pause()
        other.pause()
        await queue.put(b"x", delay=0.0, id="order")
        for one in (queue, other):
            with pytest.raises(ValueError, match="'order' is the id of a message that is pending already"):
                await one.put(b"y", delay=1, id="order")
        assert await other.is_pending("order")
        assert not await other.is_pending("another")
        queue.resume()
        other.resume()
        await send.wait(1)
        await confirmed(queue)
        await other.put(b"z", delay=0, id="order")
        await send.wait(2)
    async with opened(redis, linger=0.02, shards=1) as queue:
        refused: list[ValueError] = []

        async def put() -> None:
            try:
                await queue.put(b"x", delay=60, id="twin")
            except ValueError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(put)
        assert len(refused) == 2
        assert await queue.count() == 1


async def test_cancel(redis: RedisServer) -> None:
    """What waits, here or in Redis, is never sent; all else can't be cancelled."""
    send, url = Sent(), redis.fresh()
    async with opened(redis, send, url, claim_ahead=10.0) as queue, opened(redis, send, url) as other:
        far = await queue.put(b"far", delay=60)
        near = await queue.put(b"near", delay=8.0)
        assert queue.statistics().pending == 1
        assert not await other.cancel(near.id)
        assert await queue.cancel(near.id)
        assert await other.cancel(far.id)
        assert not await queue.cancel(far.id)
        assert not await queue.cancel("unknown")
        send.open = trio.Event()
        flying = await queue.put(b"flying", delay=0)
        await send.wait(1)
        assert not await queue.cancel(flying.id)
        send.open.set()
        await confirmed(queue)
        assert not await queue.cancel(flying.id)
        assert send.ids == [flying.id]
        assert conserve(queue).cancelled == 1


async def test_what_redis_was_not_told_is_not_cancelled(own_redis: RedisServer) -> None:
    """A cancel that Redis does not answer raises, and the message is sent; so where it is cut off."""
    send = Sent()
    # A disk may need most of a second to have it, and all this is done long before it is due.
    async with opened(own_redis, send, put_timeout=1.0, claim_ahead=5.0) as queue:
        message = await queue.put(b"x", delay=3.0)
        assert queue.statistics().pending == 1
        own_redis.freeze()
        with trio.move_on_after(0.05) as scope:
            await queue.cancel(message.id)
        assert scope.cancelled_caught
        assert conserve(queue).waiting == 1
        with pytest.raises((Throttled, ConnectionError)):
            await queue.cancel(message.id)
        assert conserve(queue).waiting == 1
        own_redis.thaw()
        await send.wait(1)
        await confirmed(queue)
        found = conserve(queue)
        assert (found.sent, found.cancelled) == (1, 0)


async def test_messages_are_shown_in_due_order(redis: RedisServer) -> None:
    """The first of them, over all shards; claimed ones too."""
    async with opened(redis, claim_ahead=25.0) as queue:
        ids = [
            (await queue.put(b"x", delay=delay, id=f"{delay}", headers={"n": "1"})).id
            for delay in (90, 30, 20, 50)
        ]
        assert queue.statistics().pending == 1
        found = await queue.messages()
        assert [message.id for message in found] == [ids[2], ids[1], ids[3], ids[0]]
        assert all(one.execute_at < other.execute_at for one, other in pairwise(found))
        assert found[0].headers == {"n": "1"}
        assert [message.id for message in await queue.messages(2)] == [ids[2], ids[1]]
        with pytest.raises(ValueError, match="limit"):
            await queue.messages(0)


async def test_pause_and_resume(redis: RedisServer) -> None:
    """A paused instance sends nothing, and holds up nothing that it has claimed: another sends it."""
    send, others, url = Sent(), Sent(), redis.fresh()
    async with opened(redis, send, url) as queue:
        await queue.put(b"x", delay=0.9, id="claimed")
        assert queue.statistics().pending == 1
        queue.pause()
        assert queue.statistics().paused
        assert queue.statistics().spooled == 1
        async with opened(redis, others, url):
            await others.wait(1)
        await queue.put(b"x", delay=0, id="mine")
        await trio.sleep(0.1)
        assert send.ids == []
        queue.resume()
        await send.wait(1)
        assert (send.ids, others.ids) == (["mine"], ["claimed"])


async def test_a_claim_that_comes_after_a_pause_goes_back(redis: RedisServer) -> None:
    """Its answer was on the way: another instance sends what it has claimed."""
    others, url = Sent(), redis.fresh()
    # Due long after the pause, however busy the machine is: this instance must not come to send any.
    async with opened(redis, Sent(), url, shards=1, claim_ahead=5.0) as queue:
        for number in range(5):
            queue.resume()
            await trio.sleep(0.02)
            queue.pause()
            await queue.put(b"x", delay=3.0, id=str(number))
            queue.resume()
            while not queue._claimer._in_flight:
                await trio.lowlevel.checkpoint()
            queue.pause()
            await trio.sleep(0.05)
            assert conserve(queue).pending == 0
        async with opened(redis, others, url):
            await others.wait(5)


async def test_there_is_room_again_after_a_send_that_hung(redis: RedisServer) -> None:
    """However little there is."""
    send = Sent()
    send.open = trio.Event()
    retry = RetryPolicy(attempts=1)
    async with opened(redis, send, capacity=1, workers=1, send_timeout=0.1, retry=retry) as queue:
        await queue.put(b"x", delay=0, id="hangs")
        await send.wait(1)
        await queue.put(b"x", delay=0, id="next")
        await until(lambda: queue.statistics().dead > 0)
        send.open.set()
        await send.wait(2)
        assert send.ids == ["hangs", "next"]


async def test_capacity_bounds_what_is_claimed(redis: RedisServer) -> None:
    """The rest waits in Redis until there is room; resizing makes some."""
    send = Sent()
    async with opened(redis, send, capacity=3, workers=1) as queue:
        send.open = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(partial(queue.put, b"x", delay=0))
        await send.wait(1)
        await until(lambda: queue.statistics().pending == 3)
        await trio.sleep(0.1)
        assert queue.statistics().pending == 3
        queue.resize(
            capacity=10, workers=3, capacity_bytes=1000
        )  # one that is behind holds 4 for each worker
        await send.wait(3)
        await until(lambda: queue.statistics().pending == 10)  # which may take several claims
        await trio.sleep(0.1)
        found = queue.statistics()
        assert (found.pending, found.capacity, found.workers, found.capacity_bytes) == (10, 10, 3, 1000)
        send.open.set()
        await send.wait(30)
        assert len(set(send.ids)) == 30
        await confirmed(queue)
        for wrong in ({"capacity": 0}, {"workers": 0}, {"capacity_bytes": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                queue.resize(**wrong)


# ---------------------------------------------------------------- keys stay small


async def test_no_key_grows_over_its_bounds(redis: RedisServer) -> None:
    """A full shard refuses a chosen id; other messages go on to other shards, until all are full."""
    url = redis.fresh()
    async with opened(redis, Sent(), url, shards=2, shard_messages=5) as queue:
        ids = []
        with pytest.raises(QueueFull, match="shards"):
            for _ in range(20):
                ids += [(await queue.put(b"x", delay=60)).id]
        assert len(ids) == len(set(ids)) == 10
        with pytest.raises(QueueFull, match="has 5 messages"):
            await queue.put(b"x", delay=60, id="chosen")
        names = Names(url.rpartition("/")[2])
        with redis.client() as client:
            for shard in range(2):
                due, leases, bodies, _ = names.of(shard)
                assert client.zcard(due) + client.zcard(leases) == client.hlen(bodies) == 5
        assert await queue.cancel(ids[0])
        await queue.put(b"x", delay=60)


async def test_bytes_of_a_shard_are_bounded(redis: RedisServer) -> None:
    """What would make it too large is refused; what could never fit is wrong; what is gone counts no more."""
    send = Sent()
    async with opened(redis, send, shards=1, shard_bytes=1000) as queue:
        queue.pause()  # or some would be gone before the others are there
        for _ in range(4):
            await queue.put(bytes(200), delay=0.1)
        with pytest.raises(QueueFull):
            await queue.put(bytes(200), delay=60)
        with pytest.raises(ValueError, match="over the shard_bytes of 1000"):
            await queue.put(bytes(1000), delay=60)
        queue.resume()
        await send.wait(4)
        await confirmed(queue)
        for _ in range(4):
            await queue.put(bytes(200), delay=60)


async def test_what_redis_does_not_take_is_refused_here(redis: RedisServer) -> None:
    """Redis would end the connection, and the puts of others with it."""
    async with opened(redis) as queue:
        with pytest.raises(ValueError, match="over the 1048576 that Redis takes"):
            await queue.put(bytes(1024 * 1024 + 1), delay=60)
        assert queue.statistics().connections == 1


async def test_out_of_memory_is_throttled(own_redis: RedisServer) -> None:
    """A put is refused; what waits is claimed, sent, retried and confirmed all the same."""
    send = Sent(None, OSError("once"))
    async with opened(
        own_redis, send, claim_ahead=0.1, retry=RetryPolicy(wait_initial=0.2, wait_jitter=0)
    ) as queue:
        for _ in range(3):
            await queue.put(b"x", delay=0.3)
        with own_redis.throttled(""):
            with pytest.raises(Throttled, match="OOM"):
                await queue.put(b"x", delay=1)
            await send.wait(4)
            await confirmed(queue)
        await queue.put(b"x", delay=0)
        await send.wait(5)
        await confirmed(queue)
        assert conserve(queue).sent == 4
