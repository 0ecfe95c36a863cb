"""The gate, with what several threads do to it laid out one step after the other."""

from __future__ import annotations

import pytest

from localdelay.gate import Gate
from localdelay.limit import Limit
from localdelay.listening import Event, LimitBegan, LimitEnded


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


class Flapping(Limit):
    """Its rate is another each time that somebody looks."""

    adapts = True

    def __init__(self, rates: list[float | None]) -> None:
        super().__init__()
        self._rates = rates

    @property
    def limit_rate(self) -> float | None:
        return self._rates.pop(0)

    @property
    def wait(self) -> float:
        return 0.0

    def try_acquire(self) -> bool:
        return True

    def give_back(self) -> None:
        """Nothing was taken."""


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([None, 5.0, None], []),
        ([None, 5.0, 6.0, None, None], [LimitBegan(6.0), LimitEnded(0.0)]),
        ([None, 5.0, 6.0, None, 7.0], [LimitBegan(6.0)]),
    ],
)
def test_a_limit_that_is_off_again_has_not_begun(rates: list[float | None], said: list[Event]) -> None:
    """What it is counts, and not what it was before the lock was there: another thread comes in between."""
    heard = Heard()
    gate = Gate(None, Flapping(rates), heard, lambda: 10.0)
    while rates:
        gate.ask()
    assert heard.events == said
