"""The connection to beanstalkd, against a server that answers as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import greenstalk
import pytest
import trio
import trio.testing

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import ConnectionLost, open_broker
from localdelay.brokers.publisher import Publisher
from tests.kit.servers.network import listening
from tests.kit.servers.process import free_port

CONFIRMED = b"INSERTED 1\r\n"
GARBAGE = [b"HOT 1", b"INSERTED", b"BURIED x", b"HTTP/1.1 400 Bad Request", b"", b"\xff\x00"]
"""Answers that the protocol has not for a put."""


class HangUp(Exception):
    """Raised by an `answer` that closes the connection."""


@attrs.define
class FakeServer:
    """Speaks the protocol as far as putting needs it."""

    answer: Callable[[bytes], bytes] = lambda _: CONFIRMED
    """What it says to a put with this body; b"" is silence."""
    greeting: bytes = b"USING tube\r\n"
    """What it says to `use`."""
    port: int = 0
    bodies: list[bytes] = attrs.Factory(list)
    connections: int = 0
    reading: trio.Event = attrs.Factory(trio.Event)
    """Until it is set no put is read."""

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        received = bytearray()

        async def more() -> None:
            part = await stream.receive_some()
            if not part:
                raise HangUp
            received.extend(part)

        async def take(count: int) -> bytes:
            while len(received) < count:
                await more()
            taken = bytes(received[:count])
            del received[:count]
            return taken

        async with stream:
            try:
                while True:
                    while b"\r\n" not in received:
                        await more()
                    command = (await take(received.index(b"\r\n") + 2)).split()
                    if command[0] == b"use":
                        await stream.send_all(self.greeting)
                        await self.reading.wait()
                    else:
                        body = (await take(int(command[4]) + 2))[:-2]
                        self.bodies.append(body)
                        await stream.send_all(self.answer(body))
            except (HangUp, trio.BrokenResourceError):
                pass


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    server.reading.set()
    async with listening(server.serve) as server.port:
        yield server


@asynccontextmanager
async def opened(server: FakeServer, **options: float) -> AsyncIterator[Publisher]:
    timeouts = {"confirm_timeout": 0.5, "connect_timeout": 0.5, **options}
    with trio.fail_after(10):
        async with open_broker(f"beanstalkd://127.0.0.1:{server.port}/tube", **timeouts) as broker:  # type: ignore[arg-type]
            yield broker


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time())


@pytest.mark.parametrize(
    ("answer", "error", "cause"),
    [
        (b"BURIED 5", Throttled, greenstalk.BuriedError),
        (b"BURIED", Throttled, greenstalk.BuriedError),
        (b"OUT_OF_MEMORY", Throttled, greenstalk.OutOfMemoryError),
        (b"DRAINING", Throttled, greenstalk.DrainingError),
        (b"JOB_TOO_BIG", PermanentSendError, greenstalk.JobTooBigError),
        (b"BAD_FORMAT", PermanentSendError, greenstalk.BadFormatError),
        (b"UNKNOWN_COMMAND", PermanentSendError, greenstalk.UnknownCommandError),
        (b"INTERNAL_ERROR", greenstalk.InternalError, None),
        (b"EXPECTED_CRLF", greenstalk.ExpectedCrlfError, None),
        *((garbage, greenstalk.UnknownResponseError, None) for garbage in GARBAGE),
    ],
)
async def test_each_answer_has_its_error(
    fake: FakeServer, answer: bytes, error: type[Exception], cause: type[Exception] | None
) -> None:
    """It fails one message, alone or in a batch; the next is confirmed, on a new connection if need be."""
    fake.answer = lambda body: answer + b"\r\n" if body == b"bad" else CONFIRMED
    async with opened(fake) as broker:
        with pytest.raises(error) as raised:
            await broker.send(message("bad"))
        assert (raised.value.__cause__ and type(raised.value.__cause__)) is cause
        await broker.send(message("good"))
        with pytest.raises(PartialSendError) as some:
            await broker.send_batch([message("a"), message("bad")])
        assert some.value.failed is not None
        assert {id: type(error) for id, error in some.value.failed.items()} == {"bad": error}
        await broker.send(message("better"))
    out_of_step = error is greenstalk.UnknownResponseError or cause in (
        greenstalk.BadFormatError,
        greenstalk.UnknownCommandError,
    )
    assert fake.connections == (3 if out_of_step else 1)


async def test_what_was_under_way_when_the_connection_was_lost(fake: FakeServer) -> None:
    """The messages that were answered are confirmed; the others fail, for who knows."""

    def answer(body: bytes) -> bytes:
        if body == b"2":
            raise HangUp
        return CONFIRMED

    fake.answer = answer
    async with opened(fake) as broker:
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message(f"{number}") for number in range(4)])
        assert raised.value.failed is not None
        assert set(raised.value.failed) == {"2", "3"}
        assert all("was lost" in str(error) for error in raised.value.failed.values())
        assert {type(error) for error in raised.value.failed.values()} == {ConnectionLost}
        with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:\d+ was lost"):
            await broker.send(message("2"))
        await broker.send(message("4"))
    assert fake.connections == 3


async def test_what_was_not_written_goes_to_the_next_connection(fake: FakeServer) -> None:
    """Of a batch that is larger than what may be under way, the rest survives the loss of a connection."""

    def answer(body: bytes) -> bytes:
        if fake.connections == 1:
            raise HangUp
        return CONFIRMED

    fake.answer = answer
    async with opened(fake, confirm_timeout=5.0) as broker:
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message(f"{number}", bytes(2000)) for number in range(5000)])
    assert raised.value.failed is not None
    lost = len(raised.value.failed)
    assert 0 < lost <= 2000
    assert sorted(map(int, raised.value.failed)) == list(range(lost))
    assert len(fake.bodies) == 1 + 5000 - lost


@pytest.mark.parametrize("garbage", [b"x" * 2000, CONFIRMED * 2, CONFIRMED + b"BAD"])
async def test_an_answer_that_is_none_ends_the_connection(fake: FakeServer, garbage: bytes) -> None:
    """Endless lines, and answers that nobody asked for: the connection is given up, and made again."""
    fake.answer = lambda body: garbage if body == b"first" else CONFIRMED
    async with opened(fake) as broker:
        try:
            await broker.send(message("first"))
        except ConnectionError as error:
            assert "was lost" in str(error)
        await broker.send(message("second"))
        await broker.send(message("third"))
    assert fake.connections == 2


async def test_a_cancelled_send_takes_nobody_elses_answer(fake: FakeServer) -> None:
    """The answer to a put that nobody waits for any more is not taken for another's."""
    fake.reading = trio.Event()
    fake.answer = lambda body: b"DRAINING\r\n" if body == b"cancelled" else CONFIRMED
    async with opened(fake, confirm_timeout=5.0) as broker:
        with trio.move_on_after(0.05):
            await broker.send(message("cancelled"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.send, message("confirmed"))
            await trio.testing.wait_all_tasks_blocked()
            fake.reading.set()
    assert fake.bodies == [b"cancelled", b"confirmed"]


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (b"OUT_OF_MEMORY\r\n", "it answers 'OUT_OF_MEMORY'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it answers 'HTTP/1.1 400 Bad Request'"),
        (b"220 \xff\r\n", "it answers '220 \ufffd'"),
        (b"x" * 5000, "it answers 'xxx"),
        (b"", "no answer within 0.5 s"),
        (b"USING tu", "no answer within 0.5 s"),
    ],
)
async def test_what_is_no_beanstalkd(fake: FakeServer, greeting: bytes, says: str) -> None:
    """Opening fails with a ConnectionError of one line that says where and what."""
    fake.greeting = greeting
    with pytest.raises(ConnectionError) as raised:
        async with opened(fake):
            pass
    assert str(raised.value).startswith(f"no connection to beanstalkd at 127.0.0.1:{fake.port}: {says}")
    assert "\n" not in str(raised.value)


