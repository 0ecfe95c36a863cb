"""The conservation equation, against what is there."""

from __future__ import annotations

from localdelay import DelayQueue, Statistics


def conserve(queue: DelayQueue) -> Statistics:
    """The statistics, after checking the conservation equation against the messages that are there."""
    s = queue.statistics()
    assert s.accepted == s.sent + s.dead + s.cancelled + s.handed_back + s.spooled + s.pending, s
    assert s.pending == s.waiting + s.sending + s.retrying, s
    messages = queue.messages()
    assert s.pending == len(messages), s
    assert s.pending_bytes == sum(message.size for message in messages), s
    assert s.lateness.clipped == 0
    assert len({message.id for message in messages}) == len(messages)
    return s
