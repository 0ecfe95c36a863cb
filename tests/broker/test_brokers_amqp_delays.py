"""RabbitMQ's own delay, through queues that dead-letter, against a real one."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pika.channel
import pytest
import trio

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers import Broker, amqp_channel, open_broker
from localdelay.brokers.amqp_delays import delay_queue
from localdelay.brokers.wire import EXECUTE_AT, ID
from tests.kit.servers.amqp import RabbitServer


@pytest.fixture
def queue(rabbit: RabbitServer) -> str:
    return urlsplit(rabbit.fresh()).path[1:]


@asynccontextmanager
async def opened(rabbit: RabbitServer, queue: str, options: str = "") -> AsyncIterator[Broker]:
    with trio.fail_after(200):
        async with open_broker(f"amqp://127.0.0.1:{rabbit.port}/{queue}{options}") as broker:
            yield broker


def message(id: str, **fields: Any) -> Message:
    return Message(id, b"payload", trio.current_time(), **fields)


@asynccontextmanager
async def arrivals(
    rabbit: RabbitServer, queue: str
) -> AsyncIterator[list[tuple[str, float, dict[str, Any]]]]:
    """(id, when on `time.monotonic()`, headers) of everything, by a consumer that is there all the time."""
    got: list[tuple[str, float, dict[str, Any]]] = []
    ended = threading.Event()

    def consume() -> None:
        with rabbit.connection() as connection:
            channel = connection.channel()
            channel.basic_consume(
                queue,
                lambda _c, _m, properties, _b: got.append(
                    (properties.headers[ID], time.monotonic(), properties.headers)
                ),
                auto_ack=True,
            )
            while not ended.is_set():
                connection.process_data_events(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, consume)
        try:
            yield got
        finally:
            ended.set()


async def wait_for(got: list[Any], count: int) -> None:
    with trio.fail_after(60):
        while len(got) < count:  # noqa: ASYNC110 (time passes on the server)
            await trio.sleep(0.01)


def arguments_of(rabbit: RabbitServer, name: str) -> str:
    """The arguments of a queue, as an Erlang term."""
    resource = f'rabbit_misc:r(<<"/">>, queue, <<"{name}">>)'
    lookup = f"{{ok, Q}} = rabbit_amqqueue:lookup({resource})"
    return rabbit.call(
        f'begin {lookup}, lists:flatten(io_lib:format("~0p", [amqqueue:get_arguments(Q)])) end'
    )


def is_there(rabbit: RabbitServer, name: str) -> bool:
    resource = f'rabbit_misc:r(<<"/">>, queue, <<"{name}">>)'
    return "true" in rabbit.call(f"rabbit_amqqueue:exists({resource})")


async def test_a_long_delay_holds_up_no_short_one(rabbit: RabbitServer, queue: str) -> None:
    """Many delays in one go: each message comes when its time is over, never early, with its headers."""
    seed = 9
    print("seed", seed)
    drawn = random.Random(seed).choices([300.0, 1.0, 0.7, 0.3, 0.1], k=60)
    delays = {f"m{number}": delay for number, delay in enumerate(drawn)}
    short = {id for id, delay in delays.items() if delay < 300.0}
    published: dict[str, float] = {}
    async with arrivals(rabbit, queue) as got, opened(rabbit, queue) as broker:

        async def publish(id: str, delay: float) -> None:
            published[id] = time.monotonic()
            begun = time.time()
            await broker.publish_delayed(message(id, headers={"Trace": id}, attempt=3), delay)
            dues[id] = (begun + delay, time.time() + delay)

        dues: dict[str, tuple[float, float]] = {}
        async with trio.open_nursery() as nursery:
            for id, delay in delays.items():
                nursery.start_soon(publish, id, delay)
        await wait_for(got, len(short))
    assert Counter(id for id, _, _ in got) == Counter(short)  # and none is behind one of five minutes
    assert min(at - published[id] - delays[id] for id, at, _ in got) >= 0
    for id, _, headers in got:
        assert headers["Trace"] == id
        assert headers["Localdelay-Attempt"] == "3"
        assert headers["x-death"][0]["reason"] == "expired"
        least, most = dues[id]
        assert least - 0.01 <= datetime.fromisoformat(headers[EXECUTE_AT]).timestamp() <= most + 0.01


async def test_each_delay_has_a_queue_of_its_own(rabbit: RabbitServer, queue: str) -> None:
    """Durable, with the delay as time to live, and a lease of ten minutes more; none for no delay."""
    async with opened(rabbit, queue) as broker:
        await broker.publish_delayed(message("a"), 120.0)
        await broker.publish_delayed(message("b"), 120)
        await broker.publish_delayed(message("c"), 33.3333)
        await broker.publish_delayed(message("d"), 0.0)
    told = arguments_of(rabbit, delay_queue(queue, 120_000, "classic"))
    for argument in (
        '<<"x-message-ttl">>,signedint,120000',
        '<<"x-expires">>,signedint,720000',
        '<<"classic">>',
    ):
        assert argument in told.replace(" ", "")
    with rabbit.connection() as connection:
        channel = connection.channel()
        counts = {
            name: channel.queue_declare(name, passive=True).method.message_count
            for name in (queue, delay_queue(queue, 120_000, "classic"), delay_queue(queue, 33_400, "classic"))
        }
    assert list(counts.values()) == [1, 2, 1]


async def test_delays_that_are_none_are_refused(rabbit: RabbitServer, queue: str) -> None:
    """By the argument's name, before anything is sent."""
    async with opened(rabbit, queue) as broker:
        for delay in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="delay"):
                await broker.publish_delayed(message("a"), delay)
        for wrong in ("1", None, True, b""):
            with pytest.raises(TypeError, match="delay"):
                await broker.publish_delayed(message("a"), wrong)  # type: ignore[arg-type]
        with pytest.raises(PermanentSendError, match="longest delay"):
            await broker.publish_delayed(message("a"), 1e12)
    async with opened(rabbit, "ü" * 125) as broker:
        with pytest.raises(PermanentSendError, match="255 bytes"):
            await broker.publish_delayed(message("a"), 1.0)


