"""The fine knobs of an instance, and what it says about itself."""

from __future__ import annotations

import attrs

from localdelay import arguments
from localdelay.statistics import Statistics


def _seconds(default: float, least: float) -> float:
    check = arguments.field_at_least(least, "a number of seconds")
    return attrs.field(default=default, validator=check)


@attrs.frozen(kw_only=True)
class RedisTuning:
    """How an instance of a queue in Redis goes about it; the defaults fit most. Times are in seconds.

    An argument that is no number is a `TypeError`, and one that is out of its range a `ValueError`.
    """

    shard_messages: int = attrs.field(default=4_000, validator=arguments.field_count)
    """The most messages of a shard, which is what one key holds."""
    shard_bytes: int = attrs.field(default=8_000_000, validator=arguments.field_count)
    """The most bytes of these."""
    lease: float = _seconds(30.0, 0.001)
    """How long a claim holds. It is renewed in time; what a dead instance has claimed waits for its end."""
    claim_ahead: float = _seconds(1.0, 0.01)
    """How long before it is due a message may be claimed."""
    confirm_within: float = _seconds(0.1, 0)
    """After its send a message is confirmed within this: what a crash sends again."""
    linger: float = _seconds(0.01, 0)
    """How long a put may wait for those of other tasks, to go with them."""
    replicas: int | None = attrs.field(default=None, validator=arguments.field_count_or_none)
    """So many replicas have a message, too, when its put returns (Redis's WAIT), and a failover to one of
    them loses none. None: a failover loses what had not been copied yet."""
    heartbeat: float = _seconds(5.0, 0.01)
    """How often an instance asks whether all is as it thinks."""


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
