"""The gate before the primary: one for all messages, or one for each key."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping

import attrs

from localdelay.breaker import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, OPEN, Breaker, BreakerState
from localdelay.gate import Gate
from localdelay.keys import ByKey, Key
from localdelay.message import Message


@attrs.frozen
class KeyStatistics:
    """How the primary is for the messages of one key."""

    breaker: BreakerState
    """Whether it is called."""
    retry_in: float | None
    """Seconds until an open breaker lets a call through; 0 where calls go through, None if forced open."""
    limit_rate: float | None
    """Calls a second that the limit lets through; None while it lets all through."""


class Gates:
    """Gives each message its gate. In any thread."""

    def __init__(self, make: Callable[[Hashable], Gate], key: Key | None) -> None:
        """`make` makes the gate of a key, or of all messages, for None."""
        self._make = make
        self._key = key
        self._by_key = ByKey(self._new)
        self._commands: list[Callable[[Breaker, float], None]] = []  # the last one, for keys that are new
        self.on_change: Callable[[], None] = lambda: None
        """Called in the thread that has changed a breaker's state, or given back a trial."""
        self.only = self._new(None) if key is None else None
        """The only one, where there are no keys."""

    def of(self, message: Message) -> Gate:
        """The gate of this message. Raises what `key` raises, and `TypeError` where it gives no key."""
        if self.only is not None:
            return self.only
        assert self._key is not None  # noqa: S101 (or there was an only one)
        return self._by_key.of(self._key(message))

    def command(self, act: Callable[[Breaker, float], None]) -> None:
        """Have every breaker do this, also those that are still to come."""
        self._commands = [act]  # first: one that is made meanwhile has it, or is among these
        for gate in self:
            gate.command(act)

    def __iter__(self) -> Iterator[Gate]:
        if self.only is not None:
            return iter((self.only,))
        return iter([gate for _, gate in self._by_key.items()])

    @property
    def retry_in(self) -> float:
        """Seconds until a call may be let through for some message; 0 where one may now."""
        return min((gate.retry_in for gate in self), default=0.0)

    @property
    def limit_rate(self) -> float | None:
        """Calls a second that are let through for all keys that are limited; None where none is."""
        rates = [rate for gate in self if (rate := gate.limit_rate) is not None]
        return sum(rates) if rates else None

    @property
    def worst(self) -> Gate | None:
        """The gate that lets the least through, where there is any."""
        return max(self, key=lambda gate: (_RISING.index(gate.state), gate.state_for), default=None)

    def statistics(self) -> Mapping[Hashable, KeyStatistics]:
        """Of each key, the least recently used first."""
        return {key: _statistics(gate) for key, gate in self._by_key.items()}

    def _new(self, key: Hashable) -> Gate:
        gate = self._make(key)
        gate.on_change = self._note_change
        for act in self._commands:
            gate.command(act)
        return gate

    def _note_change(self) -> None:
        self.on_change()


_RISING = (DISABLED, CLOSED, HALF_OPEN, OPEN, FORCED_OPEN)


def _statistics(gate: Gate) -> KeyStatistics:
    retry_in = gate.retry_in
    return KeyStatistics(gate.state, None if retry_in == math.inf else retry_in, gate.limit_rate)
