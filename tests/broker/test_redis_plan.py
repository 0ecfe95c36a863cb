"""One instance of a queue in Redis, against a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
import trio

from localdelay import (
    BatchPolicy,
    Fallback,
    Message,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimit,
    RetryPolicy,
    Route,
    Throttled,
    open_delay_queue,
)
from localdelay.redis_plan import RedisDelayQueue, RedisStatistics, RedisUnreachable, open_redis_delay_queue
from localdelay.redis_plan.keys import Names, shard_of
from tests.kit.redis_plan_worker import real_time
from tests.kit.servers.redis import RedisServer

Opened = Callable[..., object]


@pytest.fixture
def server(start_server: Callable[[str], RedisServer]) -> RedisServer:
    return start_server("redis")


@pytest.fixture
def own(server: RedisServer) -> Iterator[RedisServer]:
    """A server that the test may spoil."""
    one = RedisServer()
    one.start()
    yield one
    one.stop()


class Sent:
    """A sender that writes down, and fails as it is told: errors in the order of the sends."""

    def __init__(self, *errors: Exception | None) -> None:
        self.messages: list[Message] = []
        self.at: list[float] = []
        self.errors = list(errors)
        self.open = trio.Event()
        self.open.set()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.at.append(trio.current_time())
        await self.open.wait()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    async def wait(self, count: int, within: float = 10.0) -> None:
        with trio.fail_after(within):
            while len(self.messages) < count:  # noqa: ASYNC110
                await trio.sleep(0.005)


@asynccontextmanager
async def opened(
    server: RedisServer, given: Callable[[Message], object] | None = None, url: str = "", **options: object
) -> AsyncIterator[RedisDelayQueue]:
    usual = {"send": given or Sent(), "workers": 4, "shards": 4, "confirm_within": 0.02, "linger": 0.0}
    async with open_redis_delay_queue(url=url or server.fresh(), **{**usual, **options}) as queue:  # type: ignore[arg-type]
        try:
            yield queue
        finally:
            conserve(queue)
    s = conserve(queue)
    assert s.pending == 0
    assert s.closed


def conserve(queue: RedisDelayQueue) -> RedisStatistics:
    s = queue.statistics()
    assert s.accepted == s.sent + s.dead + s.cancelled + s.handed_back + s.spooled + s.pending, s
    assert s.pending == s.waiting + s.sending + s.retrying, s
    assert s.lateness.clipped == 0
    return s


async def confirmed(queue: RedisDelayQueue) -> None:
    """Wait until Redis holds nothing any more."""
    with trio.fail_after(10):
        while await queue.count():  # noqa: ASYNC110
            await trio.sleep(0.01)


# ---------------------------------------------------------------- what it does


async def test_messages_are_sent_when_they_are_due(server: RedisServer) -> None:
    """In due order, with all that they had, never early by Redis's clock, and gone from Redis then."""
    send = Sent()
    async with opened(server, send, claim_ahead=0.1) as queue:
        late = await queue.put(b"late", delay=0.4, headers={"a": "ü"})
        early = await queue.put(b"early", delay=0.05, id="order 7")
        soon = await queue.put(b"soon", at=datetime.now(UTC) + timedelta(seconds=0.2))
        now = await queue.put(b"now", at=datetime(2020, 1, 1, tzinfo=UTC))
        assert await queue.count() >= 3
        await send.wait(4)
        assert [message.payload for message in send.messages] == [b"now", b"early", b"soon", b"late"]
        assert send.ids == [now.id, "order 7", soon.id, late.id]
        assert early.id == "order 7"
        assert dict(send.messages[3].headers) == {"a": "ü"}
        assert [message.attempt for message in send.messages] == [1, 1, 1, 1]
        assert all(at >= message.execute_at for at, message in zip(send.at, send.messages, strict=True))
        assert send.messages[3].execute_at == pytest.approx(late.execute_at, abs=0.05)
        await confirmed(queue)
        found = conserve(queue)
        assert (found.put, found.accepted, found.sent, found.pending, found.unconfirmed) == (4, 4, 4, 0, 0)
        assert found.lateness.count == 4
        assert (found.shards, found.retiring, found.connected, found.at_risk) == (4, 0, True, 0)