async def test_a_delay_queue_that_was_deleted_is_declared_again(rabbit: RabbitServer, queue: str) -> None:
    """Its messages come back, and are put into a new one: nobody hears of it."""
    name = delay_queue(queue, 300, "classic")
    async with arrivals(rabbit, queue) as got, opened(rabbit, queue) as broker:
        await broker.publish_delayed(message("a"), 0.3)
        await wait_for(got, 1)
        with rabbit.connection() as connection:
            connection.channel().queue_delete(name)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(broker.publish_delayed, message(f"m{number}"), 0.3)
        await wait_for(got, 21)
    assert Counter(id for id, _, _ in got) == Counter(["a", *(f"m{number}" for number in range(20))])


async def test_delay_queues_are_declared_again_in_time(
    rabbit: RabbitServer, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead of the first message that comes a while after the last declaration, and not ahead of each."""
    async with opened(rabbit, queue) as broker:
        declared: list[str] = []
        declare = pika.channel.Channel.queue_declare

        def counting(channel: object, queue: str, **options: object) -> object:
            declared.append(queue)
            return declare(channel, queue, **options)

        monkeypatch.setattr(pika.channel.Channel, "queue_declare", counting)
        for _ in range(2):
            await broker.publish_delayed(message("a"), 0.2)
            await broker.publish_delayed(message("b"), 0.2)
            monkeypatch.setattr(amqp_channel, "DECLARED_FOR", 0.0)
        assert len(declared) == 3


async def test_the_limit_of_queues_throttles(rabbit: RabbitServer) -> None:
    """A delay that needs one queue too many is throttled; other delays, and sends, go on."""
    rabbit.call('rabbit_vhost:add(<<"small">>, <<"test">>)')
    everything = '<<".*">>, <<".*">>, <<".*">>, <<"test">>'
    rabbit.call(f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"small">>, {everything})')
    try:
        with rabbit.connection(virtual_host="small") as connection:
            connection.channel().queue_declare("q", durable=True)
        limits = '[{<<"max-queues">>, 3}]'
        rabbit.call(f'rabbit_vhost_limit:set(<<"small">>, {limits}, <<"test">>)')
        async with opened(rabbit, "q", "?vhost=small") as broker:
            await broker.publish_delayed(message("a"), 60.0)
            await broker.publish_delayed(message("b"), 61.0)
            ended: dict[float, Exception | None] = {}

            async def publish(delay: float) -> None:
                try:
                    await broker.publish_delayed(message(f"m{delay}"), delay)
                except (Throttled, ConnectionError) as error:
                    ended[delay] = error
                else:
                    ended[delay] = None

            async def send(number: int) -> None:
                await broker.send(message(f"s{number}"))

            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for delay in (62.0, 61.0, 60.0):
                        nursery.start_soon(publish, delay)
                        await trio.lowlevel.checkpoint()
                    for number in range(50):
                        nursery.start_soon(send, number)
                assert type(ended[62.0]) is Throttled
                assert "queue limit" in str(ended[62.0])
                # They were behind the culprit, and are published again.
                assert ended[61.0] is ended[60.0] is None
    finally:
        rabbit.call('rabbit_vhost:delete(<<"small">>, <<"test">>)')


async def test_a_queue_that_may_not_be_declared_is_permanent(rabbit: RabbitServer, queue: str) -> None:
    """Another has declared it in another way; sends, which are on a channel of their own, go on."""
    with rabbit.connection() as connection:
        connection.channel().queue_declare(delay_queue(queue, 500, "classic"), durable=True)
    async with opened(rabbit, queue) as broker, trio.open_nursery() as nursery:

        async def refused() -> None:
            for _ in range(3):
                with pytest.raises(PermanentSendError, match="inequivalent arg"):
                    await broker.publish_delayed(message("a"), 0.5)

        nursery.start_soon(refused)
        for number in range(300):
            nursery.start_soon(broker.send, message(f"m{number}"))
    got = await trio.to_thread.run_sync(rabbit.read, rabbit.url(queue), 300)
    assert len(got) == 300


async def test_full_delay_queues_throttle_and_do_not_deliver_early(rabbit: RabbitServer, queue: str) -> None:
    """Under an operator's policy that bounds every queue: a nack; RabbitMQ would else drop the oldest."""
    name = delay_queue(queue, 700, "classic")
    async with arrivals(rabbit, queue) as got, opened(rabbit, queue) as broker:
        begun = time.monotonic()
        await broker.publish_delayed(message("first"), 0.7)
        with rabbit.policy(name, {"max-length": 1}):
            with pytest.raises(Throttled):
                for number in range(100):
                    await broker.publish_delayed(message(f"m{number}"), 0.7)
            await wait_for(got, 1)
    assert got[0][0] == "first"
    assert got[0][1] - begun >= 0.7


async def test_quorum_delay_queues_dead_letter_at_least_once(rabbit: RabbitServer, queue: str) -> None:
    """Where the queue rejects when the delay is over, the message is kept and handed on later."""
    rabbit.call("application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 300)")
    async with arrivals(rabbit, queue) as got, opened(rabbit, queue, "?delay_queue=quorum") as broker:
        begun = time.monotonic()
        await broker.publish_delayed(message("a"), 0.3)
        await wait_for(got, 1)
        assert got[0][1] - begun >= 0.3
        with rabbit.throttled(rabbit.url(queue)):
            await broker.publish_delayed(message("b"), 0.3)
            await trio.sleep(0.6)
            assert len(got) == 1
        await wait_for(got, 2)
    assert [id for id, _, _ in got] == ["a", "b"]
    assert is_there(rabbit, delay_queue(queue, 300, "quorum"))
    assert "at-least-once" in arguments_of(rabbit, delay_queue(queue, 300, "quorum"))


async def test_delayed_messages_survive_the_broker(rabbit: RabbitServer, queue: str) -> None:
    """Killed and restarted while they wait, it delivers them all the same, and not before their time."""
    async with opened(rabbit, queue) as broker:
        begun = time.monotonic()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(broker.publish_delayed, message(f"m{number}"), 1.0)
        await trio.to_thread.run_sync(rabbit.kill)
        await trio.to_thread.run_sync(rabbit.restart)
        async with arrivals(rabbit, queue) as got:
            await wait_for(got, 100)
    assert Counter(id for id, _, _ in got) == Counter(f"m{number}" for number in range(100))
    assert min(at for _, at, _ in got) >= begun + 1.0
