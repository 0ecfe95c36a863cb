"""NATS JetStream, against a server that is started here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import nats.js.errors
import pytest
import trio
import trio.testing
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.nats import header_lines, schedule_subject, stream_subjects
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, rfc3339
from localdelay.demo.server import Server, running_server
from tests.kit.nats_client import connected

SUBJECT = "orders.due"
AWKWARD_IDS = ["a b", "*", "a.>", ".", "Grüße", "x" * 3000, "🙂", "$JS.API", "a:b", "", "%00"]


class Stream:
    """A stream of the test's own, and everything that it delivers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.got: list[tuple[float, Msg]] = []

    async def start(self, **settings: object) -> None:
        jetstream = self._client.jetstream()
        await trio_asyncio.aio_as_trio(jetstream.add_stream)(
            name="TEST", subjects=stream_subjects(SUBJECT), storage="memory", **settings
        )
        await trio_asyncio.aio_as_trio(jetstream.subscribe)(SUBJECT, ordered_consumer=True, cb=self._take)

    async def _take(self, message: Msg) -> None:
        self.got.append((time.time(), message))

    def ids(self) -> list[str]:
        return [(message.headers or {})[ID] for _, message in self.got]

    async def wait_for(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.got) < count:  # noqa: ASYNC110 (time passes on the server)
                await trio.sleep(0.01)


@asynccontextmanager
async def opened(
    *, max_buffered: int = 10_000, confirm_timeout: float = 10.0, **settings: object
) -> AsyncIterator[tuple[Server, Broker, Stream]]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(max_buffered=max_buffered))
        client = Client()
        await stack.enter_async_context(connected(client, server.url))
        stream = Stream(client)
        await stream.start(**{"allow_msg_schedules": True, **settings})
        broker = await stack.enter_async_context(
            open_broker(f"{server.url}/{SUBJECT}", confirm_timeout=confirm_timeout)
        )
        yield server, broker, stream


def freeze(server: Server) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)  # the signal takes its time


def message(id: str, payload: bytes = b"payload", *, delay: float = 0.0, **fields: object) -> Message:
    return Message(id, payload, trio.current_time() + delay, **fields)  # type: ignore[arg-type]


async def test_any_id_can_be_scheduled_and_sent() -> None:
    """An id with blanks, dots, wildcards or letters beyond ASCII in it arrives as it is."""
    async with opened() as (_, broker, stream):
        for id in AWKWARD_IDS:
            await broker.publish_delayed(message(id, delay=0.05), 0.05)
            await broker.send(message(id))
        await stream.wait_for(2 * len(AWKWARD_IDS))
    assert sorted(stream.ids()) == sorted(AWKWARD_IDS * 2)


async def test_scheduled_and_sent_under_one_id_arrive_both() -> None:
    """The server drops neither for having seen the id: whoever confirms has stored the message."""
    async with opened() as (_, broker, stream):
        await broker.publish_delayed(message("same", b"scheduled", delay=0.1), 0.1)
        await broker.send(message("same", b"sent"))
        await broker.send(message("same", b"sent"))
        await stream.wait_for(3)
    assert sorted(received.data for _, received in stream.got) == [b"scheduled", b"sent", b"sent"]


async def test_an_id_scheduled_again_replaces_its_schedule() -> None:
    """A delayed publish that is repeated, because nobody knew whether it was stored, arrives once."""
    async with opened() as (_, broker, stream):
        for _ in range(3):
            await broker.publish_delayed(message("same", delay=0.3), 0.3)
        await broker.publish_delayed(message("end", delay=0.9), 0.9)
        await stream.wait_for(2)
    assert stream.ids() == ["same", "end"]