async def test_never_early_by_redis_clock(server: RedisServer) -> None:
    """Redis's clock, which here is this machine's, is past execute-at at the start of each send."""
    early: list[float] = []

    async def send(message: Message) -> None:
        early.append(float(message.payload) - real_time())

    async with opened(server, send, claim_ahead=0.3) as queue:
        for number in range(60):
            due = real_time() + 0.1 + number % 7 / 10
            await queue.put(f"{due:.6f}".encode(), at=datetime.fromtimestamp(due, UTC))
        await trio.sleep(1.0)
    assert len(early) == 60
    assert max(early) <= 2e-6  # a datetime has microseconds


async def test_many_tasks_put_at_once(server: RedisServer) -> None:
    """Their messages go together, in a few commands."""
    send = Sent()
    async with opened(server, send, linger=0.01) as queue:
        await trio.sleep(0.05)  # it asks every shard at the beginning
        before = queue.statistics().commands
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(partial(queue.put, b"x", delay=0.2))
        assert queue.statistics().commands - before <= 6
        await send.wait(200)
        assert len(set(send.ids)) == 200


async def test_a_single_task_does_not_linger(server: RedisServer) -> None:
    """Nobody else puts: there is nobody to wait for."""
    async with opened(server, linger=0.5) as queue:
        begun = trio.current_time()
        for _ in range(5):
            await queue.put(b"x", delay=60)
        assert trio.current_time() - begun < 0.5


async def test_an_id_that_is_pending_is_refused(server: RedisServer) -> None:
    """Also between two instances, and within one command; a finished one may come again."""
    send, url = Sent(), server.fresh()
    async with opened(server, send, url) as queue, opened(server, send, url) as other:
        await queue.put(b"x", delay=0.2, id="order")
        for one in (queue, other):
            with pytest.raises(ValueError, match="'order' is the id of a message that is pending already"):
                await one.put(b"y", delay=1, id="order")
        assert await other.is_pending("order")
        assert not await other.is_pending("another")
        await send.wait(1)
        await confirmed(queue)
        await other.put(b"z", delay=0, id="order")
        await send.wait(2)
    async with opened(server, linger=0.02, shards=1) as queue:
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


async def test_cancel(server: RedisServer) -> None:
    """What waits, here or in Redis, is never sent; all else can't be cancelled."""
    send, url = Sent(), server.fresh()
    async with opened(server, send, url, claim_ahead=0.3) as queue, opened(server, send, url) as other:
        far = await queue.put(b"far", delay=60)
        near = await queue.put(b"near", delay=0.25)
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


async def test_what_redis_was_not_told_is_not_cancelled(own: RedisServer) -> None:
    """A cancel that Redis does not answer raises, and the message is sent; so where it is cut off."""
    send = Sent()
    async with opened(own, send, put_timeout=0.2) as queue:
        message = await queue.put(b"x", delay=0.9)
        assert queue.statistics().pending == 1
        own.freeze()
        with trio.move_on_after(0.05) as scope:
            await queue.cancel(message.id)
        assert scope.cancelled_caught
        assert conserve(queue).waiting == 1
        with pytest.raises((Throttled, ConnectionError)):
            await queue.cancel(message.id)
        assert conserve(queue).waiting == 1
        own.thaw()
        await send.wait(1)
        await confirmed(queue)
        found = conserve(queue)
        assert (found.sent, found.cancelled) == (1, 0)


async def test_messages_are_shown_in_due_order(server: RedisServer) -> None:
    """The first of them, over all shards; claimed ones too."""
    async with opened(server) as queue:
        ids = [
            (await queue.put(b"x", delay=delay, id=f"{delay}", headers={"n": "1"})).id
            for delay in (9, 3, 0.5, 5)
        ]
        found = await queue.messages()
        assert [message.id for message in found] == [ids[2], ids[1], ids[3], ids[0]]
        assert all(one.execute_at < other.execute_at for one, other in pairwise(found))
        assert found[0].headers == {"n": "1"}
        assert [message.id for message in await queue.messages(2)] == [ids[2], ids[1]]
        with pytest.raises(ValueError, match="limit"):
            await queue.messages(0)


