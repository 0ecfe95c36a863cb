"""What travels with a message besides its payload, and what a broker's clock makes of execute-at.

`Localdelay-Id`, `Localdelay-Attempt` and `Localdelay-Execute-At` (wall clock, RFC 3339 in UTC), where the
broker has headers, beside the message's own. Consumers deduplicate by the id.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from localdelay.message import Message

ID = "Localdelay-Id"
ATTEMPT = "Localdelay-Attempt"
EXECUTE_AT = "Localdelay-Execute-At"

OWN = frozenset({ID, ATTEMPT, EXECUTE_AT})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def headers_of(message: Message, now: float, due: str | None = None) -> dict[str, str]:
    """What travels with a message, `now` on Trio's clock; `due` is RFC 3339, and execute-at unless given."""
    if due is None:
        due = rfc3339(wall_clock(message.execute_at, now))
    headers = {ID: message.id, ATTEMPT: str(message.attempt), EXECUTE_AT: due}
    if message.headers:
        headers |= {name: value for name, value in message.headers.items() if name not in OWN}
    return headers


def wall_clock(instant: float, now: float) -> float:
    """The Unix time in seconds of an instant on Trio's clock, as the wall clock stands now."""
    return time.time() + (instant - now)


def rfc3339(timestamp: float) -> str:
    """A Unix time in seconds as RFC 3339 with microseconds, rounded up: nothing is due early."""
    seconds, microseconds = divmod(math.ceil(timestamp * 1e6), 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}+00:00"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    # It takes longer than all the rest of a header, and many messages are due in the same second.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]
