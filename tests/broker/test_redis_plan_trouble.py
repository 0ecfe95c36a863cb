"""One instance of a queue in Redis, against a real one: faults, fallbacks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from localdelay import BatchPolicy, Fallback, Message, Route, Throttled, open_delay_queue
from localdelay.redis_plan import RedisUnreachable, open_redis_delay_queue
from localdelay.redis_plan.keys import Names, shard_of
from localdelay.redis_plan.link import Link
from tests.kit.redis_queues import Sent, confirmed, opened, tuned, until
from tests.kit.servers.process import free_port
from tests.kit.servers.redis import RedisServer

# ---------------------------------------------------------------- faults


async def test_redis_gone_and_back(own_redis: RedisServer) -> None:
    """A put raises at once, the workers come back by themselves, and what was on disk is sent."""
    send = Sent()
    async with opened(own_redis, send, claim_ahead=0.2) as queue:
        for _ in range(10):
            await queue.put(b"x", delay=1.5)
        await trio.to_thread.run_sync(own_redis.kill)
        await until(lambda: not queue.statistics().connected)
        begun = trio.current_time()
        with pytest.raises(RedisUnreachable, match="no connection"):
            await queue.put(b"x", delay=1)
        with pytest.raises(ConnectionError):
            await queue.count()
        assert trio.current_time() - begun < 3.0  # and not when put_timeout is over
        assert not queue.statistics().connected
        await trio.to_thread.run_sync(own_redis.restart)
        await send.wait(10)
        assert len(set(send.ids)) == len(send.ids) == 10
        await confirmed(queue)
        await queue.put(b"x", delay=0)
        await send.wait(11)
        assert queue.statistics().connections == 2


async def test_a_silent_redis_is_given_up(own_redis: RedisServer) -> None:
    """A put that is not answered in time is Throttled, and nobody knows; later all goes on."""
    send = Sent()
    async with opened(own_redis, send, put_timeout=1.0) as queue:
        # What was asked at the opening is answered, too, and cannot end first.
        await queue.put(b"before", delay=60)
        own_redis.freeze()
        with pytest.raises(Throttled):
            await queue.put(b"x", delay=0.5)
        own_redis.thaw()
        with trio.fail_after(60):
            while True:
                try:
                    message = await queue.put(b"y", delay=0)
                    break
                except (ConnectionError, Throttled):  # a disk may need longer than that, too
                    await trio.sleep(0.01)
        await until(lambda: message.id in send.ids)


async def test_a_put_whose_answer_is_late_is_sent_when_its_lease_ends(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has claimed it for this instance, which asks the shard again: nobody else tells it of that."""
    send, call = Sent(), Link.call

    async def late(link: Link, *arguments: Any, **how: Any) -> Any:
        reply = await call(link, *arguments, **how)
        if b"x" in arguments[-1]:
            raise Throttled("no answer in time")
        return reply

    async with opened(redis, send, lease=0.6, heartbeat=60.0, linger=0.0) as queue:
        await queue.count()
        with monkeypatch.context() as patch, pytest.raises(Throttled):
            patch.setattr(Link, "call", late)
            await queue.put(b"x", delay=0.1)
        await send.wait(1)


async def test_a_replica_is_left(own_redis: RedisServer) -> None:
    """After a failover puts raise until there is a master again, on a new connection; nothing is lost."""
    send = Sent()
    async with opened(own_redis, send) as queue:
        await queue.put(b"before", delay=0.5)
        with own_redis.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", free_port())
            with pytest.raises(ConnectionError, match=r"READONLY|no connection"):
                await queue.put(b"refused", delay=0)
            await until(lambda: not queue.statistics().connected)
            with pytest.raises(ConnectionError, match="replica"):
                async with opened(own_redis):
                    pass
            client.execute_command("REPLICAOF", "NO", "ONE")
        await until(lambda: queue.statistics().connected)
        await queue.put(b"after", delay=0)
        await send.wait(2)
        assert {message.payload for message in send.messages} == {b"before", b"after"}
        assert queue.statistics().connections == 2