async def test_pause_and_resume(server: RedisServer) -> None:
    """A paused instance sends nothing, and holds up nothing that it has claimed: another sends it."""
    send, others, url = Sent(), Sent(), server.fresh()
    async with opened(server, send, url) as queue:
        await queue.put(b"x", delay=0.2, id="claimed")
        assert queue.statistics().pending == 1
        queue.pause()
        assert queue.statistics().paused
        assert queue.statistics().spooled == 1
        async with opened(server, others, url):
            await others.wait(1)
        await queue.put(b"x", delay=0, id="mine")
        await trio.sleep(0.1)
        assert send.ids == []
        queue.resume()
        await send.wait(1)
        assert (send.ids, others.ids) == (["mine"], ["claimed"])


async def test_a_claim_that_comes_after_a_pause_goes_back(server: RedisServer) -> None:
    """Its answer was on the way: another instance sends what it has claimed."""
    others, url = Sent(), server.fresh()
    # Due long after the pause, however busy the machine is: this instance must not come to send any.
    async with opened(server, Sent(), url, shards=1, claim_ahead=5.0) as queue:
        for number in range(5):
            queue.resume()
            await trio.sleep(0.02)
            queue.pause()
            await queue.put(b"x", delay=3.0, id=str(number))
            queue.resume()
            while not queue._parts.claimer._in_flight:
                await trio.lowlevel.checkpoint()
            queue.pause()
            await trio.sleep(0.05)
            assert conserve(queue).pending == 0
        async with opened(server, others, url):
            await others.wait(5)


async def test_there_is_room_again_after_a_send_that_hung(server: RedisServer) -> None:
    """However little there is."""
    send = Sent()
    send.open = trio.Event()
    retry = RetryPolicy(attempts=1)
    async with opened(server, send, capacity=1, workers=1, send_timeout=0.1, retry=retry) as queue:
        await queue.put(b"x", delay=0, id="hangs")
        await queue.put(b"x", delay=0.01, id="next")
        await send.wait(1)
        with trio.fail_after(2):
            while not queue.statistics().dead:  # noqa: ASYNC110
                await trio.sleep(0.01)
        send.open.set()
        await send.wait(2, within=2.0)
        assert send.ids == ["hangs", "next"]


