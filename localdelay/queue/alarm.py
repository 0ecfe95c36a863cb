"""The alarm: until when whoever takes the next message sleeps, and what wakes him before."""

from __future__ import annotations

import math

from localdelay.timer import Timer


class Alarm:
    """One for a queue. Of its loop's thread, but that others may read `until`.

    Whoever goes to sleep sets it first; whoever brings in a message that is due before it, or changes what
    may be taken, rings. So nothing that comes waits for him who sleeps, and nothing else wakes him.
    """

    __slots__ = ("timer", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        """In seconds on Trio's clock. -inf: nobody sleeps, or all but ringing is no reason to wake him."""
        self.timer = Timer()
        """What he sleeps by."""

    def ring(self) -> None:
        """Have him look again: an earlier message has come, or the rules have changed."""
        # Off at once: who comes before he has woken needs not ring again.
        self.until = -math.inf
        self.timer.wake()
