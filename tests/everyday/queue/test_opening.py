"""What a queue refuses when it is opened, by the argument's name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from localdelay import BatchPolicy, open_delay_queue
from localdelay.testing import RecordingSender


async def send_batch(messages: object) -> None:
    """Send a batch to nobody."""


async def test_exactly_one_sender(autojump_clock: Any) -> None:
    """Both senders, or none, is a TypeError; so is a batch policy that is none."""
    for arguments in ({}, {"send": RecordingSender(), "send_batch": send_batch}):
        with pytest.raises(TypeError, match="exactly one of send and send_batch"):
            async with open_delay_queue(capacity=1, workers=1, **arguments):  # type: ignore[arg-type]
                pytest.fail("the queue opened")
    with pytest.raises(TypeError, match="send_batch"):
        async with open_delay_queue(send_batch=3, capacity=1, workers=1):  # type: ignore[arg-type]
            pytest.fail("the queue opened")
    with pytest.raises(TypeError, match="batch"):
        async with open_delay_queue(send_batch=send_batch, batch=500, capacity=1, workers=1):  # type: ignore[arg-type]
            pytest.fail("the queue opened")


def test_a_batch_policy_refuses_nonsense() -> None:
    """Each bound is checked, and named."""
    wrong = [("max_messages", 0, ValueError), ("max_messages", 1.5, TypeError), ("max_wait", None, TypeError)]
    wrong += [("max_bytes", 0, ValueError), ("max_bytes", "1MB", TypeError), ("max_bytes", True, TypeError)]
    wrong += [("max_wait", seconds, ValueError) for seconds in (-1, math.inf, math.nan)]
    for name, value, error in wrong:
        with pytest.raises(error, match=name):
            BatchPolicy(**{name: value})  # type: ignore[arg-type]
