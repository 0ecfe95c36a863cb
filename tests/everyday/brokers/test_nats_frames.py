"""What NATS's protocol says, byte by byte, and what its answers mean."""

from __future__ import annotations

import random

import nats.errors
import nats.js.errors
import pytest

from localdelay import PermanentSendError, Throttled
from localdelay.brokers.nats_answers import answer_error, classified, in_a_line, refused_by
from localdelay.brokers.nats_frames import Answer, Frames, header_lines, publish_head
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID

INBOX = b"_INBOX.abc"
ACK = b'{"stream":"S", "seq":7}'
NOBODY = b"NATS/1.0 503\r\n\r\n"
RECEIVED = b"".join(
    [
        b"PING\r\n",
        b"MSG _INBOX.abc.1 1 23\r\n" + ACK + b"\r\n",
        b"HMSG _INBOX.abc.22 1 16 16\r\n" + NOBODY + b"\r\n",
        b'INFO {"server_id":"x"}\r\n',
        b"MSG _INBOX.abcd.3 2 5\r\nMSG _\r\n",  # another inbox
        b"MSG other.1 3 reply.to 13\r\nPING\r\n-ERR\r\n\x00\r\n",
        b"HMSG other.2 3 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"MSG _INBOX.abc.333 1 0\r\n\r\n",
        b"HMSG _INBOX.abc.4 1 20 22\r\nNATS/1.0\r\nA: bcd\r\n\r\n{}\r\n",
        b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
    ]
)
ANSWERS = [
    Answer(1, b"", ACK),
    Answer(22, NOBODY, b""),
    Answer(333, b"", b""),
    Answer(4, b"NATS/1.0\r\nA: bcd\r\n\r\n", b"{}"),
]
OTHERS = b"".join(
    [
        b"PING\r\n",
        b'INFO {"server_id":"x"}\r\n',
        b"MSG _INBOX.abcd.3 2 5\r\nMSG _\r\n",
        b"MSG other.1 3 reply.to 13\r\nPING\r\n-ERR\r\n\x00\r\n",
        b"HMSG other.2 3 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
    ]
)


def fed(frames: Frames, pieces: list[bytes]) -> tuple[list[Answer], bytes]:
    answers: list[Answer] = []
    others = b""
    for piece in pieces:
        more, other = frames.feed(piece)
        answers += more
        others += other
    return answers, others


@pytest.mark.parametrize("inside_a_line", [False, True])
def test_answers_are_taken_out_wherever_the_bytes_are_cut(inside_a_line: bool) -> None:
    """Answers are given with their numbers, in order, and the rest goes by as it came."""
    head = b'half of an INFO {"a":1}\r\n' if inside_a_line else b""
    received, others = head + RECEIVED, head + OTHERS
    for cut in range(len(received) + 1):
        frames = Frames(INBOX, inside_a_line=inside_a_line)
        assert fed(frames, [received[:cut], received[cut:]]) == (ANSWERS, others), cut
    frames = Frames(INBOX, inside_a_line=inside_a_line)
    assert fed(frames, [received[at : at + 1] for at in range(len(received))]) == (ANSWERS, others)
    generator = random.Random(3)
    print("seed", 3)
    for _ in range(200):
        cuts = sorted(generator.sample(range(len(received)), 5))
        pieces = [received[a:b] for a, b in zip([0, *cuts], [*cuts, len(received)], strict=True)]
        frames = Frames(INBOX, inside_a_line=inside_a_line)
        assert fed(frames, pieces) == (ANSWERS, others), cuts


def test_a_publish_is_what_the_protocol_says() -> None:
    """The sizes are those of the headers, and of headers and payload."""
    headers = header_lines("a b", 3, "2026", {"Trace": "ü", ID: "forged"})
    assert headers == (
        b"NATS/1.0\r\nLocaldelay-Id: a b\r\nLocaldelay-Attempt: 3\r\nLocaldelay-Execute-At: 2026\r\n"
        b"Trace: \xc3\xbc\r\n\r\n"
    )
    assert publish_head(b"orders.due", INBOX, 12, headers, 500) == (
        b"HPUB orders.due _INBOX.abc.12 %d %d\r\n" % (len(headers), len(headers) + 500) + headers
    )


@pytest.mark.parametrize("name", [ID, ATTEMPT, EXECUTE_AT])
def test_a_header_with_one_of_the_three_names_is_not_sent(name: str) -> None:
    """What this library says of a message wins."""
    assert header_lines("a", 1, "2026", {name: "forged"}) == header_lines("a", 1, "2026", {})


@pytest.mark.parametrize("id", ["two\nlines", "two\rlines", " blank", "blank\t"])
def test_an_id_that_no_header_keeps_is_permanent(id: str) -> None:
    """An id that would arrive as another one is refused."""
    with pytest.raises(PermanentSendError, match="id"):
        header_lines(id, 1, "2026", {})


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
        header_lines("a", 1, "2026", {name: value})


def test_text_that_cannot_be_encoded_is_permanent() -> None:
    """A lone surrogate in an id or a header is refused."""
    with pytest.raises(PermanentSendError, match="Unicode"):
        header_lines("\ud800", 1, "2026", {})
    with pytest.raises(PermanentSendError, match="Unicode"):
        header_lines("a", 1, "2026", {"A": "\ud800"})


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


def test_an_error_is_shown_in_one_line() -> None:
    """Without nats-py's quotes, and never empty."""
    assert in_a_line(nats.errors.Error("nats: 'Authorization Violation'")) == "Authorization Violation"
    assert in_a_line(OSError("a\nb")) == "a b"
    assert in_a_line(TimeoutError()) == "TimeoutError"
