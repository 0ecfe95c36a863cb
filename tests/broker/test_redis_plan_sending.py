"""One instance of a queue in Redis, against a real one: sends that fail, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio

from localdelay import (
    BatchPolicy,
    Message,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    RateLimit,
    RetryPolicy,
    Throttled,
)
from localdelay.redis_plan import RedisDelayQueue
from tests.kit.redis_queues import Sent, confirmed, conserve, opened, until
from tests.kit.servers.redis import RedisServer

# ---------------------------------------------------------------- failing sends


async def test_a_failed_send_is_retried(redis: RedisServer) -> None:
    """Here, where the wait is short; under the same id, with the next attempt."""
    send = Sent(OSError("one"), Throttled("two"), None)
    async with opened(redis, send, retry=RetryPolicy(wait_initial=0.05, wait_jitter=0)) as queue:
        message = await queue.put(b"x", delay=0)
        await send.wait(3)
        await confirmed(queue)
        assert send.ids == [message.id] * 3
        assert [one.attempt for one in send.messages] == [1, 2, 2]
        found = conserve(queue)
        assert (found.sent, found.failures, found.throttled, found.lateness.count) == (1, 2, 1, 1)


async def test_a_long_wait_is_spent_in_redis(redis: RedisServer) -> None:
    """The message goes back, with its next attempt, and another instance may send it."""
    url = redis.fresh()
    send, others = Sent(OSError("no")), Sent()
    retry = RetryPolicy(wait_initial=1.5, wait_jitter=0)
    async with opened(redis, send, url, claim_ahead=0.1, retry=retry) as queue:
        begun = trio.current_time()
        message = await queue.put(b"x", delay=0, headers={"a": "b"})
        await send.wait(1)
        await until(lambda: conserve(queue).spooled == 1)
        queue.pause()
        async with opened(redis, others, url) as other:
            await others.wait(1)
            assert others.at[0] - begun >= 1.5
            again = others.messages[0]
            assert (again.id, again.attempt, dict(again.headers)) == (message.id, 2, {"a": "b"})
            assert again.execute_at == pytest.approx(message.execute_at, abs=0.5)
            await confirmed(other)
            assert other.statistics().lateness.count == 0


async def test_what_is_given_up_goes_to_the_dead_letters(redis: RedisServer) -> None:
    """After its attempts, or at once where it can never be sent; and is gone from Redis."""
    dead: list[tuple[str, str]] = []

    async def bury(message: Message, error: Exception) -> None:
        dead.append((message.id, str(error)))

    send = Sent(PermanentSendError("never"), OSError("one"), OSError("two"))
    retry = RetryPolicy(attempts=2, wait_initial=0.02, wait_jitter=0)
    async with opened(redis, send, retry=retry, on_dead_letter=bury, workers=1) as queue:
        await queue.put(b"x", delay=0, id="wrong")
        await send.wait(1)
        await queue.put(b"x", delay=0, id="unlucky")
        await send.wait(3)
        await confirmed(queue)
        assert dead == [("wrong", "never"), ("unlucky", "two")]
        assert conserve(queue).dead == 2


async def test_batches(redis: RedisServer) -> None:
    """Due messages go together; of a batch that fails in part only the failed are sent again."""
    batches: list[list[str]] = []

    async def send_batch(messages: Sequence[Message]) -> None:
        batches.append([message.id for message in messages])
        if len(batches) == 1:
            raise PartialSendError({"1": OSError("not this one")})

    options = {"send": None, "send_batch": send_batch, "batch": BatchPolicy(max_messages=10), "workers": 1}
    retry = RetryPolicy(wait_initial=0.05, wait_jitter=0)
    async with opened(redis, retry=retry, linger=0.01, **options) as queue:
        at = datetime.now(UTC) + timedelta(seconds=0.9)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(partial(queue.put, b"x", at=at, id=str(number)))
        await confirmed(queue)
        assert sorted(batches[0]) == ["0", "1", "2", "3"]
        assert batches[1:] == [["1"]]
        assert conserve(queue).sent == 4


async def test_a_send_that_hangs_is_ended(redis: RedisServer) -> None:
    """By send_timeout, though its lease is renewed meanwhile: no other instance has it."""
    send, others, url = Sent(), Sent(), redis.fresh()
    send.open = trio.Event()
    options = {"lease": 1.0, "retry": RetryPolicy(wait_initial=0.01, wait_jitter=0)}
    async with (
        opened(redis, send, url, send_timeout=1.5, **options) as queue,
        opened(redis, others, url, **options),
    ):
        await queue.put(b"x", delay=0)
        await send.wait(2)
        send.open.set()
        await confirmed(queue)
        assert send.at[1] - send.at[0] >= 1.5
        assert others.ids == []


async def test_a_lease_that_has_ended_is_respected(redis: RedisServer) -> None:
    """What another instance may have by now is not sent here: it is claimed again, by whoever is first."""
    send = Sent()
    async with opened(redis, send, lease=0.2, workers=1) as queue:
        queue._leases.renew_all = lambda: None  # type: ignore[method-assign]
        send.open = trio.Event()
        first = await queue.put(b"x", delay=0)
        second = await queue.put(b"x", delay=0)
        await send.wait(1)
        await trio.sleep(0.4)
        assert send.ids == [first.id]
        send.open.set()
        await send.wait(2)
        await confirmed(queue)
        assert set(send.ids) == {first.id, second.id}


async def test_a_limit_paces_the_sends(redis: RedisServer) -> None:
    """As in the queue in memory."""
    send = Sent()
    async with opened(redis, send, limit=RateLimit(20, burst=1)) as queue:
        for _ in range(4):
            await queue.put(b"x", delay=0)
        await send.wait(4)
        assert send.at[3] - send.at[0] >= 0.14


# ---------------------------------------------------------------- leaving


async def test_drain_sends_what_comes_due_within_the_grace(redis: RedisServer) -> None:
    """The rest stays in Redis; the counts are of the drain alone, and a second drain raises."""
    send = Sent()
    url = redis.fresh()
    async with opened(redis, send, url, claim_ahead=0.2) as queue:
        queue.pause()  # what is sent before the drain would not be in its counts
        for delay in (0.1, 0.4, 30, 60):
            await queue.put(b"x", delay=delay)
        begun = trio.current_time()
        report = await queue.drain(0.8)
        assert trio.current_time() - begun < 30
        assert (report.sent, report.dead, report.cancelled, report.handed_back) == (2, 0, 0, 0)
        assert report.remaining == []
        with pytest.raises(QueueClosed):
            await queue.put(b"x", delay=1)
        with pytest.raises(QueueClosed):
            await queue.drain()
        with pytest.raises(QueueClosed):
            queue.pause()
    async with opened(redis, send, url, claim_ahead=0.2) as queue:
        assert await queue.count() == 2


async def test_drain_returns_when_nothing_comes_due(redis: RedisServer) -> None:
    """It does not wait for the end of its grace."""
    async with opened(redis) as queue:
        await queue.put(b"x", delay=60)
        with trio.fail_after(20):
            assert (await queue.drain(25.0)).sent == 0


async def test_leaving_waits_for_sends_that_run(redis: RedisServer) -> None:
    """And gives back what was claimed and not begun."""
    send, url = Sent(), redis.fresh()
    async with trio.open_nursery() as nursery:
        async with opened(redis, send, url, workers=1) as queue:
            send.open = trio.Event()
            for _ in range(3):
                await queue.put(b"x", delay=0)
            await send.wait(1)

            async def open_later() -> None:
                await trio.sleep(0.2)
                send.open.set()

            nursery.start_soon(open_later)
        found = queue.statistics()
        assert (found.sent, found.spooled) == (1, 2)
    async with opened(redis, send, url):
        await send.wait(3)
        assert len(set(send.ids)) == 3


async def test_what_was_sent_last_is_confirmed_on_leaving(redis: RedisServer) -> None:
    """However soon the block is left, nothing is sent again."""
    for pause in (0.0, 0.02, 0.05):
        url, send = redis.fresh(), Sent()
        async with opened(redis, send, url, confirm_within=0.03) as queue:
            for _ in range(20):
                await queue.put(b"x", delay=0)
            await send.wait(20)
            await trio.sleep(pause)
        async with opened(redis, send, url) as queue:
            assert await queue.count() == 0


async def test_a_put_under_way_has_an_end_when_the_block_is_left(own_redis: RedisServer) -> None:
    """Its answer where Redis gives one, else an error: nobody waits for ever."""
    for answers in (True, False):
        ended: list[str] = []

        async def put(queue: RedisDelayQueue, ended: list[str] = ended) -> None:
            try:
                await queue.put(b"x", delay=60)
                ended.append("put")
            except (QueueClosed, Throttled, ConnectionError):
                ended.append("refused")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                with pytest.raises(KeyError):
                    async with opened(own_redis, put_timeout=1.0) as queue:
                        if not answers:
                            own_redis.freeze()
                        for _ in range(3):
                            nursery.start_soon(put, queue)
                        await trio.lowlevel.checkpoint()
                        raise KeyError
                own_redis.thaw()
        assert len(ended) == 3
        assert ("put" in ended) is answers
        with pytest.raises(QueueClosed):
            await queue.put(b"x", delay=60)


async def test_a_block_that_is_cancelled_tells_what_was_sent(redis: RedisServer) -> None:
    """Also what was just being told, in however many shards: nothing is sent again."""
    send, url = Sent(), redis.fresh()
    with trio.CancelScope() as scope:
        async with opened(redis, send, url, shards=64, workers=10, confirm_within=0.1) as queue:
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(partial(queue.put, b"x", delay=0, id=f"number {number}"))
            await send.wait(200)
            while not queue._leases._being_told:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert conserve(queue).unconfirmed == 0
    async with opened(redis, send, url) as queue:
        assert await queue.count() == 0


async def test_a_drained_queue_does_not_go_on(redis: RedisServer) -> None:
    """To resume it does nothing: it would claim and give back without an end."""
    async with opened(redis) as queue:
        await queue.put(b"x", delay=0.8)
        await queue.drain()
        queue.resume()
        before = queue.statistics().commands
        await trio.sleep(0.5)
        assert queue.statistics().commands - before < 10


async def test_an_exception_leaves_the_block_as_it_is(redis: RedisServer) -> None:
    """Not in a group; and cancellation is Trio's."""
    with pytest.raises(KeyError):
        async with opened(redis) as queue:
            await queue.put(b"x", delay=0.1)
            raise KeyError
    with trio.move_on_after(0.1) as scope:
        async with opened(redis):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_drain_from_a_send_is_refused(redis: RedisServer) -> None:
    """It would wait for itself. And there is nothing to hand back."""
    raised: list[Exception] = []

    async def send(_: Message) -> None:
        try:
            await queue.drain()
        except RuntimeError as error:
            raised.append(error)

    async with opened(redis, send) as queue:
        await queue.put(b"x", delay=0)
        await until(lambda: len(raised) == 1)
        with pytest.raises(ValueError, match="hand_back must be None"):
            await queue.drain(1.0, queue.publish_delayed)