async def test_a_server_that_hangs_up_at_once(fake: FakeServer) -> None:
    """Opening fails, and so does a reconnect, without a busy loop."""
    async with opened(fake, confirm_timeout=0.4) as broker:
        await broker.send(message("before"))
        fake.greeting = b"BYE\r\n"
        fake.answer = hang_up
        with pytest.raises(ConnectionError, match="was lost"):
            await broker.send(message("lost"))
        with pytest.raises(ConnectionError, match="it answers 'BYE'"):
            await broker.send(message("waits"))
    assert fake.connections < 10


def hang_up(_: bytes) -> bytes:
    raise HangUp


async def test_a_host_that_does_not_answer_a_connect() -> None:
    """A listener whose queue is full: opening takes connect_timeout and no longer."""
    with trio.socket.socket() as listener, trio.socket.socket() as first, trio.socket.socket() as second:
        await listener.bind(("127.0.0.1", free_port()))
        listener.listen(0)
        for filler in (first, second):
            with trio.move_on_after(0.1):
                await filler.connect(listener.getsockname())
        begun = trio.current_time()
        with pytest.raises(ConnectionError, match=r"no answer within 0\.3 s"):
            async with open_broker(
                f"beanstalkd://127.0.0.1:{listener.getsockname()[1]}/tube", connect_timeout=0.3
            ):
                pass
        assert trio.current_time() - begun < 2
