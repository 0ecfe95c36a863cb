"""What tests of due sends by key, and of a broker that is down, have in common; see also `no_jitter`."""

from __future__ import annotations

from localdelay import Message, ProbePolicy, RetryPolicy

EXACT = ProbePolicy(failures=3, wait_initial=1.0, wait_max=4.0)
STEADY = RetryPolicy(wait_initial=100, wait_max=100, wait_jitter=0)


def key(message: Message) -> str:
    """The letter that its payload begins with."""
    return message.payload[:1].decode()
