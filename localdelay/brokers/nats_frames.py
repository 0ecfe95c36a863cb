"""Answers, taken out of what a NATS connection receives before its client's own reading gets to it.

That reading takes another turn of trio-asyncio's loop: with one message at once, a third of the rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

_END = b"\r\n"
_LARGEST = 8 * 1024 * 1024  # bytes of a frame: answers, and what the server says of itself, are far below


class Answer(NamedTuple):
    """An answer to one publish."""

    subject: bytes
    headers: bytes
    """Empty where there are none."""
    data: bytes


def taken_out(data: bytes, inbox: bytes) -> tuple[list[Answer], bytes, bytes]:
    """The answers to this inbox, all else that is whole, and the rest, which is not. Pure.

    Raises `ValueError` for what is no frame, or one that is too large.
    """
    answers: list[Answer] = []
    others: list[bytes] = []
    begin = 0
    while (end := data.find(_END, begin)) >= 0:
        words = data[begin:end].split()
        body = after = end + len(_END)
        if words and words[0] in (b"MSG", b"HMSG"):
            size, header_size = _sizes(words)
            after += size + len(_END)
            if after > len(data):
                break
            if words[1].startswith(inbox):
                split = body + header_size
                answers.append(Answer(words[1], data[body:split], data[split : body + size]))
                begin = after
                continue
        others.append(data[begin:after])
        begin = after
    rest = data[begin:]
    if len(rest) > _LARGEST:
        raise ValueError(f"a frame of more than {_LARGEST} bytes")
    return answers, b"".join(others), rest


def _sizes(words: list[bytes]) -> tuple[int, int]:
    """Bytes of headers and payload, and of the headers, as the line of a message says them."""
    count = 2 if words[0] == b"HMSG" else 1
    sizes = words[3:][-count:]
    if len(sizes) != count or not all(size.isdigit() and len(size) < 10 for size in sizes):
        raise ValueError("a frame that says nothing of its size")
    size, header_size = int(sizes[-1]), int(sizes[0]) if count == 2 else 0
    if size > _LARGEST or header_size > size:
        raise ValueError(f"a frame of {size} bytes, of which {header_size} are headers")
    return size, header_size


class Sieve(asyncio.Protocol):
    """Stands before a client's own protocol on a transport: it gives answers away, and passes on all else."""

    def __init__(
        self, transport: Any, inbox: bytes, answered: Callable[[Answer], None], ended: Callable[[], object]
    ) -> None:
        """`ended` is called at the end of the connection, ahead of the client."""
        self._transport = transport
        self._below = transport.get_protocol()
        self._inbox = inbox
        self._answered = answered
        self._ended = ended
        self._rest = b""
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Override."""
        try:
            answers, others, self._rest = taken_out(self._rest + data, self._inbox)
        except ValueError:
            self._transport.abort()
            return
        if others:
            self._below.data_received(others)
        for answer in answers:
            self._answered(answer)

    def pause_writing(self) -> None:
        """Override."""
        self._below.pause_writing()

    def resume_writing(self) -> None:
        """Override."""
        self._below.resume_writing()

    def eof_received(self) -> bool | None:
        """Override."""
        self._ended()
        stays: bool | None = self._below.eof_received()
        return stays

    def connection_lost(self, error: Exception | None) -> None:
        """Override."""
        self._ended()
        self._below.connection_lost(error)
