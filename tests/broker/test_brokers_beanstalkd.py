"""What is special about beanstalkd, against real ones."""

from __future__ import annotations

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
from localdelay.brokers.beanstalkd import MAX_DELAY, MAX_JOB_BYTES
from tests.kit.servers.beanstalkd import BeanstalkdServer
from tests.kit.servers.process import Received, free_port

SERVER = "beanstalkd"

LARGE = 60_000


@pytest.fixture
def own(
    server: BeanstalkdServer, begin: Callable[[BeanstalkdServer], BeanstalkdServer]
) -> Callable[..., BeanstalkdServer]:
    """`own("-z", "100")` is one that no other test has."""
    return lambda *options, durable=True: begin(BeanstalkdServer(*options, durable=durable))


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time(), {"Trace": "1"})


def tube_of(url: str) -> str:
    return urlsplit(url).path[1:]


async def read(server: BeanstalkdServer, url: str, count: int) -> list[Received]:
    return await trio.to_thread.run_sync(server.read, url, count)


def bodies(received: list[Received]) -> list[bytes]:
    return [one.payload for one in received]


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


async def test_out_of_memory_is_throttling(own: Callable[..., BeanstalkdServer]) -> None:
    """A server that gets no more memory refuses the large ones, and the connection stays in step."""
    server = own(durable=False)
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


async def test_a_log_that_cannot_grow_is_throttling(own: Callable[..., BeanstalkdServer]) -> None:
    """Where the server can't write its log any more it says that it is out of memory, until it can."""
    server = own("-s", "16384")
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


async def test_too_large_for_this_server(own: Callable[..., BeanstalkdServer]) -> None:
    """One byte over its limit can never work, at its limit it does, and what is written behind it as well."""
    server = own("-z", "1000", durable=False)
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
