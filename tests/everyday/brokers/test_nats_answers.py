"""What NATS's answers mean, and which headers it can carry."""

from __future__ import annotations

from types import MappingProxyType

import nats.errors
import nats.js.errors
import pytest

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers.nats import header_lines
from localdelay.brokers.nats_answers import answer_error, classified, refused_by
from localdelay.brokers.wire import ID, headers_of

ACK = b'{"stream":"S", "seq":7}'
NOBODY = b"NATS/1.0 503\r\n\r\n"


def lines(id: str, headers: dict[str, str]) -> bytes:
    """What a message with this id and these headers goes out with."""
    return header_lines(headers_of(Message(id, b"", 0.0, headers=MappingProxyType(headers)), 0.0, "2026"))


def test_headers_are_what_the_protocol_says() -> None:
    """The three are said by this library, whatever a message has under their names."""
    assert lines("a b", {"Trace": "ü", ID: "forged"}) == (
        b"NATS/1.0\r\nLocaldelay-Id: a b\r\nLocaldelay-Attempt: 1\r\nLocaldelay-Execute-At: 2026\r\n"
        b"Trace: \xc3\xbc\r\n\r\n"
    )


@pytest.mark.parametrize("id", ["two\nlines", "two\rlines", " blank", "blank\t"])
def test_an_id_that_no_header_keeps_is_permanent(id: str) -> None:
    """An id that would arrive as another one is refused."""
    with pytest.raises(PermanentSendError, match="id"):
        lines(id, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bad:name", "x"),
        ("", "x"),
        ("a b", "x"),
        ("ü", "x"),
        ("A\r\nPUB x 0", "x"),
        ("A", "b\nc"),
        ("A", "\r"),
    ],
)
def test_a_header_that_nats_cannot_carry_is_permanent(name: str, value: str) -> None:
    """Nothing is left out or changed in silence, and nothing gets into the protocol that way."""
    with pytest.raises(PermanentSendError, match="header"):
        lines("a", {name: value})


def test_a_puback_confirms() -> None:
    """Also one that says more than it must, in whatever order, and of a stream of an awkward name."""
    for data in (
        ACK,
        b'{"seq": 1, "stream": "S"}',
        b'{"type":"x","stream":"S","domain":"hub","seq":2,"duplicate":true}',
        b'{"stream":"error","seq":1}',
        b'{"stream":"\\"error\\"","seq":1}',
    ):
        assert answer_error(b"", data) is None, data


def test_nobody_there_is_the_clients_own_error() -> None:
    """A 503 without a body is what nats-py calls it."""
    assert isinstance(answer_error(NOBODY, b""), nats.js.errors.NoStreamResponseError)


@pytest.mark.parametrize("data", [b"", b"OK", b"{}", b"[]", b"1", b'{"error":"x"}', b"\xff"])
def test_what_is_no_puback_confirms_nothing(data: bytes) -> None:
    """Something else has answered: nobody knows that the message was stored."""
    error = answer_error(b"", data)
    assert isinstance(error, nats.errors.Error)
    assert classified(error) is error


@pytest.mark.parametrize(
    ("code", "err_code", "description"),
    [
        (429, 10167, "too many requests"),
        (429, 99999, "something new"),
        (503, 10077, "maximum messages exceeded"),
        (503, 10077, "maximum bytes exceeded"),
        (503, 10077, "maximum messages per subject exceeded"),
        (503, 10023, "insufficient resources"),
        (500, 10028, "insufficient memory resources available"),
        (500, 10047, "insufficient storage resources available"),
        (400, 10002, "resource limits exceeded for account"),
    ],
)
def test_limits_are_throttled(code: int, err_code: int, description: str) -> None:
    """What a limit refuses is `Throttled`, and says what the server said; it never says for how long."""
    told = f'{{"error":{{"code":{code},"err_code":{err_code},"description":"{description}","new":1}}}}'
    answered = answer_error(b"", told.encode())
    assert isinstance(answered, nats.js.errors.APIError)
    error = classified(answered)
    assert isinstance(error, Throttled)
    assert str(error) == f"{code} {description} (err_code {err_code})"
    assert error.retry_after is None


@pytest.mark.parametrize(
    "error",
    [
        nats.js.errors.BadRequestError(code=400, err_code=10054, description="message size exceeds"),
        nats.js.errors.BadRequestError(code=400, err_code=10188, description="message schedules is disabled"),
        nats.js.errors.NotFoundError(code=404, description="no stream holds x"),
        nats.errors.Error('nats: permissions violation for publish to "orders.due"'),
    ],
)
def test_what_can_never_work_is_permanent(error: Exception) -> None:
    """A 400, no stream, access refused."""
    assert isinstance(classified(error), PermanentSendError)


@pytest.mark.parametrize(
    "error",
    [
        nats.js.errors.ServiceUnavailableError(code=503, err_code=10077, description="write failed"),
        nats.js.errors.ServiceUnavailableError(code=503, err_code=10008, description="unavailable"),
        nats.js.errors.ServerError(code=500, err_code=10118, description="stream is offline"),
        nats.js.errors.APIError(),
        nats.js.errors.NoStreamResponseError(),
        nats.errors.ConnectionClosedError(),
        nats.errors.Error('nats: permissions violation for subscription to "x"'),
        ConnectionError("x"),
        TimeoutError("x"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    """A store that failed for another reason, an election, a lost connection: it may pass."""
    assert classified(error) is error


def test_a_refusal_names_what_is_refused() -> None:
    """In whatever letters it is told."""
    told = nats.errors.Error('nats: permissions violation for publish to "a.b"')
    assert refused_by(told) == ("publish", "a.b")
    told = nats.errors.Error('Permissions Violation for Subscription to "_INBOX.x.*" using queue "q"')
    assert refused_by(told) == ("subscription", "_INBOX.x.*")
    assert refused_by(nats.errors.Error("nats: authorization violation")) is None
