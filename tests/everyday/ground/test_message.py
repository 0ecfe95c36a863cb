"""Messages and their ids."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from itertools import islice
from typing import Any

import attrs
import pytest

from localdelay import Message
from localdelay.message import NO_HEADERS, headers_size, number_of, numbers, render_id


def test_ids_are_unique_and_never_change() -> None:
    """Every number gives another id, and the same one each time somebody looks."""
    messages = [Message(number, b"", 0.0) for number in islice(numbers(), 1000)]
    ids = [message.id for message in messages]
    assert len(set(ids)) == 1000
    assert [message.id for message in messages] == ids
    assert all(isinstance(id, str) and id.isprintable() and id.isascii() for id in ids)


class Interrupted(BaseException):
    """What a handler of signals raises."""


def test_an_interrupt_in_the_midst_of_it_ends_no_numbers() -> None:
    """A handler of signals may raise, or put, wherever code of Python's runs: here none does."""
    them = numbers()

    def interrupt(*_: Any) -> None:
        next(them)
        raise Interrupted

    before = sys.gettrace()
    sys.settrace(interrupt)  # called where a frame of Python's begins, which is where signals are handled
    try:
        first = next(them)
        for _ in range(100):  # over the ends of some runs
            last = next(them)
    finally:
        sys.settrace(before)
    assert first < last < next(them)


def test_an_id_chosen_by_the_caller_is_kept() -> None:
    """An id that is text is taken as it is, also where it looks like a number."""
    assert Message("order 7", b"", 0.0).id == "order 7"
    assert Message("17", b"", 0.0).id == "17"


def test_no_number_is_seen_in_an_id_of_another_shape() -> None:
    """Only what `render_id` makes is read as one of this process's numbers: no second spelling of it."""
    prefix = render_id(1).removesuffix("1")
    tails = ["", "0", "01", "-1", "+1", " 1", "1 ", "1_0", "1.0", "p1", "x", "²", "٣", "1\n", "9" * 5000]
    assert [tail for tail in tails if number_of(prefix + tail) is not None] == []


def test_no_number_is_seen_that_could_be_another_process_s() -> None:
    """The numbers of a forked child begin where those of its parent would end."""
    prefix = render_id(1).removesuffix("1")
    assert number_of(f"{prefix}{2**52 - 1}") == 2**52 - 1
    assert number_of(f"{prefix}{2**52}") is None


def test_no_number_is_seen_in_a_foreign_id() -> None:
    """An id of another process, and one that a caller chose, have no number here."""
    prefix = render_id(1).removesuffix("-1")
    for id in ("", "1", "-1", prefix, f"{prefix}1", f"x{prefix}-1", f"{prefix}-x-1", "0" * 12 + "-1"):
        assert number_of(id) is None, id


def test_the_payload_and_the_headers_never_show() -> None:
    """`repr` and `str` of a message show its size, so that it can be logged."""
    message = Message("m", b"secret payload", 2.5, {"token": "secret header"}, 3)
    for text in (repr(message), str(message), f"{message}", f"{[message]}"):
        assert "secret" not in text
        assert "token" not in text
    assert repr(message) == "Message(id='m', payload=<14 bytes>, execute_at=2.5, attempt=3)"
    assert render_id(5) in repr(Message(5, b"", 0.0))


@pytest.mark.parametrize(
    ("payload", "headers", "size"),
    [
        (b"", {}, 0),
        (b"abc", {}, 3),
        (b"", {"a": "bc"}, 3),
        (b"abc", {"a": "", "": "b"}, 5),
        (b"\0\xff", {"é": "€"}, 7),
        (b"", {"k": "😀"}, 5),
    ],
)
def test_size_is_payload_and_headers_in_bytes(payload: bytes, headers: dict[str, str], size: int) -> None:
    """The byte count is payload plus headers, these in UTF-8."""
    assert Message("m", payload, 0.0, headers).size == size
    assert headers_size(headers) == size - len(payload)


def test_a_message_cannot_be_changed() -> None:
    """Messages are frozen, and the headers that all bare ones share cannot be written to."""
    message = Message("m", b"", 0.0)
    for name in ("payload", "execute_at", "headers", "attempt", "id"):
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(message, name, 1)
    assert message.headers is NO_HEADERS
    with pytest.raises(TypeError):
        message.headers["k"] = "v"  # type: ignore[index]


def test_a_message_can_be_pickled_copied_and_hashed() -> None:
    """A copy is equal and has the same id; a pickle carries the id as text."""
    message = Message(next(numbers()), b"x", 1.5, {"k": "v"}, 2)
    again = pickle.loads(pickle.dumps(message))
    assert again == message == copy.copy(message)
    assert len({again, message, Message(message.id, b"x", 1.5, {"k": "v"}, 2)}) == 1
    assert isinstance(again._id, str)


def test_a_forked_child_has_ids_of_its_own() -> None:
    """A message keeps its id across a fork, and what parent and child make from then on never collides."""
    program = """
import os, sys
from localdelay import Message
from localdelay.message import number_of, numbers, render_id
message = Message(next(numbers()), b"", 0.0)
read, write = os.pipe()
if os.fork() == 0:
    mine = next(numbers())
    assert number_of(render_id(mine)) == mine
    assert number_of(message.id) == message._id
    os.write(write, "\\n".join([message.id, render_id(mine)]).encode())
    os._exit(0)
os.wait()
same, *others = os.read(read, 1000).decode().split()
assert same == message.id, (same, message.id)
assert len({*others, message.id, render_id(next(numbers()))}) == 3, others
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
