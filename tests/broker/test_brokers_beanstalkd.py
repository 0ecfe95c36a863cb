"""What is special about beanstalkd, against real ones."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import greenstalk
import pytest
import trio

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import open_broker
from localdelay.brokers.beanstalkd import MAX_DELAY, MAX_JOB_BYTES, answer_error, classified
from tests.kit.servers.beanstalkd import BeanstalkdServer
from tests.kit.servers.process import NotInstalled, Received, Server, free_port

LARGE = 60_000


@pytest.fixture
def server(start_server: Callable[[str], Server]) -> BeanstalkdServer:
    server = start_server("beanstalkd")
    assert isinstance(server, BeanstalkdServer)
    return server


@pytest.fixture
def url(server: BeanstalkdServer) -> str:
    return server.fresh()


@pytest.fixture
def own_server() -> Iterator[Callable[..., BeanstalkdServer]]:
    """`own_server("-z", "100")` is one that no other test has."""
    servers: list[BeanstalkdServer] = []

    def started(*options: str, durable: bool = True) -> BeanstalkdServer:
        servers.append(BeanstalkdServer(*options, durable=durable))
        try:
            servers[-1].start()
        except NotInstalled as missing:
            if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time(), {"Trace": "1"})


def tube_of(url: str) -> str:
    return urlsplit(url).path[1:]


async def read(server: BeanstalkdServer, url: str, count: int) -> list[Received]:
    return await trio.to_thread.run_sync(server.read, url, count)


def bodies(received: list[Received]) -> list[bytes]:
    return [one.payload for one in received]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (greenstalk.DrainingError(), Throttled),
        (greenstalk.OutOfMemoryError(), Throttled),
        (greenstalk.BuriedError([b"5"]), Throttled),
        (greenstalk.JobTooBigError(), PermanentSendError),
        (greenstalk.BadFormatError(), PermanentSendError),
        (greenstalk.UnknownCommandError(), PermanentSendError),
        (greenstalk.InternalError(), None),
        (greenstalk.ExpectedCrlfError(), None),
        (greenstalk.UnknownResponseError(b"HOT", []), None),
        (ConnectionError("lost"), None),
    ],
)
def test_errors(error: Exception, expected: type[Exception] | None) -> None:
    """Throttling, what can never work, and the rest as greenstalk has it."""
    if expected is None:
        assert classified(error) is error
    else:
        assert type(classified(error)) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"INSERTED 1", None),
        (b"BURIED 5", greenstalk.BuriedError),
        (b"DRAINING", greenstalk.DrainingError),
        (b"OUT_OF_MEMORY", greenstalk.OutOfMemoryError),
        (b"JOB_TOO_BIG", greenstalk.JobTooBigError),
        (b"EXPECTED_CRLF", greenstalk.ExpectedCrlfError),
        (b"BAD_FORMAT", greenstalk.BadFormatError),
        (b"INTERNAL_ERROR", greenstalk.InternalError),
        (b"UNKNOWN_COMMAND", greenstalk.UnknownCommandError),
        (b"HTTP/1.1 400 Bad Request", greenstalk.UnknownResponseError),
        (b"BURIED", greenstalk.BuriedError),
        (b"INSERTED", greenstalk.UnknownResponseError),
        (b"BURIED x", greenstalk.UnknownResponseError),
        (b"", greenstalk.UnknownResponseError),
        (b"\xff\x00", greenstalk.UnknownResponseError),
    ],
)
def test_answers(answer: bytes, expected: type[Exception] | None) -> None:
    """Every answer that the protocol has for a put, and some that it has not."""
    error = answer_error(answer)
    assert error is None if expected is None else type(error) is expected


async def test_draining_is_throttling(server: BeanstalkdServer, url: str) -> None:
    """In drain mode each kind of publish raises Throttled; after a restart it works without opening anew."""
    async with open_broker(url) as broker:
        with server.throttled(url):
            with pytest.raises(Throttled, match="draining") as raised:
                await broker.send(message("one"))
            assert isinstance(raised.value.__cause__, greenstalk.DrainingError)
            assert raised.value.retry_after is None
            with pytest.raises(Throttled, match="draining"):
                await broker.send_batch([message("a"), message("b")])
            with pytest.raises(Throttled, match="draining"):
                await broker.publish_delayed(message("later"), 1.0)
        with trio.fail_after(60):
            await broker.send(message("last"))
    assert bodies(await read(server, url, 1)) == [b"last"]


@contextmanager
def out_of_memory(pid: int) -> Iterator[None]:
    """The process gets no more memory than it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))