async def test_capacity_bounds_what_is_claimed(server: RedisServer) -> None:
    """The rest waits in Redis until there is room; resizing makes some."""
    send = Sent()
    async with opened(server, send, capacity=3, workers=1) as queue:
        send.open = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(partial(queue.put, b"x", delay=0))
        await send.wait(1)
        await trio.sleep(0.1)
        assert queue.statistics().pending == 3
        queue.resize(capacity=10, workers=2, capacity_bytes=1000)
        await send.wait(2)
        await trio.sleep(0.1)
        found = queue.statistics()
        assert (found.pending, found.capacity, found.workers, found.capacity_bytes) == (10, 10, 2, 1000)
        send.open.set()
        await send.wait(30)
        assert len(set(send.ids)) == 30
        await confirmed(queue)
        for wrong in ({"capacity": 0}, {"workers": 0}, {"capacity_bytes": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                queue.resize(**wrong)


# ---------------------------------------------------------------- keys stay small


async def test_no_key_grows_over_its_bounds(server: RedisServer) -> None:
    """A full shard refuses a chosen id; other messages go on to other shards, until all are full."""
    url = server.fresh()
    async with opened(server, Sent(), url, shards=2, shard_messages=5) as queue:
        ids = []
        with pytest.raises(QueueFull, match="shards"):
            for _ in range(20):
                ids += [(await queue.put(b"x", delay=60)).id]
        assert len(ids) == len(set(ids)) == 10
        with pytest.raises(QueueFull, match="has 5 messages"):
            await queue.put(b"x", delay=60, id="chosen")
        names = Names(url.rpartition("/")[2])
        with server.client() as client:
            for shard in range(2):
                due, leases, bodies, _ = names.of(shard)
                assert client.zcard(due) + client.zcard(leases) == client.hlen(bodies) == 5
        assert await queue.cancel(ids[0])
        await queue.put(b"x", delay=60)


async def test_bytes_of_a_shard_are_bounded(server: RedisServer) -> None:
    """What would make it too large is refused; what could never fit is wrong; what is gone counts no more."""
    send = Sent()
    async with opened(server, send, shards=1, shard_bytes=1000) as queue:
        for _ in range(4):
            await queue.put(bytes(200), delay=0.1)
        with pytest.raises(QueueFull):
            await queue.put(bytes(200), delay=60)
        with pytest.raises(ValueError, match="over the shard_bytes of 1000"):
            await queue.put(bytes(1000), delay=60)
        await send.wait(4)
        await confirmed(queue)
        for _ in range(4):
            await queue.put(bytes(200), delay=60)


async def test_what_redis_does_not_take_is_refused_here(server: RedisServer) -> None:
    """Redis would end the connection, and the puts of others with it."""
    async with opened(server) as queue:
        with pytest.raises(ValueError, match="over the 1048576 that Redis takes"):
            await queue.put(bytes(1024 * 1024 + 1), delay=60)
        assert queue.statistics().connections == 1


async def test_out_of_memory_is_throttled(own: RedisServer) -> None:
    """A put is refused; what waits is claimed, sent, retried and confirmed all the same."""
    send = Sent(None, OSError("once"))
    async with opened(
        own, send, claim_ahead=0.1, retry=RetryPolicy(wait_initial=0.2, wait_jitter=0)
    ) as queue:
        for _ in range(3):
            await queue.put(b"x", delay=0.3)
        with own.throttled(""):
            with pytest.raises(Throttled, match="OOM"):
                await queue.put(b"x", delay=1)
            await send.wait(4)
            await confirmed(queue)
        await queue.put(b"x", delay=0)
        await send.wait(5)
        await confirmed(queue)
        assert conserve(queue).sent == 4


# ---------------------------------------------------------------- failing sends


async def test_a_failed_send_is_retried(server: RedisServer) -> None:
    """Here, where the wait is short; under the same id, with the next attempt."""
    send = Sent(OSError("one"), Throttled("two"), None)
    async with opened(server, send, retry=RetryPolicy(wait_initial=0.05, wait_jitter=0)) as queue:
        message = await queue.put(b"x", delay=0)
        await send.wait(3)
        await confirmed(queue)
        assert send.ids == [message.id] * 3
        assert [one.attempt for one in send.messages] == [1, 2, 2]
        found = conserve(queue)
        assert (found.sent, found.failures, found.throttled, found.lateness.count) == (1, 2, 1, 1)


async def test_a_long_wait_is_spent_in_redis(server: RedisServer) -> None:
    """The message goes back, with its next attempt, and another instance may send it."""
    url = server.fresh()
    send, others = Sent(OSError("no")), Sent()
    retry = RetryPolicy(wait_initial=0.5, wait_jitter=0)
    async with opened(server, send, url, claim_ahead=0.1, retry=retry) as queue:
        begun = trio.current_time()
        message = await queue.put(b"x", delay=0, headers={"a": "b"})
        await send.wait(1)
        await trio.sleep(0.05)
        assert conserve(queue).spooled == 1
        queue.pause()
        async with opened(server, others, url) as other:
            await others.wait(1)
            assert others.at[0] - begun >= 0.5
            again = others.messages[0]
            assert (again.id, again.attempt, dict(again.headers)) == (message.id, 2, {"a": "b"})
            assert again.execute_at == pytest.approx(message.execute_at, abs=0.05)
            await confirmed(other)
            assert other.statistics().lateness.count == 0


async def test_what_is_given_up_goes_to_the_dead_letters(server: RedisServer) -> None:
    """After its attempts, or at once where it can never be sent; and is gone from Redis."""
    dead: list[tuple[str, str]] = []

    async def bury(message: Message, error: Exception) -> None:
        dead.append((message.id, str(error)))

    send = Sent(PermanentSendError("never"), OSError("one"), OSError("two"))
    retry = RetryPolicy(attempts=2, wait_initial=0.02, wait_jitter=0)
    async with opened(server, send, retry=retry, on_dead_letter=bury, workers=1) as queue:
        await queue.put(b"x", delay=0, id="wrong")
        await send.wait(1)
        await queue.put(b"x", delay=0, id="unlucky")
        await send.wait(3)
        await confirmed(queue)
        assert dead == [("wrong", "never"), ("unlucky", "two")]
        assert conserve(queue).dead == 2


async def test_batches(server: RedisServer) -> None:
    """Due messages go together; of a batch that fails in part only the failed are sent again."""
    batches: list[list[str]] = []

    async def send_batch(messages: Sequence[Message]) -> None:
        batches.append([message.id for message in messages])
        if len(batches) == 1:
            raise PartialSendError({"1": OSError("not this one")})

    options = {"send": None, "send_batch": send_batch, "batch": BatchPolicy(max_messages=10), "workers": 1}
    retry = RetryPolicy(wait_initial=0.05, wait_jitter=0)
    async with opened(server, retry=retry, linger=0.01, **options) as queue:
        at = datetime.now(UTC) + timedelta(seconds=0.3)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(partial(queue.put, b"x", at=at, id=str(number)))
        await trio.sleep(0.5)
        await confirmed(queue)
        assert sorted(batches[0]) == ["0", "1", "2", "3"]
        assert batches[1:] == [["1"]]
        assert conserve(queue).sent == 4


async def test_a_send_that_hangs_is_ended(server: RedisServer) -> None:
    """By send_timeout, though its lease is renewed meanwhile: no other instance has it."""
    send, others, url = Sent(), Sent(), server.fresh()
    send.open = trio.Event()
    options = {"lease": 0.3, "retry": RetryPolicy(wait_initial=0.01, wait_jitter=0)}
    async with (
        opened(server, send, url, send_timeout=0.9, **options) as queue,
        opened(server, others, url, **options),
    ):
        await queue.put(b"x", delay=0)
        await send.wait(1)
        await trio.sleep(0.8)
        assert others.ids == []
        send.open.set()
        send.errors.clear()
        await send.wait(1)
        await confirmed(queue)
        assert len(send.ids) + len(others.ids) == 1


async def test_a_lease_that_has_ended_is_respected(server: RedisServer) -> None:
    """What another instance may have by now is not sent here: it is claimed again, by whoever is first."""
    send = Sent()
    async with opened(server, send, lease=0.2, workers=1) as queue:
        queue._parts.held.renew_all = trio.lowlevel.checkpoint  # type: ignore[method-assign]
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


async def test_a_limit_paces_the_sends(server: RedisServer) -> None:
    """As in the queue in memory."""
    send = Sent()
    async with opened(server, send, limit=RateLimit(20, burst=1)) as queue:
        for _ in range(4):
            await queue.put(b"x", delay=0)
        await send.wait(4)
        assert send.at[3] - send.at[0] >= 0.14


# ---------------------------------------------------------------- leaving


async def test_drain_sends_what_comes_due_within_the_grace(server: RedisServer) -> None:
    """The rest stays in Redis; the counts are of the drain alone, and a second drain raises."""
    send = Sent()
    url = server.fresh()
    async with opened(server, send, url, claim_ahead=0.2) as queue:
        for delay in (0.1, 0.4, 0.9, 60):
            await queue.put(b"x", delay=delay)
        begun = trio.current_time()
        report = await queue.drain(0.6)
        assert trio.current_time() - begun < 0.75
        assert (report.sent, report.dead, report.cancelled, report.handed_back) == (2, 0, 0, 0)
        assert report.remaining == []
        with pytest.raises(QueueClosed):
            await queue.put(b"x", delay=1)
        with pytest.raises(QueueClosed):
            await queue.drain()
        with pytest.raises(QueueClosed):
            queue.pause()
    async with opened(server, send, url, claim_ahead=0.2) as queue:
        assert await queue.count() == 2
        await send.wait(3)


async def test_drain_returns_when_nothing_comes_due(server: RedisServer) -> None:
    """It does not wait for the end of its grace."""
    async with opened(server) as queue:
        await queue.put(b"x", delay=60)
        with trio.fail_after(2):
            assert (await queue.drain(25.0)).sent == 0


async def test_leaving_waits_for_sends_that_run(server: RedisServer) -> None:
    """And gives back what was claimed and not begun."""
    send, url = Sent(), server.fresh()
    async with trio.open_nursery() as nursery:
        async with opened(server, send, url, workers=1) as queue:
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
    async with opened(server, send, url):
        await send.wait(3)
        assert len(set(send.ids)) == 3


async def test_what_was_sent_last_is_confirmed_on_leaving(server: RedisServer) -> None:
    """However soon the block is left, nothing is sent again."""
    for pause in (0.0, 0.02, 0.05):
        url, send = server.fresh(), Sent()
        async with opened(server, send, url, confirm_within=0.03) as queue:
            for _ in range(20):
                await queue.put(b"x", delay=0)
            await send.wait(20)
            await trio.sleep(pause)
        async with opened(server, send, url) as queue:
            assert await queue.count() == 0


async def test_a_put_under_way_has_an_end_when_the_block_is_left(own: RedisServer) -> None:
    """Its answer where Redis gives one, else an error: nobody waits for ever."""
    for answers in (True, False):
        ended: list[str] = []

        async def put(queue: RedisDelayQueue, ended: list[str] = ended) -> None:
            try:
                await queue.put(b"x", delay=60)
                ended.append("put")
            except (QueueClosed, Throttled, ConnectionError):
                ended.append("refused")

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                with pytest.raises(KeyError):
                    async with opened(own, put_timeout=0.3) as queue:
                        if not answers:
                            own.freeze()
                        for _ in range(3):
                            nursery.start_soon(put, queue)
                        await trio.lowlevel.checkpoint()
                        raise KeyError
                own.thaw()
        assert len(ended) == 3
        assert ("put" in ended) is answers
        with pytest.raises(QueueClosed):
            await queue.put(b"x", delay=60)


async def test_a_block_that_is_cancelled_tells_what_was_sent(server: RedisServer) -> None:
    """Also what was just being told, in however many shards: nothing is sent again."""
    send, url = Sent(), server.fresh()
    with trio.CancelScope() as scope:
        async with opened(server, send, url, shards=64, workers=10, confirm_within=0.1) as queue:
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(partial(queue.put, b"x", delay=0, id=f"number {number}"))
            await send.wait(200)
            while not queue._parts.held._being_told:
                await trio.lowlevel.checkpoint()
            begun = trio.current_time()
            scope.cancel()
    assert trio.current_time() - begun < 1.5
    assert conserve(queue).unconfirmed == 0
    async with opened(server, send, url) as queue:
        assert await queue.count() == 0


async def test_a_drained_queue_does_not_go_on(server: RedisServer) -> None:
    """To resume it does nothing: it would claim and give back without an end."""
    async with opened(server) as queue:
        await queue.put(b"x", delay=0.8)
        await queue.drain()
        queue.resume()
        before = queue.statistics().commands
        await trio.sleep(0.5)
        assert queue.statistics().commands - before < 10


async def test_an_exception_leaves_the_block_as_it_is(server: RedisServer) -> None:
    """Not in a group; and cancellation is Trio's."""
    with pytest.raises(KeyError):
        async with opened(server) as queue:
            await queue.put(b"x", delay=0.1)
            raise KeyError
    with trio.move_on_after(0.1) as scope:
        async with opened(server):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_drain_from_a_send_is_refused(server: RedisServer) -> None:
    """It would wait for itself. And there is nothing to hand back."""
    raised: list[Exception] = []

    async def send(_: Message) -> None:
        try:
            await queue.drain()
        except RuntimeError as error:
            raised.append(error)

    async with opened(server, send) as queue:
        await queue.put(b"x", delay=0)
        await trio.sleep(0.1)
        with pytest.raises(ValueError, match="hand_back must be None"):
            await queue.drain(1.0, queue.publish_delayed)
    assert len(raised) == 1


# ---------------------------------------------------------------- faults


async def test_redis_gone_and_back(own: RedisServer) -> None:
    """A put raises at once, the workers come back by themselves, and what was on disk is sent."""
    send = Sent()
    async with opened(own, send, claim_ahead=0.2) as queue:
        for _ in range(10):
            await queue.put(b"x", delay=0.8)
        await trio.to_thread.run_sync(own.kill)
        await trio.sleep(0.05)
        begun = trio.current_time()
        with pytest.raises(RedisUnreachable, match="no connection"):
            await queue.put(b"x", delay=1)
        with pytest.raises(ConnectionError):
            await queue.count()
        assert trio.current_time() - begun < 0.2
        assert not queue.statistics().connected
        await trio.to_thread.run_sync(own.restart)
        await send.wait(10)
        assert len(set(send.ids)) == len(send.ids) == 10
        await confirmed(queue)
        await queue.put(b"x", delay=0)
        await send.wait(11)
        assert queue.statistics().connections == 2


async def test_a_silent_redis_is_given_up(own: RedisServer) -> None:
    """A put that is not answered in time is Throttled, and nobody knows; later all goes on."""
    send = Sent()
    async with opened(own, send, put_timeout=0.3, connect_timeout=0.3) as queue:
        own.freeze()
        with pytest.raises(Throttled):
            await queue.put(b"x", delay=0.5)
        own.thaw()
        with trio.fail_after(5):
            while not queue.statistics().connected:  # noqa: ASYNC110
                await trio.sleep(0.01)
        message = await queue.put(b"y", delay=0)
        with trio.fail_after(5):
            while message.id not in send.ids:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_everything_flushed(server: RedisServer) -> None:
    """After FLUSHALL and SCRIPT FLUSH what was there is gone, and what is put then is sent."""
    own_send, url = Sent(), server.fresh()
    async with opened(server, own_send, url, shards=3, heartbeat=0.1) as queue:
        await queue.put(b"x", delay=60)
        with server.client() as client:
            client.flushall()
            client.script_flush()
        await trio.sleep(0.3)
        assert await queue.count() == 0
        for _ in range(5):
            await queue.put(b"x", delay=0.05)
        await own_send.wait(5)
        await confirmed(queue)
        with server.client() as client:
            layout = client.hgetall(Names(url.rpartition("/")[2]).layout)
        assert layout[b"shards"] == b"3"


async def test_news_that_are_lost_are_made_up_for(server: RedisServer) -> None:
    """A connection that is cut makes for a look at everything; and the heartbeat looks at shards in turn."""
    send, url = Sent(), server.fresh()
    async with opened(server, send, url, heartbeat=0.1) as queue, opened(server, Sent(), url) as other:
        other.pause()
        with server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with trio.fail_after(5):
            while queue.statistics().connections + other.statistics().connections < 4:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await other.put(b"x", delay=0.1)
        await send.wait(1)
        queue._parts.link._on_news = lambda _: None
        await other.put(b"x", delay=0.1)
        await send.wait(2)


async def test_what_is_no_message_is_left_alone(server: RedisServer) -> None:
    """Somebody else's rubbish in the keys ends no worker."""
    send, url = Sent(), server.fresh()
    async with opened(server, send, url, shards=1) as queue:
        due, _, bodies, _ = Names(url.rpartition("/")[2]).of(0)
        with server.client() as client:
            client.hset(bodies, "rubbish", "x")
            client.zadd(due, {"rubbish": 1, "bodiless": 2})
        await queue.put(b"x", delay=0)
        await send.wait(1)
        await trio.sleep(0.05)
        await queue.put(b"x", delay=0)
        await send.wait(2)


# ---------------------------------------------------------------- fallbacks


async def test_redis_as_primary_and_memory_as_its_fallback(own: RedisServer) -> None:
    """While Redis is gone messages are held in memory, and those that are far go to Redis when it is back."""
    send = Sent()
    async with opened(own, send) as queue, open_delay_queue(send, capacity=100, workers=2) as memory:
        fallback = Fallback(queue.publish_delayed, memory, hand_back=True, hand_back_after=1.0, breaker=None)
        assert (await fallback.publish(b"x", delay=0.3)).route is Route.PRIMARY
        await trio.to_thread.run_sync(own.kill)
        await trio.sleep(0.05)
        held = await fallback.publish(b"x", delay=0.3)
        assert held.route is Route.LOCAL
        assert isinstance(held.reason, RedisUnreachable)
        far = await fallback.publish(b"far", delay=60)
        assert memory.statistics().pending == 2
        await trio.to_thread.run_sync(own.restart)
        await send.wait(2)
        with trio.fail_after(10):
            while memory.statistics().pending:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await queue.is_pending(far.message.id)
        assert memory.statistics().handed_back == 1
        assert (await fallback.publish(b"x", delay=0)).route is Route.PRIMARY


async def test_redis_as_the_fallback(own: RedisServer) -> None:
    """What the primary refuses waits in Redis, under its id; where Redis refuses too the caller is told."""

    async def refuse(_: Message, delay: float) -> None:
        raise Throttled(str(delay))

    send = Sent()
    async with opened(own, send) as queue:
        fallback = Fallback(refuse, queue)
        for id in (None, "chosen"):
            receipt = await fallback.publish(b"x", delay=0.1, id=id, headers={"a": "b"})
            assert (receipt.route, receipt.at_risk) == (Route.LOCAL, 0)
            await send.wait(1)
            sent = send.messages.pop()
            assert (sent.id, dict(sent.headers)) == (receipt.message.id, {"a": "b"})
        await fallback.publish(b"x", delay=0.5, id="twice")
        with pytest.raises(ValueError, match="pending already"):
            await fallback.publish(b"x", delay=0.5, id="twice")
        with own.throttled(""), pytest.raises(Throttled, match="OOM") as refused:
            await fallback.publish(b"x", delay=0.5)
        assert isinstance(refused.value.__cause__, Throttled)
        assert fallback.statistics().refused == 1
        with pytest.raises(ValueError, match="hand_back needs a queue in memory"):
            Fallback(refuse, queue, hand_back=True)
        queue.is_known("twice")


async def test_a_message_that_is_published_twice_is_stored_once(server: RedisServer) -> None:
    """After an answer that was lost the same message comes again, and that is well."""
    send = Sent()
    async with opened(server, send) as queue:
        message = Message("order", b"x", trio.current_time(), {"a": "b"}, 3)
        await queue.publish_delayed(message, 0.1)
        await queue.publish_delayed(message, 0.1)
        assert await queue.count() == 1
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
    server: RedisServer, wrong: dict[str, object], error: type[Exception], says: str
) -> None:
    """At the call, by the name of the argument."""
    async with opened(server) as queue:
        with pytest.raises(error, match=says):
            await queue.put(**{"payload": b"x", **wrong})  # type: ignore[arg-type]
        assert await queue.count() == 0


async def test_put_nowait_says_why_not(server: RedisServer) -> None:
    """Nobody can know without waiting."""
    async with opened(server) as queue:
        with pytest.raises(RuntimeError, match="await put"):
            queue.put_nowait(b"x", delay=1)


async def _send(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"url": "http://h/q"}, ValueError, "url must begin with redis://"),
        ({"url": "redis://h/"}, ValueError, "url must end with"),
        ({"url": "redis://h/a{b}"}, ValueError, "url must end with"),
        ({"url": "redis://h/q?db=x"}, ValueError, "whole number as db"),
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
        ({"confirm_within": -1}, ValueError, "confirm_within"),
        ({"put_timeout": 0}, ValueError, "put_timeout"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout"),
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
        async with open_redis_delay_queue(**options):  # type: ignore[arg-type]
            pass


async def test_no_redis_is_a_connection_error() -> None:
    """At once, and without the password."""
    with pytest.raises(ConnectionError, match=r"no connection to Redis at 127\.0\.0\.1:1") as raised:
        async with open_redis_delay_queue(_send, workers=1, url="redis://user:secret@127.0.0.1:1/q"):
            pass
    assert "secret" not in str(raised.value)


async def test_the_first_instance_says_how_many_shards(server: RedisServer) -> None:
    """The others get what is there, whatever they ask for; and none asked for makes sixteen."""
    url = server.fresh()
    async with opened(server, Sent(), url, shards=3), opened(server, Sent(), url, shards=9) as second:
        assert second.statistics().shards == 3
        with pytest.raises(ValueError, match="shards"):
            await second.set_shards(0)
    async with opened(server, shards=None) as queue:
        assert queue.statistics().shards == 16
        assert shard_of("a", 16) < 16
