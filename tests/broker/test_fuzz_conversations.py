"""Brokers that break in the midst of a conversation: clear errors only, in time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import greenstalk
import nats.errors
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from localdelay import LocalDelayError, Message, Throttled
from localdelay.brokers import Broker, open_broker
from localdelay.brokers.wire import ID
from tests.kit.fuzzing import (
    ACK,
    INBOX,
    answers_of_beanstalkd,
    frames_of_nats,
    fuzzed,
    in_time,
    mistaken,
    msg,
)


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
            return msg(words[2], ACK), True
        return b"PONG\r\n" if words[0] == b"PING" else b"", False

    def wrong(self, garbage: bytes) -> bytes:
        """The garbage, for this client."""
        return garbage.replace(INBOX + b".1", self.inbox)


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
    "nats": (NatsServer, mistaken(frames_of_nats)),
    "beanstalkd": (BeanstalkdServer, mistaken(answers_of_beanstalkd)),
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