async def test_a_redis_that_evicts_is_refused(begin: Callable[[RedisServer], RedisServer]) -> None:
    """At the opening, by the setting's name, and not where it is allowed."""
    server = begin(RedisServer("--maxmemory-policy", "allkeys-lru"))
    url = server.fresh()
    with pytest.raises(ConnectionError, match=r"maxmemory-policy is allkeys-lru.*\?eviction=allowed"):
        async with opened(server, None, url):
            pass
    async with opened(server, None, f"{url}?eviction=allowed") as queue:
        await queue.put(b"x", delay=0)


async def test_everything_flushed(redis: RedisServer) -> None:
    """After FLUSHALL and SCRIPT FLUSH what was there is gone, and what is put then is sent."""
    own_send, url = Sent(), redis.fresh()
    async with opened(redis, own_send, url, shards=3, heartbeat=0.1) as queue:
        await queue.put(b"x", delay=60)
        with redis.client() as client:
            client.flushall()
            client.script_flush()
        await trio.sleep(0.3)
        assert await queue.count() == 0
        for _ in range(5):
            await queue.put(b"x", delay=0.05)
        await own_send.wait(5)
        await confirmed(queue)
        with redis.client() as client:
            layout = client.hgetall(Names(url.rpartition("/")[2]).layout)
        assert layout[b"shards"] == b"3"


async def test_news_that_are_lost_are_made_up_for(redis: RedisServer) -> None:
    """A connection that is cut makes for a look at everything; and the heartbeat looks at shards in turn."""
    send, url = Sent(), redis.fresh()
    async with opened(redis, send, url, heartbeat=0.1) as queue, opened(redis, Sent(), url) as other:
        other.pause()
        with redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: queue.statistics().connections + other.statistics().connections >= 4)
        await other.put(b"x", delay=0.1)
        await send.wait(1)
        queue._link.on_news = lambda *_: None
        await other.put(b"x", delay=0.1)
        await send.wait(2)


async def test_what_is_no_message_is_left_alone(redis: RedisServer) -> None:
    """Somebody else's rubbish in the keys ends no worker."""
    send, url = Sent(), redis.fresh()
    async with opened(redis, send, url, shards=1) as queue:
        due, _, bodies, _ = Names(url.rpartition("/")[2]).of(0)
        with redis.client() as client:
            client.hset(bodies, "rubbish", "x")
            client.zadd(due, {"rubbish": 1, "bodiless": 2})
        await queue.put(b"x", delay=0)
        await send.wait(1)
        await trio.sleep(0.05)
        await queue.put(b"x", delay=0)
        await send.wait(2)


# ---------------------------------------------------------------- fallbacks


async def test_redis_as_primary_and_memory_as_its_fallback(own_redis: RedisServer) -> None:
    """While Redis is gone messages are held in memory, and those that are far go to Redis when it is back."""
    send = Sent()
    async with opened(own_redis, send) as queue, open_delay_queue(send, capacity=100, workers=2) as memory:
        fallback = Fallback(queue.publish_delayed, memory, hand_back=True, hand_back_after=1.0, breaker=None)
        assert (await fallback.publish(b"x", delay=0.3)).route is Route.PRIMARY
        await trio.to_thread.run_sync(own_redis.kill)
        await until(lambda: not queue.statistics().connected)
        held = await fallback.publish(b"x", delay=0.9)
        assert held.route is Route.LOCAL
        assert isinstance(held.reason, RedisUnreachable)
        far = await fallback.publish(b"far", delay=60)
        assert memory.statistics().pending == 2
        await trio.to_thread.run_sync(own_redis.restart)
        await send.wait(2)
        await until(lambda: not memory.statistics().pending)
        assert await queue.is_pending(far.message.id)
        assert memory.statistics().handed_back == 1
        assert (await fallback.publish(b"x", delay=0)).route is Route.PRIMARY


