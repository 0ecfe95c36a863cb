"""What a NATS server says, byte by byte."""

from __future__ import annotations

import pytest

from localdelay.brokers.line import OutOfStep
from localdelay.brokers.nats_answers import Frame, frames

ACK = b'{"stream":"S", "seq":7}'
NOBODY = b"NATS/1.0 503\r\n\r\n"
SAID = [
    (b"PING\r\n", Frame(b"PING", b"")),
    (b"MSG in.1 1 23\r\n" + ACK + b"\r\n", Frame(b"MSG", b"in.1", b"", ACK)),
    (b"HMSG in.22 1 16 16\r\n" + NOBODY + b"\r\n", Frame(b"HMSG", b"in.22", NOBODY)),
    (b'INFO {"server_id": "x"}\r\n', Frame(b"INFO", b'{"server_id": "x"}')),
    (b"MSG in.3 2 5\r\nMSG _\r\n", Frame(b"MSG", b"in.3", b"", b"MSG _")),
    (b"MSG in.4 3 to 12\r\nPING\r\n-ERR\r\n\r\n", Frame(b"MSG", b"in.4", b"", b"PING\r\n-ERR\r\n")),
    (b"HMSG in.5 3 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", Frame(b"HMSG", b"in.5", b"NATS/1.0\r\n\r\n", b"hi")),
    (b"MSG in.6 1 0\r\n\r\n", Frame(b"MSG", b"in.6")),
    (b"+OK\r\n", Frame(b"+OK", b"")),
    (b"-ERR 'Permissions Violation'\r\n", Frame(b"-ERR", b"'Permissions Violation'")),
    (b"PONG\r\n", Frame(b"PONG", b"")),
]


def test_frames_wherever_the_bytes_are_cut() -> None:
    """They are told apart in order, however they come in."""
    received, expected = b"".join(said for said, _ in SAID), [frame for _, frame in SAID]

    def fed(pieces: list[bytes]) -> list[Frame]:
        found: list[Frame] = []
        rest = b""
        for piece in pieces:
            more, rest = frames(rest + piece)
            found += more
        assert not rest
        return found

    for cut in range(len(received) + 1):
        assert fed([received[:cut], received[cut:]]) == expected, cut
    assert fed([received[at : at + 1] for at in range(len(received))]) == expected


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"MSG\r\n", b"HMSG x 1 9 5\r\n"])
def test_what_is_none_is_refused(said: bytes) -> None:
    """The connection is out of step, or this is no NATS."""
    with pytest.raises(OutOfStep):
        frames(said)
