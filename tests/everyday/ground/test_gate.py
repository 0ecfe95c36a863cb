"""The gate, with what several threads do to it laid out one step after the other."""

from __future__ import annotations

import pytest

from localdelay import AdaptiveLimit, Message
from localdelay.breaker import TAKEN, THROTTLED
from localdelay.gate import Gate
from localdelay.limit import Limit
from localdelay.listening import Event, LimitBegan, LimitEnded

MESSAGE = Message("a", b"", 0.0)


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

    def try_acquire(self, count: float = 1) -> bool:
        return True

    def give_back(self, count: float = 1) -> None:
        """Nothing was taken."""

    def owe(self, count: float) -> float:
        return 0.0


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
        gate.ask(MESSAGE, 10.0)
    assert heard.events == said


@pytest.mark.parametrize("offset", [-5000.0, 0.0, 5000.0])
@pytest.mark.parametrize(("age", "cuts"), [(0.0, True), (0.5, True), (0.625, False), (3.0, False)])
def test_gates_of_several_clocks_share_a_limit(offset: float, age: float, cuts: bool) -> None:
    """A refusal says the same whichever gate it came through: what counts is how old the call is."""
    now = 10_000.0
    limit = AdaptiveLimit()
    first = Gate(None, limit, None, lambda: now)
    Gate(None, limit, None, lambda: now + offset)  # whose clock the limit goes by
    for _ in range(100):
        ticket, _ = first.ask(MESSAGE, now)
        assert ticket is not None
        first.record(ticket, TAKEN)
        now += 0.125
    ticket, _ = first.ask(MESSAGE, now)
    assert ticket is not None
    first.record(ticket, THROTTLED)
    found = limit.limit_rate
    assert found is not None
    now += 1.0
    first.record((ticket[0], now - age, 1.0), THROTTLED)
    assert (limit.limit_rate != found) is cuts