async def test_redis_as_the_fallback(own_redis: RedisServer) -> None:
    """What the primary refuses waits in Redis, under its id; where Redis refuses too the caller is told."""

    async def refuse(_: Message, delay: float) -> None:
        raise Throttled(str(delay))

    send = Sent()
    async with opened(own_redis, send, claim_ahead=100.0) as queue:
        fallback = Fallback(refuse, queue)
        for id in (None, "chosen"):
            receipt = await fallback.publish(b"x", delay=0.1, id=id, headers={"a": "b"})
            assert (receipt.route, receipt.at_risk) == (Route.LOCAL, 0)
            await send.wait(1)
            sent = send.messages.pop()
            assert (sent.id, dict(sent.headers)) == (receipt.message.id, {"a": "b"})
        await fallback.publish(b"x", delay=60, id="twice")
        with pytest.raises(ValueError, match="pending already"):
            await fallback.publish(b"x", delay=60, id="twice")
        with own_redis.throttled(""), pytest.raises(Throttled, match="OOM") as refused:
            await fallback.publish(b"x", delay=0.5)
        assert isinstance(refused.value.__cause__, Throttled)
        assert fallback.statistics().refused == 1
        with pytest.raises(ValueError, match="hand_back needs a queue in memory"):
            Fallback(refuse, queue, hand_back=True)
        queue.is_known("twice")


async def test_a_message_that_is_published_twice_is_stored_once(redis: RedisServer) -> None:
    """After an answer that was lost the same message comes again, and that is well."""
    send = Sent()
    async with opened(redis, send) as queue:
        message = Message("order", b"x", trio.current_time(), {"a": "b"}, 3)
        queue.pause()  # or it might be gone when it comes again
        await queue.publish_delayed(message, 0.1)
        await queue.publish_delayed(message, 0.1)
        assert await queue.count() == 1
        queue.resume()
        await send.wait(1)
        assert (send.messages[0].attempt, send.messages[0].id) == (3, "order")
        with pytest.raises(ValueError, match="delay"):
            await queue.publish_delayed(message, -1)
        with pytest.raises(ValueError, match="delay must be less than"):
            await queue.publish_delayed(message, 1e13)


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"delay": -1}, ValueError, "delay"),
        ({"delay": float("nan")}, ValueError, "delay"),
        ({"delay": 1e11}, ValueError, "delay"),
        ({"delay": "1"}, TypeError, "delay"),
        ({}, TypeError, "delay and at"),
        ({"delay": 1, "at": datetime.now(UTC)}, TypeError, "delay and at"),
        ({"at": datetime(2026, 1, 1)}, ValueError, "aware"),  # noqa: DTZ001 (that is what is wrong)
        ({"at": 5}, TypeError, "at must be a datetime"),
        ({"delay": 1, "id": ""}, ValueError, "id"),
        ({"delay": 1, "id": 5}, TypeError, "id"),
        ({"delay": 1, "id": "x" * 513}, ValueError, "id must have at most 512 bytes"),
        ({"delay": 1, "payload": "text"}, TypeError, "payload"),
        ({"delay": 1, "headers": {"a": 1}}, TypeError, "headers"),
    ],
)
async def test_a_wrong_put_is_refused(
    redis: RedisServer, wrong: dict[str, object], error: type[Exception], says: str
) -> None:
    """At the call, by the name of the argument."""
    async with opened(redis) as queue:
        with pytest.raises(error, match=says):
            await queue.put(**{"payload": b"x", **wrong})  # type: ignore[arg-type]
        assert await queue.count() == 0


async def test_put_nowait_says_why_not(redis: RedisServer) -> None:
    """Nobody can know without waiting."""
    async with opened(redis) as queue:
        with pytest.raises(RuntimeError, match="await put"):
            queue.put_nowait(b"x", delay=1)


