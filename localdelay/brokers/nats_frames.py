"""What goes over a NATS connection for a publish and its answer, byte by byte. Pure.

nats-py has functions for both, but they cost more than the rest of a publish.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from localdelay.errors import PermanentSendError

END = b"\r\n"

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110
_PLAIN = re.compile(rb"MSG (\S+\.)(\d{1,18}) \d+ (\d{1,9})\r\n")
_SIZE = re.compile(rb"[0-9]{1,9}")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_LARGEST = 8 * 1024 * 1024  # bytes of a frame: answers, and what the server says of itself, are far below
_OWN = frozenset({ID, ATTEMPT, EXECUTE_AT})


class Answer(NamedTuple):
    """An answer to one publish."""

    number: int
    headers: bytes
    """Without the line that names the version's end; empty where there are none."""
    data: bytes


def header_lines(id: str, attempt: int, execute_at: str, others: Mapping[str, str]) -> bytes:
    """The headers of a message as they go out. Raises `PermanentSendError` for what is no NATS header."""
    if id != id.strip() or "\n" in id or "\r" in id:
        raise PermanentSendError("an id with a line break, or blanks around it, can't be a NATS header")
    lines = f"NATS/1.0\r\n{ID}: {id}\r\n{ATTEMPT}: {attempt}\r\n{EXECUTE_AT}: {execute_at}\r\n"
    for name, value in others.items():
        if not _NAME.fullmatch(name):
            raise PermanentSendError(f"a header can't be called {name!r} in NATS")
        if "\n" in value or "\r" in value:
            raise PermanentSendError(f"the header {name!r} has a line break, which NATS can't carry")
        if name not in _OWN:
            lines += f"{name}: {value}\r\n"
    try:
        return f"{lines}\r\n".encode()
    except UnicodeEncodeError:
        raise PermanentSendError("an id or header that is no valid Unicode can't be sent") from None


def publish_head(subject: bytes, reply: bytes, number: int, headers: bytes, payload_bytes: int) -> bytes:
    """What stands before the payload, and `END` after it. The answer comes to `reply` and the number."""
    total = len(headers) + payload_bytes
    return b"HPUB %b %b.%d %d %d\r\n%b" % (subject, reply, number, len(headers), total, headers)


class Frames:
    """Takes answers out of what a connection receives, from where it is told to begin."""

    def __init__(self, reply: bytes, *, inside_a_line: bool) -> None:
        self._reply = reply + b"."
        self._inside_a_line = inside_a_line
        self._rest = b""

    def feed(self, received: bytes) -> tuple[list[Answer], bytes]:
        """The answers that are complete now, and everything else that is complete, as it came.

        Raises `ValueError` for what is no frame, or one that is too large: the connection is of no use then.
        """
        data = self._rest + received if self._rest else received
        answers: list[Answer] = []
        others: list[bytes] = []
        begin, length = 0, len(data)
        if self._inside_a_line:
            found_end = data.find(END)
            if found_end < 0:
                self._rest = data[-1:] if data.endswith(END[:1]) else b""
                return answers, data[: length - len(self._rest)]
            begin = found_end + len(END)
            self._inside_a_line = False
            others.append(data[:begin])
        match, reply = _PLAIN.match, self._reply
        while begin < length:
            found = match(data, begin)
            if found is not None and found[1] == reply:
                payload = found.end()
                end = payload + int(found[3])
                if end + len(END) > length:
                    break
                answers.append(Answer(int(found[2]), b"", data[payload:end]))
                begin = end + len(END)
                continue
            end = self._other(data, begin, answers, others)
            if end < 0:
                break
            begin = end
        self._rest = data[begin:]
        if len(self._rest) > _LARGEST:
            raise ValueError(f"a frame of more than {_LARGEST} bytes")
        return answers, b"".join(others)

    def _other(self, data: bytes, begin: int, answers: list[Answer], others: list[bytes]) -> int:
        """Where a frame of any other kind ends, or -1 where it is not complete."""
        end = data.find(END, begin)
        if end < 0:
            return -1
        words = data[begin:end].split()
        body = end = end + len(END)
        if words and words[0] in (b"MSG", b"HMSG"):
            size, header_size = _sizes(words)
            end = body + size + len(END)
            if end > len(data):
                return -1
            if words[0] == b"HMSG" and words[1].startswith(self._reply):
                split = body + header_size
                number = words[1][len(self._reply) :]
                if _NUMBER.fullmatch(number):
                    answers.append(Answer(int(number), data[body:split], data[split : end - len(END)]))
                    return end
        others.append(data[begin:end])
        return end


def _sizes(words: list[bytes]) -> tuple[int, int]:
    """Bytes of headers and payload, and of the headers, as the line of a message says them."""
    count = 2 if words[0] == b"HMSG" else 1
    sizes = words[3:][-count:]
    if len(sizes) != count or not all(map(_SIZE.fullmatch, sizes)):
        raise ValueError("a frame that says nothing of its size")
    size, header_size = int(sizes[-1]), int(sizes[0])
    if size > _LARGEST or header_size > size:
        raise ValueError(f"a frame of {size} bytes, of which {header_size} are headers")
    return size, header_size
