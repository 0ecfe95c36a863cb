"""Connections to RabbitMQ that are lost, stall or are left, against a real one."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import trio
from pika.adapters.select_connection import SelectConnection

from localdelay import RetryPolicy, open_delay_queue
from localdelay.brokers import amqp_connection
from localdelay.brokers.amqp import AmqpBroker
from tests.kit.amqp_world import (
    arrived,
    message,
    messages,
    opened,
    outcomes,
    refusal,
    send_until_confirmed,
)
from tests.kit.servers.amqp import RabbitServer
from tests.kit.servers.amqp_proxy import proxied
from tests.kit.servers.process import Server, free_port


@pytest.fixture
def rabbit(start_server: Callable[[str], Server]) -> RabbitServer:
    return cast(RabbitServer, start_server("amqp"))


@pytest.fixture
def url(rabbit: RabbitServer) -> str:
    return rabbit.fresh()


# Connections that are lost.


async def test_what_is_under_way_fails_with_its_connection(rabbit: RabbitServer, url: str) -> None:
    """Promptly, with what pika says as the cause; the connection is made again."""
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port) as broker:
        await broker.send(message("one"))
        proxy.stall()
        ended: dict[str, Exception | None] = {}

        async def send() -> None:
            ended.update(await outcomes(broker, messages("m", 50)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.1)
            begun = trio.current_time()
            proxy.reset()
        assert trio.current_time() - begun < 5.0  # not the confirm timeout
        assert {type(error) for error in ended.values()} == {ConnectionError}
        assert all(error and error.__cause__ is not None for error in ended.values())
        await send_until_confirmed(broker, "two")
    assert set(await arrived(rabbit, url, 2, 1.0)) >= {"one", "two"}


async def test_a_connection_that_the_broker_closes(rabbit: RabbitServer, url: str) -> None:
    """As an operator does: the same, and the broker's reason is told."""
    close = '[rabbit_networking:close_connection(P, "maintenance") || P <- rabbit_networking:connections()]'
    async with opened(url) as broker:
        ended: list[Exception | None] = []
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                for number in range(40):
                    ended.extend((await outcomes(broker, messages(f"m{number}-", 50))).values())

            nursery.start_soon(go_on)
            for _ in range(3):
                await trio.sleep(0.05)
                await trio.to_thread.run_sync(rabbit.call, close)
        failed = [error for error in ended if error is not None]
        assert all(type(error) is ConnectionError for error in failed)
        assert len(ended) == 2000
        assert len(failed) < 200
        await send_until_confirmed(broker, "last")
    got = await arrived(rabbit, url, ended.count(None) + 1)
    assert len(got) >= ended.count(None) + 1


async def test_while_it_is_not_connected_messages_wait(rabbit: RabbitServer, url: str) -> None:
    """Until it is, for as long as the confirm timeout; who is cancelled meanwhile has sent nothing."""
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port, confirm_timeout=0.4) as broker:
        proxy.refuses = True
        proxy.reset()
        await trio.sleep(0.05)
        begun = trio.current_time()
        with pytest.raises(ConnectionError, match=f"no connection to RabbitMQ at 127.0.0.1:{proxy.port}"):
            await broker.send(message("too late"))
        assert 0.39 < trio.current_time() - begun < 5.0
        with trio.move_on_after(0.01):
            await broker.send(message("cancelled"))
        with trio.move_on_after(0.01):
            await broker.send_batch(messages("cancelled", 10))
        async with trio.open_nursery() as nursery:
            proxy.refuses = False
            for number in range(10):
                nursery.start_soon(send_until_confirmed, broker, f"m{number}")
    assert set(await arrived(rabbit, url, 10)) == {f"m{number}" for number in range(10)}


