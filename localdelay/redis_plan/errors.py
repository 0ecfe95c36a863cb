"""The one error that is this plan's own."""

from __future__ import annotations

from localdelay.errors import Throttled


class RedisUnreachable(Throttled, ConnectionError):
    """There is no connection to Redis at this moment, and nothing was sent.

    It is a `Throttled`, for a `Fallback` may hold the message without a doubt: Redis does not have it.
    A connection that is lost with a put under way is a mere `ConnectionError`: nobody can tell.
    """
