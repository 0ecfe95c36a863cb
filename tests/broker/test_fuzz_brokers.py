"""What a broken broker could send, and what is put on the wire: clear errors only, in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import greenstalk
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.exceptions import ChannelClosedByBroker

from localdelay import Message, PermanentSendError
from localdelay.brokers import amqp, beanstalkd, kafka, redis
from localdelay.brokers.address import Address
from localdelay.brokers.amqp_channel import Channel, Publish, Target
from localdelay.brokers.beanstalkd import answer_error as beanstalkd_error
from localdelay.brokers.line import OutOfStep
from localdelay.brokers.nats import header_lines
from localdelay.brokers.nats_answers import Frame, frames
from localdelay.brokers.nats_answers import answer_error as nats_error
from localdelay.brokers.nats_answers import classified as nats_classified
from localdelay.brokers.outbox import Gauges, Outbox, Sending
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, headers_of
from tests.kit.fuzzing import (
    ACK,
    answers_of_beanstalkd,
    frames_of_nats,
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


def _fed(received: list[bytes]) -> tuple[list[Frame], bytes, bool]:
    """Frames, the rest, and whether it was refused."""
    found: list[Frame] = []
    rest = b""
    for piece in received:
        try:
            more, rest = frames(rest + piece)
        except OutOfStep as error:
            assert is_clear(error)
            return found, rest, True
        found += more
    return found, rest, False


@fuzzed(1000)
@given(mistaken(frames_of_nats), some_cuts)
def test_nats_frames(received: bytes, cuts: list[int]) -> None:
    """A broken stream is taken apart or refused, and the same however it was cut."""
    with in_time():
        whole = _fed([received])
        cut = _fed(pieces(received, cuts))
    assert cut[2] == whole[2]
    if not whole[2]:
        assert cut == whole
    for said in cut[0]:
        error = nats_error(said.headers, said.data)
        assert error is None or isinstance(error, Exception)


def test_nats_frames_have_an_end() -> None:
    """A frame announced as endless, or a line without an end, is refused before it fills the memory."""
    for begin in (b"MSG x 1 999999999999\r\n", b"INFO "):
        rest = begin
        with in_time(30), pytest.raises(OutOfStep, match="frame") as refused:
            for _ in range(200):
                _, rest = frames(rest + bytes(1_000_000))
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
    mistaken(st.sampled_from([ACK, b'{"error":{"code":429,"err_code":10167,"description":"x"}}'])),
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


@fuzzed(400)
@given(mistaken(answers_of_beanstalkd))
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
    """A connection of pika's whose broker does what the test says, with the session that it belongs to."""

    is_open = True

    def __init__(self, outbox: Outbox) -> None:
        self.connection: Any = self
        self.outbox = outbox
        self.target = Target("q", "classic")
        self.opened: FakeChannel | None = None
        self._soon: list[Callable[[], None]] = []

    def channel(self, number: int, on_open: Callable[[Any], None]) -> FakeChannel:
        self._soon.append(partial(self._open, opening := FakeChannel(), on_open))
        return opening

    def _open(self, channel: FakeChannel, on_open: Callable[[Any], None]) -> None:
        self.opened = channel
        on_open(channel)

    def channel_ready(self) -> None:
        pass

    def put(self, frames: bytes) -> None:
        pass

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def turn(self) -> None:
        """What was to be done soon."""
        while self._soon:
            self._soon.pop(0)()

    def tell(self, what: str, first: Any, second: Any) -> None:
        """The broker says something on the channel that is open."""
        channel = self.opened
        if channel is None:
            return
        if what == "return":
            properties = spec.BasicProperties(headers=None if first is None else {ID: first})
            channel.returned(channel, spec.Basic.Return(312, second, "", "q"), properties, b"")
        elif what == "close":
            self.opened = None
            channel.is_open = False
            channel.closed(channel, ChannelClosedByBroker(first, second))
        else:
            kind = spec.Basic.Ack if what == "ack" else spec.Basic.Nack
            channel.confirmed(frame.Method(1, kind(first, second)))


class FakeChannel:
    """A channel on it."""

    is_open = True
    confirmed: Callable[..., Any]
    returned: Callable[..., Any]
    closed: Callable[..., Any]

    def add_on_close_callback(self, call: Callable[..., Any]) -> None:
        self.closed = call

    def add_on_return_callback(self, call: Callable[..., Any]) -> None:
        self.returned = call

    def confirm_delivery(self, confirmed: Callable[..., Any], ready: Callable[..., Any]) -> None:
        self.confirmed = confirmed
        ready(None)

    def queue_declare(self, *_: object, **__: object) -> None:
        pass


class Ends(Sending):
    """What a message has come to, each time."""

    def __init__(self, outbox: Outbox) -> None:
        self.ends: list[Exception | None] = []
        self._error: Exception | None = None
        super().__init__(outbox)

    def fail(self, position: int, error: Exception) -> None:
        self._error = error

    @property
    def unsettled(self) -> int:
        return 1 - len(self.ends)

    @unsettled.setter
    def unsettled(self, count: int) -> None:
        if count < 1:
            self.ends.append(self._error)


