"""Answers among what a NATS connection receives, byte by byte."""

from __future__ import annotations

from localdelay.brokers.nats_frames import Answer, taken_out

INBOX = b"_INBOX.abc."
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
    Answer(INBOX + b"1", b"", ACK),
    Answer(INBOX + b"22", NOBODY, b""),
    Answer(INBOX + b"333", b"", b""),
    Answer(INBOX + b"4", b"NATS/1.0\r\nA: bcd\r\n\r\n", b"{}"),
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


def fed(pieces: list[bytes]) -> tuple[list[Answer], bytes]:
    answers: list[Answer] = []
    others = rest = b""
    for piece in pieces:
        more, other, rest = taken_out(rest + piece, INBOX)
        answers += more
        others += other
    return answers, others


def test_answers_are_taken_out_wherever_the_bytes_are_cut() -> None:
    """Answers are given in order, and the rest goes by as it came, also the end of an earlier line."""
    head = b'half of an INFO {"a":1}\r\n'
    received, others = head + RECEIVED, head + OTHERS
    for cut in range(len(received) + 1):
        assert fed([received[:cut], received[cut:]]) == (ANSWERS, others), cut
    assert fed([received[at : at + 1] for at in range(len(received))]) == (ANSWERS, others)
