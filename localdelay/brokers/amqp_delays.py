"""The queues that delay messages for another one. Pure.

RabbitMQ deletes such a queue, with all that is in it, when it was not declared for its delay and ten
minutes more (`x-expires`). No message is lost by that: a queue is declared again ahead of the first message
that comes a minute or more after the last declaration. So a message is written at most 60 s after a
declaration; it is confirmed at most 300 s after that (`confirm_timeout` can't be more), or counts as not
taken; and it leaves when its delay is over, four minutes before the queue may go. The broker handles
declaration and message in this order, so it may stand still for as long as it likes. A node that
restarts begins to count anew. Only to set a broker's clock back by minutes would break this: time to live
is counted on the wall clock.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from localdelay.errors import PermanentSendError

DelayQueueType = Literal["classic", "quorum"]

SHORT: Final = 255
"""Bytes of UTF-8 that a name may have."""
LONGEST_DELAY: Final = 315_360_000_000 - 600_000
"""Milliseconds: RabbitMQ lets a queue live unused for ten years."""
LEASE_MARGIN: Final = 600.0
"""Seconds that a delay queue lives longer than what was put into it when it was declared."""
_DIGITS = 3


def quantised(delay: float) -> int:
    """A delay in seconds as whole milliseconds of three significant digits, rounded up: at most 1 % more.

    So that there are at most 900 delay queues a decade. Raises `PermanentSendError` above ten years.
    """
    # What a float is off by, such as 1.11 · 1000, is no millisecond: it is less than a nanosecond.
    milliseconds = math.ceil(round(delay * 1000, 6))
    step: int = 10 ** max(0, len(str(milliseconds)) - _DIGITS)
    rounded = -(-milliseconds // step) * step
    if rounded > LONGEST_DELAY:  # what is sent, and not what was asked for: the broker closes the channel
        raise PermanentSendError(f"RabbitMQ's longest delay is {LONGEST_DELAY / 1000:g} s, not {delay:g} s")
    return rounded


def delay_queue(queue: str, milliseconds: int, type: DelayQueueType) -> str:
    """The name of the queue that delays messages for another one by so much."""
    suffix = "" if type == "classic" else f".{type}"
    return f"localdelay.{queue}.{milliseconds}{suffix}"


def delay_arguments(queue: str, milliseconds: int, type: DelayQueueType) -> dict[str, str | int]:
    """The arguments that such a queue is declared with: of its name alone, so that all declare the same."""
    arguments: dict[str, str | int] = {
        "x-queue-type": type,
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        # Under a policy that bounds its length it refuses, where it would else dead-letter early.
        "x-overflow": "reject-publish",
        "x-expires": milliseconds + int(LEASE_MARGIN * 1000),
    }
    if type == "quorum":
        arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments
