"""Whether due messages are sent, to a broker that may well be down. Pure: time and jitter are given.

*Open*: all of them are. Several sends in a row that fail, of different messages and none sent between them,
shut it. *Shut*: one message at a time is tried, a *probe*, after waits that grow; the first that is sent
opens it. What is throttled, or refused for ever, shuts nothing, for somebody answers; nor does a message that
always fails, for it counts once.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import attrs

from . import arguments
from .backoff import grown

_JITTER = 0.3
"""Up to this share of a wait is added at random: many instances must not come back together."""


@attrs.frozen(kw_only=True)
class ProbePolicy:
    """When a queue stops to send, and how it tries. A wrong argument is an error that names it."""

    failures: int = attrs.field(default=5, validator=arguments.field_count)
    """So many failures in a row, of different messages, shut it."""
    wait_initial: float = attrs.field(default=0.1, validator=arguments.field_at_least(0))
    """Seconds until the first probe; twice as long after each that fails ..."""
    wait_max: float = attrs.field(default=1.0, validator=arguments.field_at_least(0))
    """... up to this, before the jitter."""


class Probe:
    """Of one queue. None of its methods waits or calls out; messages are told by their numbers."""

    __slots__ = ("_count", "_policy", "_probes", "is_shut", "next_at", "out", "row", "since")

    def __init__(self, policy: ProbePolicy | None) -> None:
        """Without a policy it never shuts."""
        self._policy = policy
        self.row: set[int] = set()
        """What has failed since something was sent: as long as this is empty, a success changes nothing."""
        self._count = 0  # failures in this row that were of messages that had not failed in it
        self._probes = 0  # that have failed
        self.is_shut = False
        self.since = 0.0
        """When it shut."""
        self.next_at = math.inf
        """When the next probe may begin, while it is shut and none is out."""
        self.out: int | None = None
        """The probe that has begun last."""

    def sent(self) -> bool:
        """Messages were sent; whether this opens it."""
        opens, self.is_shut = self.is_shut, False
        self.row.clear()
        self._count = self._probes = 0
        return opens

    def failed(self, now: float, numbers: Collection[int], jitter: float) -> bool:
        """A send of these messages has failed; whether this shuts it. `jitter` is drawn from 0 to 1."""
        if self._policy is None:
            return False
        if self.is_shut:
            self.throttled(now, numbers, jitter)
            return False
        self._count += self.row.isdisjoint(numbers)
        self.row.update(numbers)
        if self._count < self._policy.failures:
            return False
        self.is_shut, self.since, self.out = True, now, None
        self._wait(now, jitter)
        return True

    def throttled(self, now: float, numbers: Collection[int], jitter: float) -> None:
        """A send of these messages was refused for now: if it was the probe, the next one waits."""
        if self.is_shut and self.out in numbers:
            self._wait(now, jitter)

    def _wait(self, now: float, jitter: float) -> None:
        assert self._policy is not None  # noqa: S101 (else it is never shut)
        self._probes += 1
        wait = grown(self._probes, first=self._policy.wait_initial, most=self._policy.wait_max)
        self.next_at = now + wait * (1 + _JITTER * jitter)
