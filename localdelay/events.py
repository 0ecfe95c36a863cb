"""What a `Listener` is told, as frozen objects.

    class Alerts:
        def on_event(self, event):
            match event:
                case events.Degraded(reason=reason, at_risk=at_risk):
                    degraded.labels(reason.value).inc()
                case events.Opened(retry_in=seconds):
                    page("the primary is down")

It is told in the thread in which they happen.
"""

from .listening import (
    Closed,
    DeadLetter,
    Degraded,
    Event,
    Full,
    HalfOpened,
    HandedBack,
    LimitBegan,
    LimitEnded,
    Opened,
    SendingOpened,
    SendingShut,
)

__all__ = [
    "Closed",
    "DeadLetter",
    "Degraded",
    "Event",
    "Full",
    "HalfOpened",
    "HandedBack",
    "LimitBegan",
    "LimitEnded",
    "Opened",
    "SendingOpened",
    "SendingShut",
]