@pytest.mark.parametrize("kind", ["send", "publish_delayed"])
async def test_a_refused_publish_is_throttled(kind: str) -> None:
    """The server's 429 is `Throttled`, with the client's error as its cause; all that it took arrives."""
    taken: list[str] = []
    refused: list[Throttled] = []
    async with opened(max_buffered=3) as (_, broker, stream):

        async def publish(id: str) -> None:
            try:
                if kind == "send":
                    await broker.send(message(id))
                else:
                    await broker.publish_delayed(message(id, delay=0.5), 0.5)
            except Throttled as error:
                refused.append(error)
            else:
                taken.append(id)

        async with trio.open_nursery() as nursery:
            for number in range(2000):
                nursery.start_soon(publish, str(number))
        await stream.wait_for(len(taken))
    assert refused
    assert sorted(stream.ids()) == sorted(taken)
    assert len(taken) + len(refused) == 2000
    for error in refused:
        assert isinstance(error.__cause__, nats.js.errors.APIError)
        assert (error.__cause__.code, error.__cause__.err_code) == (429, 10167)
        assert error.retry_after is None
    assert str(refused[0]) == "429 too many requests (err_code 10167)"


async def test_too_large_is_permanent_and_harms_nothing_else() -> None:
    """What is over the server's limit with its headers is never sent; the limit itself passes."""
    async with opened() as (_, broker, stream):
        largest = 1_048_576 - len(header_lines({ID: "fits", ATTEMPT: "1", EXECUTE_AT: rfc3339(0)}))
        with pytest.raises(PermanentSendError, match=r"1048577 bytes with headers.*1048576 at most"):
            await broker.send(message("fits", b"x" * (largest + 1)))
        with pytest.raises(PermanentSendError):
            await broker.publish_delayed(message("fits", b"x" * largest, delay=1), 1.0)
        await broker.send(message("fits", b"x" * largest))
        await stream.wait_for(1)
    assert len(stream.got[0][1].data) == largest


@pytest.mark.parametrize("id", ["two\nlines", "two\rlines", " blank", "blank\t"])
async def test_an_id_that_no_header_keeps_is_permanent(id: str) -> None:
    """An id that would arrive as another one is refused."""
    async with opened() as (_, broker, stream):
        with pytest.raises(PermanentSendError, match="id"):
            await broker.send(message(id))
        with pytest.raises(PermanentSendError, match="id"):
            await broker.publish_delayed(message(id, delay=1), 1.0)
        await broker.send(message("good"))
        await stream.wait_for(1)
    assert stream.ids() == ["good"]


async def test_a_bad_header_name_is_permanent() -> None:
    """A header that can't be written fails its own message only."""
    async with opened() as (_, broker, stream):
        with pytest.raises(PermanentSendError, match="bad:name"):
            await broker.send(message("bad", headers={"bad:name": "x"}))
        await broker.send(message("good"))
        await stream.wait_for(1)
    assert stream.ids() == ["good"]


async def test_a_stream_without_schedules_is_permanent() -> None:
    """A delayed publish to a stream that allows none can never work."""
    async with opened(allow_msg_schedules=False) as (_, broker, _stream):
        with pytest.raises(PermanentSendError, match="10188"):
            await broker.publish_delayed(message("x", delay=1), 1.0)


async def test_a_lost_connection_fails_what_is_under_way() -> None:
    """When the server dies, publishes that wait for it fail at once, and later delayed ones too."""
    failed: list[Exception] = []
    async with opened() as (server, broker, _):
        freeze(server)

        async def publish(id: str) -> None:
            with pytest.raises(ConnectionError) as caught:
                await broker.send(message(id))
            failed.append(caught.value)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(publish, str(number))
                await trio.testing.wait_all_tasks_blocked()
                os.kill(server.pid, signal.SIGKILL)
            assert len(failed) == 10
            with pytest.raises(ConnectionError, match="no connection to NATS"):
                await broker.publish_delayed(message("after"), 1.0)


def test_schedule_subjects_differ_and_are_safe() -> None:
    """Each id has a subject of its own, of letters and digits under the stream's wildcard."""
    subjects = {schedule_subject(SUBJECT, id) for id in AWKWARD_IDS}
    assert len(subjects) == len(AWKWARD_IDS)
    for subject in subjects:
        assert subject.startswith(f"{SUBJECT}.delayed.")
        assert subject.rpartition(".")[2].isalnum()
