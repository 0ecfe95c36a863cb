"""Connections to RabbitMQ that are lost, stall or are left, against a real one."""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest
import trio

from localdelay import RetryPolicy, open_delay_queue
from localdelay.brokers import ConnectionLost
from tests.kit.amqp_world import arrived, message, messages, opened, outcomes, send_until_confirmed
from tests.kit.servers.amqp import RabbitServer
from tests.kit.servers.network import network_to

SERVER = "amqp"

# Connections that are lost.


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
        assert all(isinstance(error, ConnectionLost) for error in failed)
        assert len(ended) == 2000
        assert len(failed) < 200
        await send_until_confirmed(broker, "last")
    got = await arrived(rabbit, url, ended.count(None) + 1)
    assert len(got) >= ended.count(None) + 1


async def test_resets_in_the_midst_of_batches_lose_nothing(rabbit: RabbitServer, url: str) -> None:
    """Connections break off anywhere in the stream of bytes; every message arrives, under its own id."""
    seed = 7
    print("seed", seed)
    chosen = random.Random(seed)
    async with network_to(rabbit.port) as network, opened(url, port=network.port) as broker:
        retry = RetryPolicy(wait_initial=0.01, wait_max=0.1, wait_jitter=0.1)
        async with open_delay_queue(broker.send, capacity=5000, workers=40, retry=retry) as queue:
            for number in range(2000):
                queue.put_nowait(bytes(chosen.randrange(2000)), delay=chosen.uniform(0, 1.0), id=f"m{number}")
            for _ in range(8):
                network.reset_after = chosen.randrange(100_000)
                await trio.sleep(0.1)
            network.reset_after = None
        assert queue.statistics().sent == 2000
    got = await arrived(rabbit, url, 2000)
    assert set(got) == {f"m{number}" for number in range(2000)}
    print("duplicates", got.total() - 2000)
    assert got.total() - 2000 <= 8 * 40


async def test_heartbeats_find_a_connection_that_is_dead(rabbit: RabbitServer, url: str) -> None:
    """Nothing comes from the broker any more, and no end of the connection either."""
    limits = {"confirm_timeout": 25.0}  # pika looks every heartbeat and five seconds
    async with (
        network_to(rabbit.port) as network,
        opened(url, "?heartbeat=1", port=network.port, **limits) as broker,
    ):
        network.stall()
        with pytest.raises(ConnectionError, match="No activity"):
            await broker.send(message("one"))
        await send_until_confirmed(broker, "two")
    assert "two" in await arrived(rabbit, url, 1)


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
