"""The errors: their tree, what they carry, and that they survive copying and pickling."""

from __future__ import annotations

import copy
import math
import pickle
from datetime import timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

import localdelay
from localdelay import (
    JournalError,
    LocalDelayError,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    Throttled,
)
from localdelay.errors import asked_wait


@pytest.mark.parametrize(
    "kind", [QueueFull, QueueClosed, Throttled, PermanentSendError, PartialSendError, JournalError]
)
def test_every_error_is_a_local_delay_error(kind: type[Exception]) -> None:
    """One `except LocalDelayError` catches them all, and none of them is another's child."""
    assert kind.__bases__ == (LocalDelayError,)
    assert getattr(localdelay, kind.__name__) is kind


def test_throttled_carries_the_wait() -> None:
    """`retry_after` is given by name, or alone, or not at all."""
    without = [
        Throttled(),
        Throttled("2.0"),
        Throttled(None),
        Throttled(retry_after=None),
        Throttled(429, "many"),
    ]
    assert [error.retry_after for error in without] == [None] * len(without)
    for wait in (0, 2.0, 3, 1e9):
        alone, named, beside = (
            Throttled(wait),
            Throttled(retry_after=wait),
            Throttled(429, "x", retry_after=wait),
        )
        assert alone.retry_after == named.retry_after == beside.retry_after == wait


def test_the_text_of_throttled_is_what_was_given() -> None:
    """The message of the error is the caller's own."""
    assert str(Throttled("429 too many requests", retry_after=2.0)) == "429 too many requests"
    assert str(Throttled()) == ""


@pytest.mark.parametrize(
    "value",
    [-0.1, math.nan, math.inf, -math.inf, "5", b"5", timedelta(seconds=5), Decimal("1.5"), 1j, True, [1]],
)
def test_a_wait_from_strangers_that_is_none_is_ignored(
    value: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of a header, say: given by name, alone or set later it is None; one line for each type."""
    monkeypatch.setattr("localdelay.errors._told", set())
    assert Throttled("429", retry_after=value).retry_after is None
    assert Throttled(value).retry_after is None
    late = Throttled()
    late.retry_after = value
    assert asked_wait(late) is None
    [line] = caplog.records
    assert line.levelname == "WARNING"
    assert "retry_after must be a number of seconds" in line.getMessage()


def test_a_wait_may_be_long() -> None:
    """How much of it is obeyed is the limit's business; it overflows nothing."""
    assert Throttled(retry_after=1e19).retry_after == 1e18
    assert asked_wait(Throttled(10**400)) == 1e18
    assert asked_wait(ValueError()) is None


def test_a_child_of_throttled_needs_no_base_call() -> None:
    """An error class of a caller's that skips `Throttled.__init__` has no `retry_after`, as None."""

    class Quota(Throttled):
        def __init__(self) -> None:
            self.name = "quota"

    assert Quota().retry_after is None


def test_partial_send_error_keeps_its_own_copy() -> None:
    """`failed` is a dict of ids and exceptions; what the caller does to the original later is not seen."""
    error = OSError("refused")
    given = {"a": error, "b": Throttled(1.0)}
    partial = PartialSendError(given)
    given.clear()
    assert list(partial.failed) == ["a", "b"]
    assert partial.failed["a"] is error
    assert str(partial) == "2 messages of the batch failed"


@pytest.mark.parametrize(
    "failed",
    [None, ["id"], "id", OSError("refused"), {1: OSError()}, {"id": "error"}, {"id": OSError}, {"id": None}],
)
def test_a_partial_send_must_name_ids_and_errors(failed: Any) -> None:
    """Anything but a mapping of ids to exceptions is a `TypeError` where the error is made."""
    with pytest.raises(TypeError, match="failed"):
        PartialSendError(failed)


ERRORS = [
    LocalDelayError("base"),
    QueueFull("24000 of 24000"),
    QueueClosed(),
    Throttled(),
    Throttled(2.0),
    Throttled("429", retry_after=2.0),
    Throttled(retry_after=0),
    PermanentSendError("too large", 7),
    PartialSendError({"a": OSError("refused"), "b": Throttled("429", retry_after=1.5)}),
    PartialSendError(MappingProxyType({"a": PermanentSendError("no")})),
    JournalError("disk"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: repr(error)[:30])
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(2, 6))],
    ids=["copy", "deepcopy", "pickle2", "pickle3", "pickle4", "pickle5"],
)
def test_an_error_survives_copying_and_pickling(error: Exception, duplicate: Any) -> None:
    """A copy has the type, the text and all that the error carries: process pools and loggers rely on it."""
    twin: Exception = duplicate(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    if isinstance(error, Throttled) and isinstance(twin, Throttled):
        assert twin.retry_after == error.retry_after
        assert twin.args == error.args
    if isinstance(error, PartialSendError) and isinstance(twin, PartialSendError):
        assert list(twin.failed) == list(error.failed)
        assert [repr(e) for e in twin.failed.values()] == [repr(e) for e in error.failed.values()]
        assert [vars(e) for e in twin.failed.values()] == [vars(e) for e in error.failed.values()]