async def test_out_of_memory_is_throttling(own_server: Callable[..., BeanstalkdServer]) -> None:
    """A server that gets no more memory refuses the large ones, and the connection stays in step."""
    server = own_server(durable=False)
    url = server.fresh()
    async with open_broker(url) as broker:
        with out_of_memory(server.pid):
            with pytest.raises(Throttled, match="out of memory") as raised:
                for _ in range(1000):
                    await broker.send(message("large", bytes(LARGE)))
            assert isinstance(raised.value.__cause__, greenstalk.OutOfMemoryError)
            with pytest.raises(PartialSendError) as some:
                await broker.send_batch([message("a"), message("large", bytes(LARGE)), message("b")])
            assert some.value.failed is not None
            assert list(some.value.failed) == ["large"]
            assert isinstance(some.value.failed["large"], Throttled)
        await broker.send(message("large", b"last" + bytes(LARGE)))
    received = bodies(await read(server, url, 3))
    assert [body[:4].strip(b"\0") for body in received if body[:4] != bytes(4)] == [b"a", b"b", b"last"]


async def test_a_log_that_cannot_grow_is_throttling(own_server: Callable[..., BeanstalkdServer]) -> None:
    """Where the server can't write its log any more it says that it is out of memory, until it can."""
    server = own_server("-s", "16384")
    url = server.fresh()
    away = server.directory.with_name(server.directory.name + "-away")
    async with open_broker(url) as broker:
        server.directory.rename(away)
        try:
            with pytest.raises(Throttled, match="disk is full") as raised:
                for _ in range(20):
                    await broker.send(message("one", bytes(4000)))
            assert isinstance(raised.value.__cause__, greenstalk.OutOfMemoryError)
        finally:
            away.rename(server.directory)
        await broker.send(message("last"))


async def test_too_large_for_this_server(own_server: Callable[..., BeanstalkdServer]) -> None:
    """One byte over its limit can never work, at its limit it does, and what is written behind it as well."""
    server = own_server("-z", "1000", durable=False)
    url = server.fresh()
    async with open_broker(url) as broker:
        with pytest.raises(PermanentSendError, match="too large") as raised:
            await broker.send(message("large", bytes(1001)))
        assert isinstance(raised.value.__cause__, greenstalk.JobTooBigError)
        batch = [message("fits", bytes(1000)), message("larger", bytes(20_000_000)), message("small")]
        with trio.fail_after(60), pytest.raises(PartialSendError) as some:
            await broker.send_batch(batch)
        assert some.value.failed is not None
        assert list(some.value.failed) == ["larger"]
    assert bodies(await read(server, url, 2)) == [bytes(1000), b"small"]


async def test_what_no_server_takes_is_not_written(server: BeanstalkdServer, url: str) -> None:
    """Past 2**30 bytes the protocol would go wrong: refused here, in a batch as well; so is text."""

    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_JOB_BYTES + 1

    async with open_broker(url) as broker:
        with pytest.raises(PermanentSendError, match="1073741825 bytes"):
            await broker.send(message("huge", Huge()))
        with pytest.raises(PartialSendError) as some:
            await broker.send_batch([message("a"), message("huge", Huge()), message("b")])
        assert some.value.failed is not None
        assert list(some.value.failed) == ["huge"]
        text = message("text", "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="payload must be bytes, not str"):
            await broker.send(text)
        with pytest.raises(TypeError, match="payload must be bytes, not str"):
            await broker.send_batch([message("unsent"), text])
    assert bodies(await read(server, url, 2)) == [b"a", b"b"]


async def test_only_the_payload_travels(server: BeanstalkdServer, url: str) -> None:
    """Any bytes are the body as they are, line breaks and commands among them."""
    payloads = [b"", b"\r\n", b"quit\r\nput 0 0 0 0\r\n\r\n", bytes(range(256))]
    async with open_broker(url) as broker:
        for payload in payloads:
            await broker.send(message("id", payload))
    assert bodies(await read(server, url, len(payloads))) == payloads


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [(0, 0), (0.0, 0), (0.001, 1), (1, 1), (1.0, 1), (1.0000001, 2), (7199.5, 7200), (MAX_DELAY, MAX_DELAY)],
)
async def test_delays_are_rounded_up(server: BeanstalkdServer, url: str, delay: float, seconds: int) -> None:
    """Whole seconds, never fewer than were asked for, up to the most that the protocol has."""
    async with open_broker(url) as broker:
        await broker.publish_delayed(message("one"), delay)
    with server.client(use=tube_of(url)) as client:
        job = client.peek_delayed() if seconds else client.peek_ready()
        assert client.stats_job(job)["delay"] == seconds
        client.delete(job)


