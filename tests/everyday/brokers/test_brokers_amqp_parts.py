"""The parts of the RabbitMQ broker that need none: what errors mean, frames, and delays."""

from __future__ import annotations

import random
import socket
import ssl
from types import SimpleNamespace

import pika
import pika.exceptions
import pytest
import trio
from pika import frame, spec
from pika.adapters.blocking_connection import ReturnedMessage
from pika.adapters.utils import connection_workflow

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers.address import Address
from localdelay.brokers.amqp import LONGEST_CONFIRM_TIMEOUT, driver_at, header_frame
from localdelay.brokers.amqp_channel import DECLARED_FOR, Publish, Target
from localdelay.brokers.amqp_delays import LEASE_MARGIN, delay_arguments, delay_queue, quantised
from localdelay.brokers.amqp_errors import classified, lost, reason
from localdelay.brokers.amqp_session import Session, _Stream
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ID

RETURNED = ReturnedMessage(spec.Basic.Return(312, "NO_ROUTE", "", "orders"), spec.BasicProperties(), b"")


def closed_channel(code: int, text: str) -> Exception:
    error: Exception = pika.exceptions.ChannelClosedByBroker(code, text)
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (pika.exceptions.NackError([spec.Basic.Nack()]), Throttled),
        (pika.exceptions.ConnectionBlockedTimeout("low on memory"), Throttled),
        (closed_channel(406, "cannot declare queue 'q': queue limit in vhost '/' (3) is reached"), Throttled),
        (closed_channel(506, "RESOURCE_ERROR"), Throttled),
        (pika.exceptions.UnroutableError([RETURNED]), PermanentSendError),
        (closed_channel(311, "CONTENT_TOO_LARGE"), PermanentSendError),
        (closed_channel(403, "ACCESS_REFUSED - access to exchange 'amq.default'"), PermanentSendError),
        (closed_channel(404, "NOT_FOUND - no exchange"), PermanentSendError),
        (closed_channel(406, "message size 2 is larger than max size 1"), PermanentSendError),
        (closed_channel(406, "PRECONDITION_FAILED - inequivalent arg 'x-expires'"), PermanentSendError),
        (pika.exceptions.ShortStringTooLong(b"x" * 256), PermanentSendError),
        (pika.exceptions.UnsupportedAMQPFieldException([], object()), PermanentSendError),
        (pika.exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), ConnectionError),
        (pika.exceptions.StreamLostError("Transport indicated EOF"), ConnectionError),
        (pika.exceptions.AMQPHeartbeatTimeout("No activity"), ConnectionError),
        (closed_channel(405, "RESOURCE_LOCKED"), None),
        (closed_channel(541, "INTERNAL_ERROR"), None),
        (pika.exceptions.ChannelWrongStateError("Channel is closed."), None),
        (ValueError("something else"), None),
        (TimeoutError("too slow"), None),
    ],
    ids=repr,
)  # fmt: skip
def test_what_an_error_means(error: Exception, meaning: type[Exception] | None) -> None:
    """Throttled, permanent or a lost connection; else the error itself."""
    classed = classified(error)
    if meaning is None:
        assert classed is error
    else:
        assert type(classed) is meaning
        assert "\n" not in str(classed)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (
            pika.exceptions.AMQPConnectionError(
                connection_workflow.AMQPConnectionWorkflowFailed(
                    [
                        OSError("the first address"),
                        connection_workflow.AMQPConnectorSocketConnectError(OSError(113, "No route to host")),
                    ]
                )
            ),
            "No route to host",
        ),
        (
            pika.exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED\nbye"),
            "320 CONNECTION_FORCED bye",
        ),
        (ssl.SSLError(1, "[SSL] wrong\nversion"), "[SSL] wrong version"),
        (pika.exceptions.StreamLostError(), "StreamLostError"),
        (ValueError("a", 1), "a: 1"),
        (ValueError("x" * 1000), "x" * 500),
    ],
)
def test_the_reason_is_one_line(error: Exception, told: str) -> None:
    """Out of what pika wraps it into, on one line of bounded length."""
    assert reason(error) == told
    assert told in str(lost(error))
    assert lost(error).__cause__ is error


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [
        (0.0, 0), (1e-10, 0), (1e-6, 1), (0.001, 1), (0.0011, 2), (0.999, 999), (0.9991, 1000), (1.0, 1000),
        (1.001, 1010), (1.11, 1110), (2.3, 2300), (9.99, 9990), (9.991, 10_000), (119.9, 120_000),
        (120, 120_000), (120.001, 121_000), (3600, 3_600_000), (86_400 * 30, 2_600_000_000),
    ],
)  # fmt: skip
def test_a_delay_is_rounded_up(delay: float, milliseconds: int) -> None:
    """To three significant digits of whole milliseconds."""
    assert quantised(delay) == milliseconds


