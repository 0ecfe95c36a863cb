"""Chunks of bytes into lines: line breaks, lines that are too long, and what a stop cuts off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdelay.relay.framing import Splitter

LONGEST = 8


def split(*chunks: bytes, longest: int = LONGEST) -> list[bytes | None]:
    splitter = Splitter(longest)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*found, *splitter.end()]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([], []),
        ([b""], []),
        ([b"a\n"], [b"a"]),
        ([b"\n"], [b""]),
        ([b"a\r\n"], [b"a"]),
        ([b"a\r", b"\nb\n"], [b"a", b"b"]),
        ([b"a\r"], [b"a\r"]),
        ([b" a \t\x00\xff\n"], [b" a \t\x00\xff"]),
        ([b"\xe2\x80\xa8\x0b\x0c\x1c\n"], [b"\xe2\x80\xa8\x0b\x0c\x1c"]),
        ([b"12345678\r\n"], [b"12345678"]),
        ([b"12345678\r", b"\n"], [b"12345678"]),
        ([b"12345678\r"], [None]),
        ([b"123456789", b"0\nab\n"], [None, b"ab"]),
        ([b"1234567890", b"\n1234567890", b"\nb"], [None, None, b"b"]),
    ],
)
def test_lines(chunks: list[bytes], lines: list[bytes | None]) -> None:
    r"""A line ends with \n or \r\n, the last one with the input; one that is too long is None."""
    assert split(*chunks) == lines


@given(
    st.lists(
        st.binary(max_size=30).map(
            lambda data: data.translate(bytes(b"a\n\r\nbc"[i % 6] for i in range(256)))
        )
    )
)
def test_chunks_do_not_matter(chunks: list[bytes]) -> None:
    """However the bytes come, their lines are those of the whole."""
    whole = b"".join(chunks)
    *lines, last = whole.replace(b"\r\n", b"\n").split(b"\n")
    expected = [line if len(line) <= LONGEST else None for line in [*lines, *([last] if last else [])]]
    assert split(*chunks) == split(whole) == expected


def test_a_line_that_is_too_long_is_told_at_once_and_not_kept() -> None:
    """None comes before the line ends, once; what comes of it after that takes no memory."""
    splitter = Splitter(1000)
    assert splitter.feed(b"x" * 1001) == []
    assert splitter.feed(b"x") == [None]
    for _ in range(100):
        assert splitter.feed(b"x" * 100_000) == []
        assert splitter.cut() == b""
        assert splitter.feed(b"x" * 1002) == [None]
    assert splitter.feed(b"\nnext\n") == [b"next"]
    assert splitter.end() == []


def test_what_a_stop_cuts_off() -> None:
    """The beginning of a line is there once, and then forgotten."""
    splitter = Splitter(LONGEST)
    assert splitter.feed(b"a\nbc") == [b"a"]
    assert splitter.cut() == b"bc"
    assert splitter.cut() == b""
    assert splitter.feed(b"d\n") == [b"d"]
    assert splitter.end() == []
