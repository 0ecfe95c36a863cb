"""Examples with mistakes in them, and how long they may take.

LOCALDELAY_FUZZ_EXAMPLES multiplies the examples, which are then other ones in each run.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from localdelay import Message

TIMES = int(os.environ.get("LOCALDELAY_FUZZ_EXAMPLES", "1"))
Fuzz: TypeAlias = Callable[[Callable[..., None]], Callable[..., None]]


def fuzzed(examples: int) -> Fuzz:
    """So many examples: always the same, unless more are asked for."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        print_blob=True,
        database=None,
        deadline=None,  # `in_time` sees to that: it ends what hangs, too
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.function_scoped_fixture,
        ],
    )


class TookTooLong(BaseException):
    """No `Exception`: nothing that is tested may take it for an error of its own."""


@contextmanager
def in_time(seconds: float = 5.0) -> Iterator[None]:
    """Ends a block that hangs: after so many seconds of the processor's time, however busy that is."""

    def end(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def is_clear(error: BaseException) -> bool:
    """One line that can be printed, of a length that can be read."""
    text = str(error)
    return text.isprintable() and 0 < len(text) < 500 and "invalid literal" not in text


_ODD_BYTES = [
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"\\",
    b"\\ud800",
]
_ODD_NUMBERS = b"-1 -15 0 00 1e400 -1e400 NaN Infinity 1_0 +1 2147483648".split()
_HUGE = [b"18446744073709551615", b"9" * 5000, b"1" + b"0" * 400, b"1e99999"]
odd_bytes = st.sampled_from(
    [*_ODD_BYTES, *_ODD_NUMBERS, *_HUGE, b" ", b"", b"[]", b"{}", b"null"]
) | st.binary(max_size=4)


@st.composite
def mistaken(draw: st.DrawFn, right: st.SearchStrategy[bytes]) -> bytes:
    """What is right, with up to four mistakes in it."""
    data = draw(right)
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 20])))
        how = draw(st.sampled_from(["odd", "odd", "number", "copy", "flip"]))
        if how == "number" and (numbers := list(re.finditer(rb"[0-9]+", data))):
            found = draw(st.sampled_from(numbers))
            begin, end = found.span()
            data = data[:begin] + draw(st.sampled_from([*_ODD_NUMBERS, *_HUGE])) + data[end:]
        elif how == "copy":
            data = data[:begin] + data[begin:end] * draw(st.integers(2, 3)) + data[end:]
        elif how == "flip" and begin < len(data):
            data = data[:begin] + bytes([data[begin] ^ 1 << draw(st.integers(0, 7))]) + data[begin + 1 :]
        else:
            data = data[:begin] + draw(odd_bytes) + data[end:]
    return data


def one_of_words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split(" "))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)] or [b""]


some_cuts = st.lists(st.integers(0, 5000), max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
printable = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.isprintable)
some_payloads = st.binary(max_size=20) | texts.map(str.encode)
some_headers = st.dictionaries(texts, texts, max_size=3).map(MappingProxyType)
some_messages = st.builds(
    Message, id=printable, payload=some_payloads, execute_at=st.floats(0, 1e9), headers=some_headers
)


# --- what NATS and beanstalkd say, mostly

INBOX = b"INBOX.abc"
ACK = b'{"stream":"S", "seq":7}'


def msg(subject: bytes, data: bytes) -> bytes:
    return b"MSG %b 1 %d\r\n%b\r\n" % (subject, len(data), data)


def hmsg(subject: bytes, headers: bytes, data: bytes) -> bytes:
    return b"HMSG %b 1 %d %d\r\n%b%b\r\n" % (subject, len(headers), len(headers) + len(data), headers, data)


frames_of_nats = st.lists(
    st.sampled_from(
        [msg(INBOX + b".1", ACK), msg(INBOX + b".22", b""), msg(b"other", b"MSG INBOX.abc.1 1 5\r\n")]
    )
    | st.sampled_from(
        [hmsg(INBOX + b".3", b"NATS/1.0 503\r\n\r\n", b""), b"PING\r\n", b"-ERR 'x'\r\n", b"+OK\r\n", b"\r\n"]
    )
    | st.sampled_from(
        [b"INFO {}\r\n", b"MSG\r\n", b"HMSG 1\r\n", b"MSG x 1 -15\r\n", hmsg(b"y", b"NATS/1.0\r\n\r\n", b"z")]
    ),
    min_size=1,
    max_size=6,
).map(b"".join)


answers_of_beanstalkd = st.sampled_from(
    [b"INSERTED 12", b"BURIED 12", b"BURIED", b"OUT_OF_MEMORY", b"DRAINING", b"JOB_TOO_BIG", b"EXPECTED_CRLF"]
) | st.sampled_from(
    [b"BURIED 1 2", b"BURIED " + b"9" * 5000, b"UNKNOWN_COMMAND", b"USING x", b"", b"inserted 1"]
)
