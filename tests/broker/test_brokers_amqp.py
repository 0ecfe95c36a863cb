"""What is special about RabbitMQ, against a real one: what travels, what is throttled, what is permanent."""

from __future__ import annotations

import random
from collections import Counter

import pika
import pika.exceptions
import pytest
import trio

from localdelay import PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import Broker, ConnectionLost, open_broker
from localdelay.brokers.wire import ID
from tests.kit.amqp_world import (
    LIMIT,
    arrived,
    failures_of,
    message,
    messages,
    opened,
    outcomes,
    permit,
    queue_of,
    user,
)
from tests.kit.servers.amqp import RabbitServer

SERVER = "amqp"

# What travels.


async def test_messages_are_persistent_and_carry_their_id(rabbit: RabbitServer, url: str) -> None:
    """Delivery mode 2, the id as a property; one that is too long for that as a header."""
    ids = ["one", "Grüße 漢字", "", "x" * 255, "x" * 256, "x" * 3000, "a\nb"]
    async with opened(url) as broker:
        for id in ids:
            await broker.send(message(id, headers={"": "empty", "x" * 255: "ü" * 1000}))
    with rabbit.connection() as connection:
        channel = connection.channel()
        for id in ids:
            _, properties, _ = channel.basic_get(queue_of(url))
            assert properties.delivery_mode == 2
            assert properties.message_id == (id if len(id.encode()) <= 255 else None)
            assert properties.headers[ID] == id
            assert properties.headers[""] == "empty"
            assert properties.headers["x" * 255] == "ü" * 1000


async def test_payloads_of_many_frames_arrive_whole(rabbit: RabbitServer, url: str) -> None:
    """Up to the largest that the broker takes."""
    sizes = [0, 1, 131_064, 131_065, 300_000, LIMIT]
    chosen = random.Random(6)
    payloads = [chosen.randbytes(size) for size in sizes]
    async with opened(url) as broker:
        await broker.send_batch([message(f"m{number}", payload) for number, payload in enumerate(payloads)])
    received = await trio.to_thread.run_sync(rabbit.read, url, len(sizes))
    assert [one.payload for one in received] == payloads


async def test_a_batch_may_be_larger_than_what_is_written_ahead(rabbit: RabbitServer, url: str) -> None:
    """All of it is written as the broker reads, on a connection that has nothing else to do."""
    async with opened(url) as broker:
        await broker.send_batch(messages("m", 1000, 30_000))
    assert len(await arrived(rabbit, url, 1000)) == 1000


async def test_user_virtual_host_and_queue_come_out_of_the_url(rabbit: RabbitServer) -> None:
    """Percent-decoded: a password and a queue may have any characters."""
    rabbit.call('rabbit_vhost:add(<<"a/b c">>, <<"test">>)')
    rabbit.call('rabbit_auth_backend_internal:add_user(<<"o:x">>, <<"p@ss/w:rd?">>, <<"test">>)')
    rabbit.call(
        'rabbit_auth_backend_internal:set_permissions(<<"o:x">>, <<"a/b c">>, <<".*">>, <<".*">>,'
        ' <<".*">>, <<"test">>)'
    )
    credentials = pika.PlainCredentials("o:x", "p@ss/w:rd?")
    with rabbit.connection(virtual_host="a/b c", credentials=credentials) as connection:
        channel = connection.channel()
        channel.queue_declare("queue / 1", durable=True)
        url = rabbit.url("queue / 1", "o%3Ax:p%40ss%2Fw%3Ard%3F", "?vhost=a/b%20c")
        with trio.fail_after(30):
            async with open_broker(url) as broker:
                await broker.send(message("one"))
        assert channel.basic_get("queue / 1")[1].message_id == "one"
    rabbit.call('rabbit_vhost:delete(<<"a/b c">>, <<"test">>)')


# Throttled.