async def _send(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"url": "http://h/q"}, ValueError, "url must begin with one of redis://"),
        ({"url": "redis://h/"}, ValueError, "url must end with"),
        ({"url": "redis://h/a{b}"}, ValueError, "url must end with"),
        ({"url": "redis://h/a}b"}, ValueError, "url must end with"),
        ({"url": "redis://h/a%20b"}, ValueError, "url must end with"),
        ({"url": "redis://h/a%0A"}, ValueError, "url must end with"),
        ({"url": f"redis://h/{'x' * 201}"}, ValueError, "url must end with"),
        ({"url": "redis://h/q?db=x"}, ValueError, "db must be a whole number"),
        (
            {"url": "redis+cluster://h/q?db=1"},
            ValueError,
            "an option that redis.cluster:// does not know, db",
        ),
        ({"url": "redis+cluster://h,/q"}, ValueError, "url must name a host, like redis.cluster://"),
        ({"url": 5}, TypeError, "url"),
        ({"send_batch": _send}, TypeError, "exactly one"),
        ({"send": None}, TypeError, "exactly one"),
        ({"send": 5}, TypeError, "send must be"),
        ({"batch": BatchPolicy(max_messages=3)}, TypeError, "batch is for send_batch"),
        ({"batch": 5}, TypeError, "batch must be"),
        ({"workers": 0}, ValueError, "workers"),
        ({"capacity": 0}, ValueError, "capacity"),
        ({"capacity_bytes": 0}, ValueError, "capacity_bytes"),
        ({"shards": 0}, ValueError, "shards"),
        ({"shard_messages": 0}, ValueError, "shard_messages"),
        ({"shard_bytes": 0}, ValueError, "shard_bytes"),
        ({"lease": 0}, ValueError, "lease"),
        ({"claim_ahead": 0}, ValueError, "claim_ahead"),
        ({"heartbeat": 0}, ValueError, "heartbeat"),
        ({"linger": -1}, ValueError, "linger"),
        ({"replicas": 0}, ValueError, "replicas"),
        ({"confirm_within": -1}, ValueError, "confirm_within"),
        ({"put_timeout": 0}, ValueError, "put_timeout"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout"),
        ({"shard_bytes": "1"}, TypeError, "shard_bytes"),
        ({"lease": "1"}, TypeError, "lease"),
        ({"timer": "x"}, ValueError, "timer"),
        ({"retry": 5}, TypeError, "retry"),
        ({"send_timeout": 0}, ValueError, "send_timeout"),
        ({"on_dead_letter": 5}, TypeError, "on_dead_letter"),
        ({"limit": 5}, TypeError, "limit"),
        ({"listener": 5}, TypeError, "listener"),
    ],
)
async def test_a_wrong_argument_is_refused(
    wrong: dict[str, object], error: type[Exception], says: str
) -> None:
    """Before anybody is asked: there is no Redis here."""
    options = {"send": _send, "workers": 1, "url": "redis://127.0.0.1:1/q", **wrong}
    with pytest.raises(error, match=says):
        async with open_redis_delay_queue(**tuned(**options)):
            pass


async def test_no_redis_is_a_connection_error() -> None:
    """At once, and without the password."""
    with pytest.raises(ConnectionError, match=r"no connection to Redis at 127\.0\.0\.1:1") as raised:
        async with open_redis_delay_queue(_send, workers=1, url="redis://user:secret@127.0.0.1:1/q"):
            pass
    assert "secret" not in str(raised.value)


async def test_the_first_instance_says_how_many_shards(redis: RedisServer) -> None:
    """The others get what is there, whatever they ask for; and none asked for makes sixteen."""
    url = redis.fresh()
    async with opened(redis, Sent(), url, shards=3), opened(redis, Sent(), url, shards=9) as second:
        assert second.statistics().shards == 3
        with pytest.raises(ValueError, match="shards"):
            await second.set_shards(0)
    async with opened(redis, shards=None) as queue:
        assert queue.statistics().shards == 16
        assert shard_of("a", 16) < 16
