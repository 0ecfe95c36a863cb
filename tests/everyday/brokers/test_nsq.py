"""The connection to NSQ, against a server that answers as a test says."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from localdelay import DelayNotSupported, Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.line import OutOfStep
from localdelay.brokers.nsq import NsqError, classified, commands, frames
from localdelay.brokers.outbox import Outbox, Parcel, Sending
from tests.kit.servers.network import listening
from tests.kit.servers.process import free_port

OK, HEARTBEAT = (0, b"OK"), (0, b"_heartbeat_")
Command = tuple[bytes, bytes]
"""Its line, and its body."""


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", 4 + len(data), kind) + data


@attrs.define
class FakeServer:
    """Speaks the protocol as far as publishing needs it; after an error it hangs up, as nsqd does."""

    answer: Callable[[Command], list[tuple[int, bytes]]] = lambda _: [OK]
    about: dict[str, object] = attrs.Factory(dict)
    """What it says to IDENTIFY."""
    port: int = 0
    commands: list[Command] = attrs.Factory(list)
    connections: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        received = bytearray()

        async def take(count: int) -> bytes:
            while len(received) < count:
                part = await stream.receive_some()
                if not part:
                    raise trio.BrokenResourceError
                received.extend(part)
            taken = bytes(received[:count])
            del received[:count]
            return taken

        try:
            async with stream:
                assert await take(4) == b"  V2"
                while True:
                    line = b""
                    while not line.endswith(b"\n"):
                        line += await take(1)
                    name = line.split()[0]
                    body = b"" if name == b"NOP" else await take(struct.unpack(">I", await take(4))[0])
                    self.commands.append((line.strip(), body))
                    answers = self.answer((line.strip(), body)) if name != b"NOP" else []
                    if name == b"IDENTIFY":
                        answers = [(0, json.dumps(self.about).encode())]
                    await stream.send_all(b"".join(frame(*one) for one in answers))
                    if any(kind == 1 for kind, _ in answers):
                        return
        except trio.BrokenResourceError:
            pass


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    async with listening(server.serve) as server.port:
        yield server


@asynccontextmanager
async def opened(
    server: FakeServer, options: str = "", user: str = "", limit: float = 1.0
) -> AsyncIterator[Broker]:
    with trio.fail_after(10):
        url = f"nsq://{user}127.0.0.1:{server.port}/topic{options}"
        async with open_broker(url, confirm_timeout=limit, connect_timeout=1.0) as broker:
            yield broker


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("E_PUB_FAILED PUB failed open /data: no space left on device", Throttled),
        ("E_MPUB_FAILED MPUB failed", Throttled),
        ("E_DPUB_FAILED DPUB failed", Throttled),
        ("E_PUB_FAILED PUB failed exiting", None),
        ("E_BAD_TOPIC PUB topic name 'x' is not valid", PermanentSendError),
        ("E_BAD_MESSAGE PUB message too big 3000 > 2000", PermanentSendError),
        ("E_BAD_BODY MPUB body too big", PermanentSendError),
        ("E_INVALID cannot PUB in current state", PermanentSendError),
        ("E_INVALID DPUB timeout 3600001 out of range 0-3600000", DelayNotSupported),
        ("E_UNAUTHORIZED AUTH failed for PUB", PermanentSendError),
        ("E_AUTH_ERROR AUTH failed", None),
        ("E_NEW_IN_ITS_NEXT_VERSION", None),
    ],
)
def test_errors(said: str, expected: type[Exception] | None) -> None:
    """By their codes: throttling, what can never work, no such delay, and the rest as it is."""
    error = NsqError(said)
    assert classified(error) is error if expected is None else type(classified(error)) is expected


def test_frames() -> None:
    """Whole ones are taken out, wherever the data is cut; what is none is found out."""
    data = frame(0, b"OK") + frame(1, b"E_BAD") + frame(0, b"")
    for cut in range(len(data) + 1):
        found, rest = frames(data[:cut])
        more, rest = frames(rest + data[cut:])
        assert [*found, *more] == [(0, b"OK"), (1, b"E_BAD"), (0, b"")]
        assert rest == b""
    for wrong in (b"HTTP/1.1", frame(3, b"x"), struct.pack(">II", 3, 0), struct.pack(">II", 1 << 30, 0)):
        with pytest.raises(OutOfStep):
            frames(wrong)


async def test_what_goes_as_one_command() -> None:
    """In their order: a delayed one by itself, the others together up to so many bytes, a large one alone."""
    sending = Sending(Outbox(lambda error: error, 9, 9), 9)

    def parcel(content: bytes, *, delayed: bool = False) -> Parcel:
        made = Parcel(content, 1, sending, 0, 0.0)
        made.only_now = delayed
        return made

    parcels = [parcel(b"aaa"), parcel(b"bbb"), parcel(b"c" * 9), parcel(b"d"), parcel(b"e", delayed=True)]
    parcels.append(parcel(b"f"))
    found = [[one.content[:1] for one in group] for group in commands(parcels, 6)]
    assert found == [[b"a", b"b"], [b"c"], [b"d"], [b"e"], [b"f"]]


async def test_one_is_a_pub_and_a_batch_an_mpub(fake: FakeServer) -> None:
    """Each payload as it is, whatever is in it."""
    async with opened(fake) as broker:
        await broker.send(message("a", b"one\nPUB topic\n"))
        await broker.send_batch([message("b"), message("c")])
    assert fake.commands[0][0] == b"IDENTIFY"
    assert fake.commands[1:] == [
        (b"PUB topic", b"one\nPUB topic\n"),
        (b"MPUB topic", struct.pack(">II", 2, 1) + b"b" + struct.pack(">I", 1) + b"c"),
    ]


async def test_what_would_end_the_connection_is_not_written(fake: FakeServer) -> None:
    """An empty payload, one that is too large, a delay that is too long."""
    async with opened(fake, "?max_msg_size=10&delay=native&max_req_timeout=60") as broker:
        for payload in (b"", bytes(11)):
            with pytest.raises(PermanentSendError):
                await broker.send(message("a", payload))
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("b", bytes(11))])
        assert set(raised.value.failed or ()) == {"b"}
        with pytest.raises(DelayNotSupported, match="60 s at most"):
            await broker.publish_delayed(message("a"), 60.001)
        await broker.publish_delayed(message("c"), 1.0001)
    assert fake.connections == 1
    assert fake.commands[1:] == [(b"PUB topic", b"a"), (b"DPUB topic 1001", b"c")]


async def test_its_own_delay_is_for_who_asks_for_it(fake: FakeServer) -> None:
    """Without the option there is none, and the error says how to get it."""
    async with opened(fake) as broker:
        assert broker.native_delay is False
        with pytest.raises(DelayNotSupported, match=r"\?delay=native"):
            await broker.publish_delayed(message("a"), 1)


async def test_refused_in_company_each_is_sent_alone(fake: FakeServer) -> None:
    """Only the guilty one fails; what was written behind it is written again; the limit is remembered."""

    def answer(command: Command) -> list[tuple[int, bytes]]:
        if len(command[1]) >= 30 or b"x" * 30 in command[1]:
            return [(1, b"E_BAD_MESSAGE PUB message too big 30 > 29")]
        return [OK]

    fake.answer = answer
    async with opened(fake, limit=5.0) as broker:
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("a"), message("large", b"x" * 30), message("b")])
        assert {id: type(error) for id, error in (raised.value.failed or {}).items()} == {
            "large": PermanentSendError
        }
        connections = fake.connections
        with pytest.raises(PermanentSendError, match="29 at most"):
            await broker.send(message("large", b"x" * 30))
        assert fake.connections == connections
    assert [body for line, body in fake.commands if line == b"PUB topic" and len(body) < 30] == [b"a", b"b"]


async def test_another_server_may_take_more(fake: FakeServer) -> None:
    """What was learned of one is forgotten with its connection, unless that was how it ended."""

    def answer(command: Command) -> list[tuple[int, bytes]]:
        too_large = len(command[1]) > most
        return (
            [(1, b"E_BAD_MESSAGE PUB message too big %d > %d" % (len(command[1]), most))]
            if too_large
            else said
        )

    fake.answer, most, said = answer, 10, [OK]
    async with opened(fake, limit=5.0) as broker:
        for _ in range(3):
            with pytest.raises(PermanentSendError):
                await broker.send(message("a", bytes(11)))
            await broker.send(message("b"))
        assert fake.connections == 2
        said = [(1, b"E_PUB_FAILED PUB failed exiting")]
        with pytest.raises(NsqError, match="exiting"):
            await broker.send(message("c"))
        most, said = 20, [OK]
        await broker.send(message("d"))
        await broker.send(message("a", bytes(11)))
    assert fake.connections == 3


async def test_what_was_written_behind_the_guilty_is_written_again(fake: FakeServer) -> None:
    """The server has not read it: nobody hears of it."""
    fake.answer = lambda command: [(1, b"E_BAD_TOPIC")] if b"bad" in command[1] else [OK]
    failed: list[str] = []

    async def send(id: str) -> None:
        try:
            await broker.send(message(id))
        except PermanentSendError:
            failed.append(id)

    async with opened(fake, limit=5.0) as broker:
        async with trio.open_nursery() as nursery:
            for id in ("a", "bad", "b", "c"):
                nursery.start_soon(send, id)
        await broker.send(message("after"))  # Trio may have begun the guilty one last
    assert failed == ["bad"]
    assert fake.connections >= 2


async def test_throttling_is_everybodys(fake: FakeServer) -> None:
    """A disk that is full refuses a batch as a whole; what is behind it goes on the next connection."""
    fake.answer = lambda _: [(1, b"E_MPUB_FAILED no space left on device")]
    async with opened(fake) as broker:
        with pytest.raises(Throttled, match="no space") as raised:
            await broker.send_batch([message("a"), message("b")])
        assert isinstance(raised.value.__cause__, NsqError)
        fake.answer = lambda _: [OK]
        await broker.send(message("c"))
    assert fake.connections == 2


async def test_heartbeats_are_answered_and_confirm_nothing(fake: FakeServer) -> None:
    """They come between the answers; a server that says nothing else has not answered."""
    fake.answer = lambda _: [HEARTBEAT, OK, HEARTBEAT]
    async with opened(fake) as broker:
        await broker.send(message("a"))
        await broker.send(message("b"))
        fake.answer = lambda _: [HEARTBEAT]
        with pytest.raises(TimeoutError):
            await broker.send(message("c"))
    assert fake.commands.count((b"NOP", b"")) == 5


async def test_answers_that_nobody_asked_for_end_the_connection(fake: FakeServer) -> None:
    """It is out of step; the next message goes over another."""
    fake.answer = lambda _: [OK, OK]
    async with opened(fake, limit=5.0) as broker:
        await broker.send(message("a"))
        fake.answer = lambda _: [OK]
        await broker.send(message("b"))
    assert fake.connections == 2


async def test_the_secret_is_for_who_asks(fake: FakeServer) -> None:
    """AUTH comes before anything is published; without a secret, or with a wrong one, it is no connection."""
    async with opened(fake, user="hunter2@") as broker:
        await broker.send(message("a"))
    assert not any(line == b"AUTH" for line, _ in fake.commands)
    fake.about = {"auth_required": True}
    async with opened(fake, user=":hunter2@") as broker:
        await broker.send(message("a"))
    assert (b"AUTH", b"hunter2") in fake.commands
    with pytest.raises(ConnectionError, match="it asks for a secret"):
        async with opened(fake):
            pass
    fake.answer = lambda command: [(1, b"E_UNAUTHORIZED no")] if command[0] == b"AUTH" else [OK]
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+: E_UNAUTHORIZED no") as raised:
        async with opened(fake, user="hunter2@"):
            pass
    assert "hunter2" not in str(raised.value)


async def test_required_tls_that_there_is_not(fake: FakeServer) -> None:
    """Nothing is published without."""
    with pytest.raises(ConnectionError, match="it offers no TLS"):
        async with opened(fake, "?tls=required"):
            pass
    assert [line for line, _ in fake.commands] == [b"IDENTIFY"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/bad topic", "must end with the topic"),
        (f"/{'t' * 65}", "must end with the topic"),
        ("/t%23other", "must end with the topic"),
        ("/t?delay=yes", "^delay must be native"),
        ("/t?tls=off", "^tls must be required"),
        ("/t?max_msg_size=1e6", "^max_msg_size must be a whole number"),
        ("/t?max_req_timeout=-1", "^max_req_timeout must be a whole number"),
    ],
)
async def test_wrong_urls(url: str, says: str) -> None:
    """Each is refused by its name, before anything is connected."""
    with pytest.raises(ValueError, match=says):
        async with open_broker(f"nsq://127.0.0.1:{free_port()}{url}"):
            pass


async def test_an_ephemeral_topic(fake: FakeServer) -> None:
    """Its name ends with what a URL must quote."""
    async with open_broker(f"nsq://127.0.0.1:{fake.port}/t%23ephemeral") as broker:
        await broker.send(message("a"))
    assert fake.commands[-1] == (b"PUB t#ephemeral", b"a")