async def test_a_nack_throttles_its_message_alone(rabbit: RabbitServer, url: str) -> None:
    """A full queue rejects: what it has taken before that is confirmed."""
    async with opened(url) as broker:
        with rabbit.policy(queue_of(url), {"max-length": 5, "overflow": "reject-publish"}):
            with pytest.raises(PartialSendError) as raised:
                await broker.send_batch(messages("m", 100))
            failed = failures_of(raised.value)
            assert all(type(error) is Throttled for error in failed.values())
            assert all(isinstance(error.__cause__, pika.exceptions.NackError) for error in failed.values())
            with pytest.raises(Throttled, match="nack"):
                await broker.send(message("more"))
            taken = {f"m{number}" for number in range(100)} - failed.keys()
            assert set(await arrived(rabbit, url, len(taken))) == taken
        await broker.send(message("later"))
    assert "later" in await arrived(rabbit, url, len(taken) + 1)


async def test_a_blocked_connection_throttles_at_once(rabbit: RabbitServer, url: str) -> None:
    """Out of memory: every publish is refused without waiting, and goes through when that is over."""
    async with opened(url, confirm_timeout=1.0) as broker:
        with rabbit.blocked():
            with pytest.raises(Throttled, match="low on memory") as raised:
                for number in range(1000):
                    await broker.send(message(f"before{number}"))
            assert isinstance(raised.value.__cause__, TimeoutError | pika.exceptions.ConnectionBlockedTimeout)
            with trio.fail_after(20):  # and not a second for each
                for number in range(500):
                    with pytest.raises(Throttled):
                        await broker.send(message(f"refused{number}"))
                with pytest.raises(Throttled):
                    await broker.send_batch(messages("refused", 10))
                with pytest.raises(Throttled):
                    await broker.publish_delayed(message("refused"), 1.0)
                await broker.send_batch([])
        await until_taken(broker, "after")
    assert "after" in (got := await arrived(rabbit, url, 1))
    assert not [id for id in got if id.startswith("refused")]


async def until_taken(broker: Broker, id: str) -> None:
    while True:
        try:
            await broker.send(message(id))
        except Throttled:
            await trio.sleep(0.01)
        else:
            return


async def test_what_was_written_before_it_was_blocked(rabbit: RabbitServer, url: str) -> None:
    """It has until the confirm timeout, is throttled then, and arrives when the broker reads on.

    What was not written yet is throttled at once, and does not arrive.
    """
    async with opened(url, confirm_timeout=2.0) as broker:
        with rabbit.blocked():
            ended = await outcomes(broker, messages("m", 1000, 20_000))
        confirmed = {id for id, error in ended.items() if error is None}
        waited = {id for id, error in ended.items() if "did not answer within 2 s" in str(error)}
        refused = ended.keys() - confirmed - waited
        assert {type(ended[id]) for id in waited} == {type(ended[id]) for id in refused} == {Throttled}
        assert all("low on memory" in str(ended[id]) for id in waited | refused)
        await until_taken(broker, "after")
    assert set(await arrived(rabbit, url, 1000, 1.0)) == waited | confirmed | {"after"}


# Permanent.


async def test_a_queue_that_is_not_there_is_permanent(rabbit: RabbitServer) -> None:
    """Each message comes back; once the queue is there they go through on the same connection."""
    queue = f"missing{random.randrange(10**9)}"
    url = rabbit.url(queue)
    async with opened(url) as broker:
        with pytest.raises(PermanentSendError, match=f"NO_ROUTE.*{queue}") as raised:
            await broker.send(message("one"))
        assert isinstance(raised.value.__cause__, pika.exceptions.UnroutableError)
        with pytest.raises(PartialSendError) as partial_error:
            await broker.send_batch(messages("m", 300))
        assert failures_of(partial_error.value).keys() == {f"m{number}" for number in range(300)}
        with rabbit.connection() as connection:
            connection.channel().queue_declare(queue, durable=True)
        await broker.send(message("two"))
    assert await arrived(rabbit, url, 1) == Counter(["two"])


async def test_only_what_comes_back_fails(rabbit: RabbitServer) -> None:
    """The queue comes into being in the midst of it: what is confirmed is there, and the rest is not."""
    queue = f"late{random.randrange(10**9)}"
    ended: dict[str, Exception | None] = {}
    begun, declared = trio.Event(), trio.Event()

    def declare() -> None:
        with rabbit.connection() as connection:
            connection.channel().queue_declare(queue, durable=True)

    async with opened(rabbit.url(queue)) as broker:

        async def go_on() -> None:
            rounds_after = 0
            while rounds_after < 3:
                rounds_after += declared.is_set()
                ended.update(await outcomes(broker, messages(f"m{len(ended)}-", 50)))
                begun.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await begun.wait()
            await trio.to_thread.run_sync(declare)
            declared.set()
    confirmed = {id for id, error in ended.items() if error is None}
    assert all(error is None or type(error) is PermanentSendError for error in ended.values())
    assert 150 <= len(confirmed) < len(ended)
    assert await arrived(rabbit, rabbit.url(queue), len(confirmed)) == Counter(confirmed)


