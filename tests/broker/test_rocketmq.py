"""What is special about a real RocketMQ: types of topics, its timer's limits, recalls."""

from __future__ import annotations

import sys
import time
from collections import Counter

import pytest
import trio

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers import open_broker
from localdelay.brokers.wire import ID
from tests.kit.programs import ran
from tests.kit.servers.rocketmq import RocketServer

SERVER = "rocketmq"


def message(id: str, **fields: object) -> Message:
    return Message(id, id.encode(), trio.current_time(), **fields)  # type: ignore[arg-type]


async def arrived(server: RocketServer, url: str, count: int) -> Counter[str]:
    received = await trio.to_thread.run_sync(lambda: server.read(url, count))
    return Counter(one.headers[ID] for one in received)


async def test_a_topic_that_is_missing(server: RocketServer) -> None:
    """The block is not entered, and the error has the command that makes the topic."""
    with trio.fail_after(100), pytest.raises(ConnectionError, match=r"updateTopic .* -t nowhere .*=MIXED"):
        async with open_broker(server.url("nowhere"), connect_timeout=20.0):
            pass


async def test_a_topic_of_another_type(server: RocketServer) -> None:
    """What it does not take is permanent, with the command; `delay_topic` is the other way out."""
    async with open_broker(server.url("normal")) as broker:
        await broker.send(message("ordinary"))
        with pytest.raises(PermanentSendError, match=r"updateTopic .* -t normal .*=MIXED"):
            await broker.publish_delayed(message("delayed"), 1.0)
    async with open_broker(server.url("delay")) as broker:
        with pytest.raises(PermanentSendError, match="=MIXED"):
            await broker.send(message("ordinary"))
    async with open_broker(server.url("normal", "?delay_topic=delay")) as broker:
        await broker.send(message("ordinary too"))
        await broker.publish_delayed(message("delayed"), 1.0)
    assert "delayed" in await arrived(server, server.url("delay"), 1)


async def test_the_timer_takes_so_many_of_one_second(server: RocketServer) -> None:
    """What is due in a second that is full is Throttled; another second, and what is ordinary, is not."""
    url = server.fresh()
    async with open_broker(url) as broker:
        await trio.to_thread.run_sync(server.configure, "timerCongestNumEachSlot", "10")
        try:
            due = time.time() + 30
            taken = 0
            with trio.fail_after(100), pytest.raises(Throttled, match="flow control"):
                for taken in range(1000):
                    await broker.publish_delayed(message(f"m{taken}"), due - time.time())
            assert 1 <= taken < 100
            await broker.publish_delayed(message("another second"), 1.0)
            await broker.send(message("ordinary"))
        finally:
            await trio.to_thread.run_sync(server.configure, "timerCongestNumEachSlot", "2147483647")
    assert await arrived(server, url, 2) == Counter(["another second", "ordinary"])


async def test_a_recall(server: RocketServer) -> None:
    """What is recalled in time does not come; the broker says yes to what it does not know, too."""
    url = server.fresh()
    async with open_broker(url) as broker:
        handle = await broker.publish_delayed(message("recalled"), 3.0)
        await broker.publish_delayed(message("kept"), 3.0)
        await broker.cancel_delayed("recalled", handle)
        await broker.cancel_delayed("recalled", handle)
    assert await arrived(server, url, 1) == Counter(["kept"])


@pytest.mark.parametrize("headers", [{"KEYS": "theirs"}, {"a": ""}, {"a": "x" * 20_000}])
async def test_properties_that_it_does_not_take(server: RocketServer, headers: dict[str, str]) -> None:
    """Names of its own, blank ones, too much of them: permanent."""
    async with open_broker(server.fresh()) as broker:
        with pytest.raises(PermanentSendError):
            await broker.send(message("m", headers=headers))
        await broker.send(message("fine"))


BESIDE = """
import sys
import trio
import trio_asyncio
from localdelay import Message
from localdelay.brokers import open_broker

async def main():
    async with open_broker(sys.argv[1]) as broker:
        await broker.send(Message("m", b"m", trio.current_time()))

trio.run(main)
from rocketmq.v5.client.connection import RpcClient
print(type(RpcClient.get_channel_io_loop()).__module__)
"""


def test_beside_trio_asyncio(server: RocketServer) -> None:
    """The client runs on a loop of asyncio's own, also where trio-asyncio makes those that one asks for."""
    command = [sys.executable, "-c", BESIDE, server.fresh()]
    done = ran(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asyncio.unix_events\n", "")
