"""What a run keeps of what happens in it, as it happens: a listener of its `Fallback`."""

from __future__ import annotations

import attrs
import trio

from localdelay.breaker import BreakerState
from localdelay.demo.timeline import BreakerChange
from localdelay.fallback.events import Degraded, HandedBack
from localdelay.listening import Closed, Event, HalfOpened, Opened, Reason

_STATES = {
    Opened: BreakerState.OPEN.value,
    HalfOpened: BreakerState.HALF_OPEN.value,
    Closed: BreakerState.CLOSED.value,
}


@attrs.define
class Record:
    """One run, with times in seconds since `start`. What was received is counted by the reader."""

    start: float = 0.0
    """The first publish, on Trio's clock."""
    due: dict[str, float] = attrs.field(factory=dict)
    """When each published message is due, on Trio's clock."""
    refused: int = 0
    primary: list[float] = attrs.field(factory=list)
    """When the broker confirmed each publish that it took."""
    local: list[float] = attrs.field(factory=list)
    """When each message was degraded."""
    handed_back: list[float] = attrs.field(factory=list)
    changes: list[BreakerChange] = attrs.field(factory=list)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return trio.current_time() - self.start

    @property
    def breaker(self) -> str:
        """The state of the breaker."""
        return self.changes[-1].state if self.changes else BreakerState.CLOSED.value

    def on_event(self, event: Event) -> None:
        """Note what the fallback tells."""
        if isinstance(event, Degraded):
            self.local.append(self.now)
            self.refused += event.reason is Reason.THROTTLED
        elif isinstance(event, HandedBack):
            self.handed_back.append(self.now)
        elif type(event) in _STATES:
            self.changes.append(BreakerChange(self.now, _STATES[type(event)]))