async def test_resets_in_the_midst_of_batches_lose_nothing(rabbit: RabbitServer, url: str) -> None:
    """Connections break off anywhere in the stream of bytes; every message arrives, under its own id."""
    seed = 7
    print("seed", seed)
    chosen = random.Random(seed)
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port) as broker:
        retry = RetryPolicy(wait_initial=0.01, wait_max=0.1, wait_jitter=0.1)
        async with open_delay_queue(broker.send, capacity=5000, workers=40, retry=retry) as queue:
            for number in range(2000):
                queue.put_nowait(bytes(chosen.randrange(2000)), delay=chosen.uniform(0, 1.0), id=f"m{number}")
            for _ in range(8):
                proxy.reset_after = chosen.randrange(100_000)
                await trio.sleep(0.1)
            proxy.reset_after = None
        assert queue.statistics().sent == 2000
    got = await arrived(rabbit, url, 2000)
    assert set(got) == {f"m{number}" for number in range(2000)}
    print("duplicates", got.total() - 2000)
    assert got.total() - 2000 <= 8 * 40


async def test_a_confirmation_that_does_not_come(rabbit: RabbitServer, url: str) -> None:
    """A TimeoutError after the confirm timeout, in the order of the sends; late ones do no harm."""
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port, confirm_timeout=0.3) as broker:
        proxy.stall()
        ended: list[str] = []

        async def send(id: str) -> None:
            begun = trio.current_time()
            with pytest.raises(TimeoutError, match=r"not confirmed within 0\.3 s"):
                await broker.send(message(id))
            assert 0.29 < trio.current_time() - begun < 5.0
            ended.append(id)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(send, f"m{number}")
                await trio.sleep(0.02)
        assert ended == [f"m{number}" for number in range(5)]
        with pytest.raises(TimeoutError):  # all for one reason: as one
            await broker.send_batch(messages("batch", 10))
        proxy.flow()
        await send_until_confirmed(broker, "last")
        assert broker._connection._at_once.unconfirmed == 0
    assert "last" in await arrived(rabbit, url, 16)


async def test_a_broker_that_does_not_read_fills_no_memory(rabbit: RabbitServer, url: str) -> None:
    """What waits to be written is bounded, and what has failed or was cancelled is let go of."""
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port, confirm_timeout=0.3) as broker:
        proxy.stall()
        connection = broker._connection
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(self_cancelling, broker, f"m{number}", 0.2 if number % 2 else 9.0)
        assert connection._connection is not None
        assert connection._connection._get_write_buffer_size() <= 1024 * 1024 + 64 * 1024 + 200_000
        assert not any(publish.message for publish in connection._at_once.outbox)
        with trio.fail_after(1):
            while connection._at_once.busy:  # noqa: ASYNC110 (once)
                await trio.sleep(0.01)
        proxy.flow()
        await send_until_confirmed(broker, "last")
    got = await arrived(rabbit, url, 200, 1.0)
    assert "last" in got
    assert got.total() < 100


async def self_cancelling(broker: AmqpBroker, id: str, after: float) -> None:
    with trio.move_on_after(after):
        with pytest.raises(TimeoutError):
            await broker.send(message(id, bytes(200_000)))


async def test_heartbeats_find_a_connection_that_is_dead(rabbit: RabbitServer, url: str) -> None:
    """Nothing comes from the broker any more, and no end of the connection either."""
    async with proxied(rabbit.port) as proxy, opened(url, port=proxy.port, heartbeat=1) as broker:
        assert broker._connection._connection is not None
        checker = broker._connection._connection._heartbeat_checker
        checker.stop()  # pika checks every heartbeat and five seconds
        checker._check_interval = 0.3
        checker._start_check_timer()
        proxy.stall()
        with pytest.raises(ConnectionError, match="No activity"):
            await broker.send(message("one"))
        assert await send_until_confirmed(broker, "two") == 1
    assert "two" in await arrived(rabbit, url, 1)