def test_rounding_is_at_most_one_percent_and_there_are_few_queues() -> None:
    """Never less, at most 1 % or a millisecond more, and at most 900 different ones a decade."""
    seed = 5
    print("seed", seed)
    chosen = random.Random(seed)
    for _ in range(5000):
        delay = 10 ** chosen.uniform(-4, 6)
        rounded = quantised(delay) / 1000
        assert delay - 1e-9 <= rounded <= max(delay * 1.01, delay + 0.001)
        assert quantised(rounded) == quantised(delay)
    assert len({quantised(milliseconds / 1000) for milliseconds in range(10_000, 100_000, 7)}) <= 901


@pytest.mark.parametrize("delay", [1e12, 1e300, 86_400 * 3650.0, 315_000_001.0])
def test_no_delay_is_over_ten_years(delay: float) -> None:
    """What RabbitMQ would refuse by closing the channel."""
    with pytest.raises(PermanentSendError, match="longest delay"):
        quantised(delay)


def test_a_delay_queue_outlives_what_is_in_it() -> None:
    """A message is in it at most so long after its declaration as the queue lives longer than the delay."""
    assert DECLARED_FOR + LONGEST_CONFIRM_TIMEOUT < LEASE_MARGIN - 60
    for type in ("classic", "quorum"):
        arguments = delay_arguments("orders", 120_000, type)
        assert arguments["x-message-ttl"] == 120_000
        assert arguments["x-expires"] == 120_000 + LEASE_MARGIN * 1000
        assert arguments["x-dead-letter-routing-key"] == "orders"
        assert arguments["x-overflow"] == "reject-publish"
    # Two that differ must not share a name: the second declaration would be refused.
    assert delay_queue("orders", 120_000, "classic") == "localdelay.orders.120000"
    assert delay_queue("orders", 120_000, "quorum") == "localdelay.orders.120000.quorum"
    assert delay_arguments("q", 1, "quorum")["x-dead-letter-strategy"] == "at-least-once"


def encoded(message: Message) -> Publish:
    content: Publish = driver_at(Address("amqp", (("127.0.0.1", 5672),), "orders")).encode(message, None, 0.0)
    return content


async def test_a_long_id_travels_in_the_headers() -> None:
    """The property has room for 255 bytes; the header is always there."""
    for id, in_property in (("x" * 255, True), ("x" * 256, False)):
        properties = frame.decode_frame(encoded(Message(id, b"", trio.current_time())).header)[1].properties
        assert properties.headers[ID] == id
        assert properties.message_id == (id if in_property else None)
        assert properties.delivery_mode == 2


@pytest.mark.parametrize("id", ["m1", "ü" * 127, "x" * 256, ""])
@pytest.mark.parametrize("headers", [{}, {"kind": "close", "ö" * 127: "€" * 70_000, "": ""}])
async def test_properties_are_written_as_by_pika(id: str, headers: dict[str, str]) -> None:
    """Byte for byte: ours are only quicker."""
    headers = {**headers, ID: id}
    in_property = id if len(id.encode()) <= 255 else None
    pikas = pika.BasicProperties(headers=headers, delivery_mode=2, message_id=in_property)
    assert header_frame(2, 70_000, headers, id.encode()) == frame.Header(2, 70_000, pikas).marshal()


@pytest.mark.parametrize(
    ("id", "headers"),
    [("a", {"x" * 256: ""}), ("a", {"CC": "other"}), ("a", {"name": "x" * 131_072}), ("x" * 131_072, {})],
)
async def test_what_amqp_can_not_carry_is_permanent(id: str, headers: dict[str, str]) -> None:
    """It is refused before anything is written, and without being shown."""
    with pytest.raises(PermanentSendError) as raised:
        encoded(Message(id, b"", trio.current_time(), headers))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay_queue": "lazy"}, "delay_queue must be quorum or classic"),
        ({"heartbeat": "-1"}, "heartbeat must be a whole number"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, str], says: str) -> None:
    """A ValueError, before anything is connected."""
    with pytest.raises(ValueError, match=says):
        driver_at(Address("amqp", (("127.0.0.1", 5672),), "orders", options=options))


async def test_what_comes_at_the_end_of_a_stream_is_for_the_next_connection() -> None:
    """Its end reaches pika some turns of the loop later; what was written meanwhile would be ambiguous."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    session = Session(Target("orders", "classic"), Outbox(classified, 1, 1), lambda _: None)
    session.connection = SimpleNamespace(is_open=True)
    session._stream = stream = _Stream(ours, session)
    session.write([])
    theirs.close()
    assert isinstance(await stream.lost(), ConnectionError)
    with pytest.raises(ConnectionError, match="it has ended"):
        session.write([])
    stream.close()