async def test_refused_access_is_permanent(rabbit: RabbitServer, url: str) -> None:
    """A user who may not write: with the broker's reason, and only for as long as that is so."""
    with user(rabbit, write="^none$") as name:
        async with opened(url, user=f"{name}:{name}") as broker:
            with pytest.raises(PermanentSendError, match="403 ACCESS_REFUSED"):
                await broker.send(message("one"))
            with pytest.raises(PartialSendError) as raised:
                await broker.send_batch(messages("m", 10))
            assert {type(error) for error in failures_of(raised.value).values()} == {PermanentSendError}
            permit(rabbit, name)
            await broker.send(message("two"))
    assert await arrived(rabbit, url, 1) == Counter(["two"])


async def test_too_large_a_message_fails_alone(rabbit: RabbitServer, url: str) -> None:
    """What was written behind it is written again; the limit is remembered, and the channel stays open."""
    batch = [*messages("a", 20), message("large", bytes(LIMIT + 1)), *messages("b", 200)]
    async with opened(url) as broker:
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch(batch)
        failed = failures_of(raised.value)
        large = failed.pop("large")
        assert type(large) is PermanentSendError
        assert isinstance(large.__cause__, pika.exceptions.ChannelClosedByBroker)
        # What was under way before it may have been taken or not.
        assert all(type(error) is ConnectionLost and id.startswith("a") for id, error in failed.items())
        again = await outcomes(broker, [message("x", bytes(LIMIT)), message("large", bytes(LIMIT + 1))])
        assert again["x"] is None
        assert type(again["large"]) is PermanentSendError
        assert str(LIMIT) in str(again["large"])
    got = await arrived(rabbit, url, 201)
    assert set(got) >= {one.id for one in batch} - {"large"} - failed.keys() | {"x"}
    assert "large" not in got
    assert max(got.values()) == 1


async def test_a_broker_that_takes_more_after_a_restart(rabbit: RabbitServer, url: str) -> None:
    """What was learned of a limit is forgotten with the connection: no larger message is given up for it."""
    large, close = bytes(LIMIT + 1), "[rabbit_networking:close_connection(P, <<>>) || P <- Connections]"
    close = f"Connections = rabbit_networking:connections(), {close}"
    async with opened(url) as broker:
        with pytest.raises(PermanentSendError):
            await broker.send(message("refused", large))
        rabbit.call(f"application:set_env(rabbit, max_message_size, {LIMIT + 1})")
        try:
            await trio.to_thread.run_sync(rabbit.call, close)
            while (await outcomes(broker, [message("taken", large)]))["taken"] is not None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        finally:
            rabbit.call(f"application:set_env(rabbit, max_message_size, {LIMIT})")
    assert await arrived(rabbit, url, 1) == Counter(["taken"])


async def test_two_sizes_that_are_too_large_are_both_found(rabbit: RabbitServer, url: str) -> None:
    """The broker names one of them; all over its limit are to blame, and none of the small ones."""
    batch = [message(f"large{number}", bytes(LIMIT + 1 + number)) for number in range(3)]
    async with opened(url) as broker:
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([*batch, *messages("small", 50)])
    failed = failures_of(raised.value)
    assert failed.keys() == {"large0", "large1", "large2"}
    assert {type(error) for error in failed.values()} == {PermanentSendError}
    assert len(await arrived(rabbit, url, 50)) == 50


async def test_a_message_that_is_none_fails_and_does_not_hang(url: str) -> None:
    """Headers that are no text are the caller's error, raised by its send."""
    async with opened(url) as broker:
        with trio.fail_after(20), pytest.raises(AttributeError):
            await broker.send(message("bad", headers={"number": 7}))
        await broker.send(message("good"))
