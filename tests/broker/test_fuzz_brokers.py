"""What a broken broker could send, and what is put on the wire: clear errors only, in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import greenstalk
import trio
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.exceptions import ChannelClosedByBroker

from localdelay import Message, PermanentSendError
from localdelay.brokers import beanstalkd, kafka, redis
from localdelay.brokers.beanstalkd import answer_error as beanstalkd_error
from localdelay.brokers.nats import header_lines
from localdelay.brokers.nats_answers import answer_error as nats_error
from localdelay.brokers.nats_answers import classified as nats_classified
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, headers_of
from tests.kit.fuzzing import (
    ACK,
    answers_of_beanstalkd,
    fuzzed,
    in_time,
    is_clear,
    mistaken,
    printable,
    texts,
)

# --- what a broken broker could send


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
@given(st.sampled_from([None, {"Status": "503"}, {"Status": "x"}]), _answers)
def test_nats_answers(headers: dict[str, str] | None, data: bytes) -> None:
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
        sent = header_lines(headers_of(message, "then"))
    except (PermanentSendError, UnicodeEncodeError) as error:
        assert is_clear(error)
        return
    first, *read, end, nothing = sent.decode().split("\r\n")
    assert (first, end, nothing) == ("NATS/1.0", "", "")
    own = {ID: message.id, ATTEMPT: str(message.attempt), EXECUTE_AT: "then"}
    assert dict(line.split(": ", 1) for line in read) == {**message.headers, **own}


@fuzzed(200)
@given(_any_messages)
def test_redis_and_kafka_fields(message: Message) -> None:
    """What travels besides the payload has each header once, or the message is refused for good."""

    async def fields() -> list[bytes]:
        return redis.fields_of(message)[0]

    async def headers() -> list[tuple[str, bytes]]:
        return kafka.kafka_headers(message)

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
        sent = trio.run(headers)
    except (PermanentSendError, UnicodeEncodeError):
        return
    assert dict(sent[3:]) == {name: value.encode() for name, value in others.items()}
