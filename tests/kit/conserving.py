"""The conservation equation, of the figures alone and against what is there."""

from __future__ import annotations

from typing import TypeVar

from localdelay import DelayQueue, Statistics

_Statistics = TypeVar("_Statistics", bound=Statistics)


def conserved(s: _Statistics) -> _Statistics:
    """The statistics, after checking the conservation equation."""
    assert s.accepted == s.sent + s.dead + s.cancelled + s.handed_back + s.spooled + s.pending, s
    assert s.pending == s.waiting + s.sending + s.retrying, s
    return s


def conserve(queue: DelayQueue) -> Statistics:
    """The same of a queue, and against the messages that are there."""
    s = conserved(queue.statistics())
    messages = queue.messages()
    assert s.pending == len(messages), s
    assert s.pending_bytes == sum(message.size for message in messages), s
    assert s.lateness.clipped == 0
    assert len({message.id for message in messages}) == len(messages)
    return s