async def test_a_fault_of_pika_costs_a_connection(
    rabbit: RabbitServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: what was to be written has failed, and the next connection takes over."""
    write = SelectConnection._output_marshaled_frames
    faults = 3

    def faulty(connection: SelectConnection, frames: list[bytes]) -> None:
        nonlocal faults
        if isinstance(frames[0], memoryview) and faults:  # not pika's own
            faults -= 1
            raise RuntimeError("a fault of pika's")
        write(connection, frames)

    monkeypatch.setattr(SelectConnection, "_output_marshaled_frames", faulty)
    async with opened(url) as broker:
        ended = await outcomes(broker, messages("m", 100))
        assert {type(error) for error in ended.values()} <= {ConnectionError, type(None)}
        assert "a fault of pika's" in "".join(str(error) for error in ended.values())
        await send_until_confirmed(broker, "last")
    assert faults == 0
    assert "last" in await arrived(rabbit, url, 1)


# Cancelling and leaving.


async def test_thousands_of_sends_with_random_cancellations(rabbit: RabbitServer, url: str) -> None:
    """What was confirmed is there, nothing is there twice, and nothing is left of the rest."""
    seed = 8
    print("seed", seed)
    chosen = random.Random(seed)
    confirmed: list[str] = []
    async with opened(url) as broker:

        async def send(worker: int) -> None:
            for number in range(50):
                id = f"m{worker}-{number}"
                with trio.move_on_after(chosen.choice((0.0, 0.0001, 0.001, 0.005, 5.0))):
                    await broker.send(message(id))
                    confirmed.append(id)

        async with trio.open_nursery() as nursery:
            for worker in range(200):
                nursery.start_soon(send, worker)
        await broker.send(message("last"))
        assert broker._connection._at_once.unconfirmed == 0
        assert len(broker._connection._at_once.outbox) == 0
    got = await arrived(rabbit, url, 10_001, 1.0)
    assert got.keys() >= {*confirmed, "last"}
    assert max(got.values()) == 1
    assert len(confirmed) > 1000


def held() -> tuple[int, int, int]:
    """How many descriptors, threads and tasks there are."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), tasks


async def test_nothing_is_left_behind(
    rabbit: RabbitServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor, thread or task, whether the broker lives, is frozen or does not answer."""
    monkeypatch.setattr(amqp_connection, "_CLOSE_GRACE", 0.5)
    await refusal(port=free_port())
    before = held()
    async with opened(url) as broker:
        await broker.send(message("one"))
        await broker.publish_delayed(message("later"), 60.0)
    assert held() == before
    await refusal(port=rabbit.port)
    assert held() == before
    with trio.CancelScope() as scope:
        async with opened(url):
            scope.cancel()
            await trio.sleep_forever()
    assert held() == before
    for sends in (False, True):
        async with trio.open_nursery() as nursery:
            try:
                async with opened(url) as broker:
                    rabbit.freeze()
                    if sends:
                        nursery.start_soon(outcomes, broker, messages("m", 10))
                    await trio.sleep(0.1)
                    begun = trio.current_time()
                taken = trio.current_time() - begun
            finally:
                rabbit.thaw()
        assert 0.4 < taken < 5.0
        assert held() == before


async def test_leaving_waits_for_what_is_under_way(rabbit: RabbitServer, url: str) -> None:
    """Where the broker confirms it; what comes afterwards is closed."""
    begun: list[int] = []
    confirmed: list[int] = []

    async def send(broker: AmqpBroker, number: int) -> None:
        begun.append(number)
        await broker.send(message(f"m{number}"))
        confirmed.append(number)

    async with trio.open_nursery() as nursery:
        async with opened(url) as broker:
            for number in range(100):
                nursery.start_soon(send, broker, number)
            while len(begun) < 100:
                await trio.lowlevel.checkpoint()
        assert len(confirmed) == 100
        late = (broker.send(message("x")), broker.send_batch([]), broker.publish_delayed(message("x"), 1))
        for refused in late:
            with pytest.raises(ConnectionError, match="closed"):
                await refused
    assert len(await arrived(rabbit, url, 100)) == 100


def test_an_interrupt_comes_out_and_ends_it(rabbit: RabbitServer, url: str) -> None:
    """Ctrl-C in the midst of sends is not lost, and leaves nothing hanging."""
    for wait in (0.0, 0.001, 0.003, 0.01):

        async def main(wait: float) -> None:
            async with opened(url) as broker, trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(outcomes, broker, messages(f"m{number}-", 20))
                await trio.sleep(wait)
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
                await trio.sleep(5)

        with pytest.raises(BaseException) as raised:  # noqa: PT011 (alone or in groups)
            trio.run(main, wait)
        interrupted: BaseException = raised.value
        while isinstance(interrupted, BaseExceptionGroup):
            (interrupted,) = interrupted.exceptions
        assert type(interrupted) is KeyboardInterrupt
