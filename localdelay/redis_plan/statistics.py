"""What an instance says about itself."""

from __future__ import annotations

import attrs

from localdelay.statistics import Statistics


@attrs.frozen(kw_only=True)
class RedisStatistics(Statistics):
    """One instance at one instant: what it has claimed, and what became of that.

    The conservation equation holds for what this instance has claimed: `accepted` counts claims, `spooled`
    what it gave up to Redis again (to be retried later, on leaving, or because its lease had ended), and
    `pending` is what it holds. What waits in Redis is not in here: see `RedisDelayQueue.count`. Nothing is at
    risk, for Redis has it all.
    """

    put: int
    """Messages that Redis has taken in from this instance."""
    unconfirmed: int
    """Messages of which Redis is not yet told what became of them."""
    shards: int
    """Shards that new messages go to."""
    retiring: int
    """Shards that get no new ones, and are not known to be empty."""
    connected: bool
    """Whether Redis can be reached."""
    connections: int
    """Connections that were made so far."""
    commands: int
    """Commands that were sent to Redis so far."""