async def test_delays_that_there_are_not(url: str) -> None:
    """Too long for the protocol can never work; what is no delay is an error of the caller's."""
    async with open_broker(url) as broker:
        assert broker.native_delay is True
        for delay in (MAX_DELAY + 0.5, 1e300):
            with pytest.raises(PermanentSendError, match="at most"):
                await broker.publish_delayed(message("one"), delay)
        with pytest.raises(TypeError, match="delay"):
            await broker.publish_delayed(message("one"), "1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="delay"):
            await broker.publish_delayed(message("one"), -0.001)


async def test_a_delay_outlives_a_restart(server: BeanstalkdServer, url: str) -> None:
    """What was confirmed with a delay comes after it though the server was killed meanwhile."""
    async with open_broker(url) as broker:
        begun = trio.current_time()
        await broker.publish_delayed(message("late"), 1.0)
    server.kill()
    server.restart()
    assert bodies(await read(server, url, 1)) == [b"late"]
    assert trio.current_time() - begun >= 1.0


async def test_priority_and_time_to_run(server: BeanstalkdServer, url: str) -> None:
    """They are those of the jobs; by default greenstalk's."""
    async with open_broker(url) as broker:
        await broker.send(message("default"))
    async with open_broker(f"{url}?priority=0&time_to_run=7") as broker:
        await broker.send(message("urgent"))
    with server.client(use=tube_of(url)) as client:
        for body, priority, seconds in ((b"urgent", 0, 7), (b"default", 2**16, 60)):
            job = client.peek_ready()
            assert job.body == body
            assert client.stats_job(job)["pri"] == priority
            assert client.stats_job(job)["ttr"] == seconds
            client.delete(job)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/two tubes", "must end with the tube"),
        ("/-tube", "must end with the tube"),
        ("/tube%0D%0Aquit", "must end with the tube"),
        (f"/{'t' * 201}", "must end with the tube"),
        ("/tube?priority=-1", "^priority must be a whole number up to 4294967295"),
        ("/tube?priority=4294967296", "^priority must be a whole number"),
        ("/tube?time_to_run=1.5", "^time_to_run must be a whole number"),
        ("/tube?nonsense=1", "does not know, nonsense; it knows priority, time_to_run"),
    ],
)
async def test_wrong_options(url: str, says: str) -> None:
    """Each is refused by its name, before anything is connected."""
    with pytest.raises(ValueError, match=says):
        async with open_broker(f"beanstalkd://127.0.0.1:{free_port()}{url}"):
            pass


async def test_a_tube_may_have_any_name_that_there_is(server: BeanstalkdServer) -> None:
    """The longest, of all the characters, and the one that a connection uses anyway."""
    for tube in ("default", "A+/;.$_()-z0" * 16 + "12345678"):
        async with open_broker(f"beanstalkd://127.0.0.1:{server.port}/{tube}") as broker:
            await broker.send(message("one"))
        with server.client(watch=tube) as client:
            job = client.reserve(timeout=60)
            assert job.body == b"one"
            client.delete(job)


async def test_large_batches_go_through(own_server: Callable[..., BeanstalkdServer]) -> None:
    """Many times what sockets hold, and more messages than may be under way: each is there once, in order."""
    server = own_server(durable=False)
    url = server.fresh()
    payloads = [b"%d " % number + bytes(LARGE if number % 10 == 0 else 100) for number in range(5000)]
    async with open_broker(url) as broker:
        with trio.fail_after(100):
            await broker.send_batch([message(f"{n}", payload) for n, payload in enumerate(payloads)])
    assert bodies(await read(server, url, len(payloads))) == payloads