_tags = st.sampled_from([0, 1, 1, 2, 3, 4, 7, 1000, 2**31, 2**63, 2**64 - 1])
_texts = st.sampled_from(
    [
        "",
        "x",
        "message size 9 is larger than max size 5",
        "message size 9 is larger than max size " + "9" * 200,
        "inequivalent arg for queue 'localdelay.q.5'",
        "queue limit in vhost '/' (5) is reached",
        "\n\x00",
    ]
)
_broken_amqp: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([0, 5, 9]), st.sampled_from([0, 0, 5, 60])),
        st.tuples(st.just("send"), st.sampled_from([0, 5, 9]), st.just(0)),
        st.tuples(st.just("close"), st.just(406), st.just("message size 9 is larger than max size 5")),
        st.tuples(st.sampled_from(["ack", "nack"]), _tags, st.booleans()),
        st.tuples(st.just("return"), st.sampled_from([None, "1", "2", 5, b"x", {}]), _texts),
        st.tuples(st.just("close"), st.sampled_from([0, 311, 403, 404, 406, 506, 99999]), _texts),
    ),
    max_size=12,
)


@fuzzed(500)
@given(_broken_amqp)
def test_amqp_confirms(told: list[tuple[Any, ...]]) -> None:
    """Whatever the broker says, each message is settled once, at the latest when it confirms all at last."""

    async def scene() -> None:
        outbox = Outbox(lambda error: error, 1000, 10**9)
        world = FakeAmqp(outbox)
        channel = Channel(world, 1)
        sendings: list[Ends] = []

        def turn() -> None:
            channel.publish(outbox.take(0.0))
            world.turn()

        for what, first, second in told:
            if what == "send":
                sendings.append(Ends(outbox))
                id = str(len(sendings))
                content = Publish(id, b"", bytes(first), second)
                message = Message(id, content.payload, 0.0)
                outbox.put(outbox.parcel(message, content, sendings[-1], 0, 0.0))
            else:
                world.tell(what, first, second)
            turn()
        if not any(what == "ack" for what, *_ in told):
            assert not any(None in sending.ends for sending in sendings), "nobody has confirmed it"
        for _ in range(3):  # what was returned is published again
            world.tell("ack", 0, True)
            turn()
        assert [len(sending.ends) for sending in sendings] == [1] * len(sendings)
        assert outbox.gauges() == Gauges(0, 0, 0)

    with in_time():
        trio.run(scene)


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
        sent = header_lines(headers_of(message, 0.0, "then"))
    except (PermanentSendError, UnicodeEncodeError) as error:
        assert is_clear(error)
        return
    first, *read, end, nothing = sent.decode().split("\r\n")
    assert (first, end, nothing) == ("NATS/1.0", "", "")
    own = {ID: message.id, ATTEMPT: str(message.attempt), EXECUTE_AT: "then"}
    assert dict(line.split(": ", 1) for line in read) == {**message.headers, **own}


@fuzzed(300)
@given(_any_messages)
def test_amqp_headers(message: Message) -> None:
    """What pika writes of them is read by pika as what the message is, or it was refused for good."""
    driver = amqp.driver_at(Address("amqp", (("host", 1),), "q"))

    async def encoded() -> Publish:
        publish: Publish = driver.encode(message, None, 0.0)
        return publish

    try:
        header = trio.run(encoded).header
        length, read = frame.decode_frame(header)
    except (PermanentSendError, UnicodeEncodeError) as error:
        assert is_clear(error)
        return
    assert (length, read.body_size) == (len(header), len(message.payload))
    own = {ID: message.id, ATTEMPT: str(message.attempt)}
    headers = dict(read.properties.headers)
    headers.pop(EXECUTE_AT)
    others = {name: value for name, value in message.headers.items() if name not in (*own, EXECUTE_AT)}
    assert headers == {**others, **own}


@fuzzed(200)
@given(_any_messages)
def test_redis_and_kafka_fields(message: Message) -> None:
    """What travels has the payload and each header once, or the message is refused for good."""

    async def fields() -> list[bytes]:
        driver = redis.driver_at(Address("redis", (("host", 1),), "s"))
        _, _, *fields = driver.encode(message, None, 0.0).serialized_arguments
        return fields

    async def headers() -> list[tuple[str, bytes]]:
        return kafka.kafka_headers(message, 0.0)

    others = {name: value for name, value in message.headers.items() if name not in (ID, ATTEMPT, EXECUTE_AT)}
    try:
        found = trio.run(fields)
    except (PermanentSendError, UnicodeEncodeError) as error:
        assert is_clear(error)
    else:
        names = found[::2]
        assert len(set(names)) == len(names) == 4 + len(others)
        assert names[0] == b"payload"
    try:
        sent = trio.run(headers)
    except (PermanentSendError, UnicodeEncodeError):
        return
    assert dict(sent[3:]) == {name: value.encode() for name, value in others.items()}
