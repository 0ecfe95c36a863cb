"""What a broken broker could send, and what is put on the wire: clear errors only, in time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import greenstalk
import nats.errors
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.exceptions import ChannelClosedByBroker

from localdelay import LocalDelayError, Message, PermanentSendError, Throttled
from localdelay.brokers import Broker, beanstalkd, kafka, open_broker, redis
from localdelay.brokers.amqp_channel import ConfirmedChannel, Publish
from localdelay.brokers.amqp_frames import content_frames
from localdelay.brokers.beanstalkd import answer_error as beanstalkd_error
from localdelay.brokers.nats_answers import answer_error as nats_error
from localdelay.brokers.nats_answers import classified as nats_classified
from localdelay.brokers.nats_frames import Answer, Frames, header_lines
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from localdelay.settling import Confirmation
from tests.kit.fuzzing import (
    fuzzed,
    in_time,
    is_clear,
    mistaken,
    pieces,
    printable,
    some_cuts,
    texts,
)

# --- what a broken broker could send

_INBOX = b"_INBOX.abc"
_ACK = b'{"stream":"S", "seq":7}'


def _msg(subject: bytes, data: bytes) -> bytes:
    return b"MSG %b 1 %d\r\n%b\r\n" % (subject, len(data), data)


def _hmsg(subject: bytes, headers: bytes, data: bytes) -> bytes:
    return b"HMSG %b 1 %d %d\r\n%b%b\r\n" % (subject, len(headers), len(headers) + len(data), headers, data)


_frames = st.lists(
    st.sampled_from(
        [_msg(_INBOX + b".1", _ACK), _msg(_INBOX + b".22", b""), _msg(b"other", b"MSG _INBOX.abc.1 1 5\r\n")]
    )
    | st.sampled_from(
        [
            _hmsg(_INBOX + b".3", b"NATS/1.0 503\r\n\r\n", b""),
            b"PING\r\n",
            b"-ERR 'x'\r\n",
            b"+OK\r\n",
            b"\r\n",
        ]
    )
    | st.sampled_from(
        [
            b"INFO {}\r\n",
            b"MSG\r\n",
            b"HMSG 1\r\n",
            b"MSG x 1 -15\r\n",
            _hmsg(b"y", b"NATS/1.0\r\n\r\n", b"z"),
        ]
    ),
    min_size=1,
    max_size=6,
).map(b"".join)


def _fed(received: list[bytes]) -> tuple[list[Answer], bytes, bool]:
    """Answers, the rest, and whether it was refused."""
    frames = Frames(_INBOX, inside_a_line=False)
    answers: list[Answer] = []
    others = b""
    for piece in received:
        try:
            more, other = frames.feed(piece)
        except ValueError as error:
            assert is_clear(error)
            return answers, others, True
        answers += more
        others += other
    return answers, others, False


@fuzzed(1000)
@given(mistaken(_frames), some_cuts)
def test_nats_frames(received: bytes, cuts: list[int]) -> None:
    """A broken stream is taken apart or refused, and the same however it was cut."""
    with in_time():
        whole = _fed([received])
        cut = _fed(pieces(received, cuts))
    assert cut[2] or not whole[2]
    if not whole[2]:
        assert cut[:2] == whole[:2]
    for answer in cut[0]:
        error = nats_error(answer.headers, answer.data)
        assert error is None or isinstance(error, Exception)


def test_nats_frames_have_an_end() -> None:
    """A frame announced as endless, or a line without an end, is refused before it fills the memory."""
    for begin in (b"MSG x 1 999999999999\r\n", b"INFO "):
        frames = Frames(_INBOX, inside_a_line=False)
        with in_time(30), pytest.raises(ValueError, match="frame") as refused:
            frames.feed(begin)
            for _ in range(200):
                frames.feed(bytes(1_000_000))
        assert is_clear(refused.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10077),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_told = st.fixed_dictionaries(
    {},
    optional={
        "stream": _json,
        "seq": _json,
        "error": st.fixed_dictionaries({}, optional={"code": _json, "err_code": _json, "description": _json})
        | _json,
    },
)
_answers = st.one_of(
    mistaken(_told.map(lambda told: json.dumps(told).encode())),
    mistaken(st.sampled_from([_ACK, b'{"error":{"code":429,"err_code":10167,"description":"x"}}'])),
    st.sampled_from([b"[" * 3000, b'{"stream":' * 2000]),
)


@fuzzed(500)
@given(mistaken(st.sampled_from([b"", b"NATS/1.0 503\r\n\r\n"])), _answers)
def test_nats_answers(headers: bytes, data: bytes) -> None:
    """Whatever was answered has a meaning; it confirms only where a stream has said so."""
    with in_time():
        error = nats_error(headers, data)
        if error is None:
            assert b'"stream"' in data
            assert b'"seq"' in data or data.startswith(b'{"stream":')
        else:
            assert isinstance(nats_classified(error), Exception)


_commands = st.sampled_from(
    [b"INSERTED 12", b"BURIED 12", b"BURIED", b"OUT_OF_MEMORY", b"DRAINING", b"JOB_TOO_BIG", b"EXPECTED_CRLF"]
) | st.sampled_from(
    [b"BURIED 1 2", b"BURIED " + b"9" * 5000, b"UNKNOWN_COMMAND", b"USING x", b"", b"inserted 1"]
)


@fuzzed(400)
@given(mistaken(_commands))
def test_beanstalkd_answers(answer: bytes) -> None:
    """Whatever was answered confirms, or has an error that says what it means."""
    with in_time():
        error = beanstalkd_error(answer)
        if error is None:
            assert answer.startswith(b"INSERTED ")
        else:
            assert isinstance(error, greenstalk.Error)
            assert isinstance(beanstalkd.classified(error), Exception)


class FakeAmqp:
    """A connection whose broker does what the test says, and the channel on it as pika has it."""

    frame_max = 4096

    def __init__(self) -> None:
        self.calls: dict[str, Callable[..., Any]] = {}

    def open_channel(self, number: int, opened: Callable[[Any], None]) -> Any:
        self.calls = {"opened": opened}
        return self

    def open(self) -> None:
        """The broker has opened the channel, unless it was open."""
        if (opened := self.calls.pop("opened", None)) is not None:
            opened(self)

    def has_room(self) -> bool:
        return True

    def write(self, data: memoryview) -> None:
        pass

    def channel_ready(self) -> None:
        pass

    def pump_soon(self) -> None:
        pass

    def queue_declare(self, *_: object, **__: object) -> None:
        pass

    def add_on_close_callback(self, call: Callable[..., Any]) -> None:
        self.calls["closed"] = call

    def add_on_return_callback(self, call: Callable[..., Any]) -> None:
        self.calls["returned"] = call

    def confirm_delivery(self, confirmed: Callable[..., Any], ready: Callable[..., Any]) -> None:
        self.calls["confirmed"] = confirmed
        ready(None)


class Once(Confirmation):
    """Settled once, or the test fails."""

    settled = 0

    def settle(self, position: int, error: Exception | None) -> None:
        self.settled += 1
        super().settle(position, error)


_tags = st.sampled_from([0, 1, 1, 2, 3, 4, 7, 1000, 2**31, 2**63, 2**64 - 1])
_texts = st.sampled_from(
    [
        "",
        "x",
        "message size 9 is larger than max size 5",
        "message size 9 is larger than max size " + "9" * 200,
    ]
) | st.sampled_from(
    ["inequivalent arg for queue 'localdelay.q.5'", "queue limit in vhost '/' (5) is reached", "\n\x00"]
)
_broken_amqp: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 6), st.sampled_from([0, 0, 5, 60])),
        st.tuples(st.sampled_from(["ack", "nack"]), _tags, st.booleans()),
        st.tuples(st.just("return"), st.sampled_from([None, "1", "2", 5, b"x", {}]), _texts),
        st.tuples(st.just("close"), st.sampled_from([0, 311, 403, 404, 406, 506, 99999]), _texts),
    ),
    max_size=12,
)


@fuzzed(500)
@given(_broken_amqp)
def test_amqp_confirms(told: list[tuple[Any, ...]]) -> None:
    """Whatever the broker says, each message is settled once, at the latest when its time is over."""
    world = FakeAmqp()
    channel = ConfirmedChannel(world, 1, "q", "classic")
    confirmations: list[Once] = []
    with in_time():
        for what, first, second in told:
            if what == "send":
                message = Message(str(len(confirmations) + 1), bytes(first), 0.0)
                confirmations.append(Once())
                channel.outbox.append(Publish(message, confirmations[-1], 0, 0.0, 10.0, second))
            elif "confirmed" in world.calls:
                _tell(world, what, first, second)
            channel.pump()
            world.open()
            channel.pump()
        channel.expire(10.0, TimeoutError, TimeoutError)
    assert channel.next_deadline() == math.inf, "nobody waits for it any more, and it is not settled"
    assert [confirmation.settled for confirmation in confirmations] == [1] * len(confirmations)


def _tell(world: FakeAmqp, what: str, first: Any, second: Any) -> None:
    if what == "ack":
        world.calls["confirmed"](frame.Method(1, spec.Basic.Ack(first, second)))
    elif what == "nack":
        world.calls["confirmed"](frame.Method(1, spec.Basic.Nack(first, second)))
    elif what == "return":
        headers = None if first is None else {ID: first}
        method = spec.Basic.Return(312, second, "", "q")
        world.calls["returned"](world, method, spec.BasicProperties(headers=headers), b"")
    else:
        world.calls["closed"](world, ChannelClosedByBroker(first, second))


# --- what is put on the wire

_any_headers = st.dictionaries(
    st.sampled_from(["a", "A-b", "", "a b", "a:b", "ü", "x" * 300, "CC", ID, "payload", "a\r\nb", "\x00"])
    | texts,
    st.text(max_size=6) | st.sampled_from(["\r\n", "x\r\nLocaldelay-Id: y", " x ", "\x00", "\ud800"]),
    max_size=3,
)
_any_messages = st.builds(
    Message,
    id=printable | st.sampled_from([" a", "a" * 300, "a\r\nb", "\ud800", ""]),
    payload=st.binary(max_size=30),
    execute_at=st.floats(0, 1e9),
    headers=_any_headers.map(MappingProxyType),
    attempt=st.integers(1, 10**6),
)


@fuzzed(300)
@given(_any_messages)
def test_nats_headers(message: Message) -> None:
    """No id or header can be taken for another one: they are read back as they were, or refused for good."""
    try:
        sent = header_lines(message.id, message.attempt, "then", message.headers)
    except PermanentSendError as error:
        assert is_clear(error)
        return
    first, *read, end, nothing = sent.decode().split("\r\n")
    assert (first, end, nothing) == ("NATS/1.0", "", "")
    own = {ID: message.id, ATTEMPT: str(message.attempt), EXECUTE_AT: "then"}
    expected = {**{name: value for name, value in message.headers.items() if name not in own}, **own}
    assert dict(line.split(": ", 1) for line in read) == expected


@fuzzed(300)
@given(_any_messages, st.sampled_from([200, 1000, 4096]))
def test_amqp_frames(message: Message, frame_max: int) -> None:
    """Our frames are read by pika as what the message is, or it was refused for good."""
    try:
        sent = b"".join(content_frames(1, message, 1e9, frame_max))
    except PermanentSendError as error:
        assert is_clear(error)
        return
    read: list[Any] = []
    while sent:
        count, one = frame.decode_frame(sent)
        assert 0 < count <= frame_max
        sent = sent[count:]
        read.append(one)
    own = {ID: message.id, ATTEMPT: str(message.attempt)}
    headers = dict(read[0].properties.headers)
    assert headers.pop(EXECUTE_AT) == "2001-09-09T01:46:40.000000+00:00"
    others = {name: value for name, value in message.headers.items() if name not in (*own, EXECUTE_AT)}
    assert headers == {**others, **own}
    assert b"".join(body.fragment for body in read[1:]) == message.payload
    assert read[0].body_size == len(message.payload)


@fuzzed(200)
@given(_any_messages)
def test_redis_and_kafka_fields(message: Message) -> None:
    """What travels besides the payload has each header once, or the message is refused for good."""

    async def fields() -> list[bytes]:
        return redis.fields_of(message)[0]

    others = {name: value for name, value in message.headers.items() if name not in (ID, ATTEMPT, EXECUTE_AT)}
    try:
        found = trio.run(fields)
    except PermanentSendError as error:
        assert is_clear(error)
    else:
        names = found[::2]
        assert len(set(names)) == len(names) == 3 + len(others)
        assert b"payload" not in names
    try:
        sent = kafka.kafka_headers(message, 0.0)
    except (PermanentSendError, UnicodeEncodeError):
        return
    assert dict(sent[3:]) == {name: value.encode() for name, value in others.items()}


# --- brokers that break in the midst of a conversation


class NatsServer:
    """Says what a sound server says. It speaks with one client."""

    greeting = b'INFO {"server_id":"F","version":"2.15.0","headers":true,"max_payload":1000}\r\n'

    def size(self, buffer: bytes) -> int:
        """Bytes of the first thing that the client has said; 0 where not all of it is there."""
        line, end, _ = buffer.partition(b"\r\n")
        words = line.split()
        size = len(line) + 2 + (int(words[-1]) + 2 if words and words[0] == b"HPUB" else 0)
        return size if end and size <= len(buffer) else 0

    def reply(self, said: bytes) -> tuple[bytes, bool]:
        """What to answer, and whether that is a confirmation."""
        words = said.split(b"\r\n")[0].split()
        if words[0] == b"HPUB":
            self.inbox = words[2]
            return _msg(words[2], _ACK), True
        return b"PONG\r\n" if words[0] == b"PING" else b"", False

    def wrong(self, garbage: bytes) -> bytes:
        """The garbage, for this client."""
        return garbage.replace(_INBOX + b".1", self.inbox)


class BeanstalkdServer:
    """Likewise."""

    greeting = b""

    def size(self, buffer: bytes) -> int:
        line, end, _ = buffer.partition(b"\r\n")
        size = len(line) + 2 + (int(line.split()[4]) + 2 if line.startswith(b"put") else 0)
        return size if end and size <= len(buffer) else 0

    def reply(self, said: bytes) -> tuple[bytes, bool]:
        return (b"USING q\r\n", False) if said.startswith(b"use") else (b"INSERTED 1\r\n", True)

    def wrong(self, garbage: bytes) -> bytes:
        return garbage + b"\r\n"


class RabbitServer:
    """Likewise."""

    greeting = b""
    published = 0
    answers: Mapping[type, tuple[int, Any]] = {
        spec.Connection.StartOk: (0, spec.Connection.Tune(10, 131_072, 0)),
        spec.Connection.Open: (0, spec.Connection.OpenOk()),
        spec.Connection.Close: (0, spec.Connection.CloseOk()),
        spec.Channel.Open: (1, spec.Channel.OpenOk()),
        spec.Channel.Close: (1, spec.Channel.CloseOk()),
        spec.Confirm.Select: (1, spec.Confirm.SelectOk()),
    }

    def size(self, buffer: bytes) -> int:
        count: int = frame.decode_frame(buffer)[0]
        return count

    def reply(self, said: bytes) -> tuple[bytes, bool]:
        one = frame.decode_frame(said)[1]
        if isinstance(one, frame.ProtocolHeader):
            known = {"capabilities": {"publisher_confirms": True, "basic.nack": True}}
            return frame.Method(0, spec.Connection.Start(server_properties=known)).marshal(), False
        if isinstance(one, frame.Body):
            self.published += 1
            return _amqp(spec.Basic.Ack(self.published)), True
        channel, method = self.answers.get(type(getattr(one, "method", None)), (0, None))
        return (frame.Method(channel, method).marshal() if method else b""), False

    def wrong(self, garbage: bytes) -> bytes:
        return garbage


def _amqp(*methods: Any) -> bytes:
    return b"".join(frame.Method(1, method).marshal() for method in methods)


_amqp_return = (
    _amqp(spec.Basic.Return(312, "NO_ROUTE", "", "q"))
    + frame.Header(1, 1, spec.BasicProperties(headers={ID: "x"})).marshal()
    + frame.Body(1, b"x").marshal()
)
_amqp_told = st.lists(
    st.sampled_from(
        [_amqp(spec.Basic.Ack(1)), _amqp(spec.Basic.Ack(2**64 - 1, True)), _amqp(spec.Basic.Nack(1))]
    )
    | st.sampled_from(
        [_amqp_return, _amqp(spec.Channel.Close(406, "x", 60, 40)), frame.Heartbeat().marshal()]
    )
    | st.sampled_from(
        [frame.Method(0, spec.Connection.Blocked("memory")).marshal(), _amqp(spec.Connection.Tune(1, 2, 3))]
    )
    | st.sampled_from(
        [frame.Method(0, spec.Connection.Close(320, "bye", 0, 0)).marshal(), b"AMQP\x00\x00\x09\x01"]
    ),
    min_size=1,
    max_size=3,
).map(b"".join)
_SERVERS: dict[str, tuple[Callable[[], Any], st.SearchStrategy[bytes]]] = {
    "nats": (NatsServer, mistaken(_frames)),
    "beanstalkd": (BeanstalkdServer, mistaken(_commands)),
    "amqp": (RabbitServer, mistaken(_amqp_told)),
}


async def _converse(make: Callable[[], Any], garbage: list[bytes], stream: trio.SocketStream) -> None:
    """Be a server that answers the first publish with what is not what it should be, and hangs up."""
    server, buffer = make(), b""
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(server.greeting)
            while received := await stream.receive_some():
                buffer += received
                while size := server.size(buffer):
                    answer, confirms = server.reply(buffer[:size])
                    buffer = buffer[size:]
                    if confirms and garbage:
                        await stream.send_all(server.wrong(garbage.pop()))
                        return
                    await stream.send_all(answer)


@pytest.mark.parametrize("scheme", _SERVERS)
@fuzzed(12)
@given(data=st.data())
def test_a_broker_that_says_nonsense_and_hangs_up(
    caplog: pytest.LogCaptureFixture, scheme: str, data: st.DataObject
) -> None:
    """The send ends as any other does, the block goes on, and the next send finds the broker mended."""
    make, answers = _SERVERS[scheme]
    handle = partial(_converse, make, [data.draw(answers)])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            with trio.fail_after(60):
                async with open_broker(f"{scheme}://127.0.0.1:{port}/q") as broker:
                    message = Message("x", b"payload", trio.current_time())
                    try:
                        await broker.send(message)
                    except Exception as error:  # noqa: BLE001 (whose it is, is what matters)
                        known = (OSError, LocalDelayError, greenstalk.Error, nats.errors.Error)
                        assert isinstance(error, known), error
                    await _send_until_taken(broker, message)
            nursery.cancel_scope.cancel()

    caplog.clear()
    with in_time(20):
        trio.run(main)
    ours = [record for record in caplog.records if record.name.startswith("localdelay")]
    assert all(record.levelno < logging.ERROR for record in ours), "it is no error here"


async def _send_until_taken(broker: Broker, message: Message) -> None:
    while True:
        try:
            await broker.send(message)
        except (ConnectionError, Throttled):
            await trio.sleep(0.01)  # the connection is lost, or about to be
        else:
            return
