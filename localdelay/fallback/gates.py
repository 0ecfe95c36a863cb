"""The gate before the primary: one for all messages, or one for each key."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping

import attrs

from localdelay.breaker import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, OPEN, Breaker, BreakerState
from localdelay.gate import Gate
from localdelay.message import Message

KEYS = 1024
"""So many keys have a gate of their own; the one that was used least recently is forgotten."""


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

    def __init__(self, make: Callable[[], Gate], key: Callable[[Message], Hashable] | None) -> None:
        self._make = make
        self._key = key
        self._lock = threading.Lock()
        self._by_key: OrderedDict[Hashable, Gate] = OrderedDict()
        self._commands: list[Callable[[Breaker, float], None]] = []  # the last one, for keys that are new
        self.on_change: Callable[[], None] = lambda: None
        """Called in the thread that has changed a breaker's state, or given back a trial."""
        self.only = self._new() if key is None else None
        """The only one, where there are no keys."""

    def of(self, message: Message) -> Gate:
        """The gate of this message. Raises what `key` raises, and `TypeError` where it gives no key."""
        if self.only is not None:
            return self.only
        assert self._key is not None  # noqa: S101 (or there was an only one)
        key = self._key(message)
        with self._lock:
            gate = self._by_key.get(key)
            if gate is None:
                self._by_key[key] = gate = self._new()
                for act in self._commands:
                    gate.command(act)
                if len(self._by_key) > KEYS:
                    self._by_key.popitem(last=False)
            else:
                self._by_key.move_to_end(key)
            return gate

    def command(self, act: Callable[[Breaker, float], None]) -> None:
        """Have every breaker do this, also those that are still to come."""
        with self._lock:
            self._commands = [act]
        for gate in self:
            gate.command(act)

    def __iter__(self) -> Iterator[Gate]:
        if self.only is not None:
            return iter((self.only,))
        with self._lock:
            return iter(list(self._by_key.values()))

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
        with self._lock:
            gates = list(self._by_key.items())
        return {key: _statistics(gate) for key, gate in gates}

    def _new(self) -> Gate:
        gate = self._make()
        gate.on_change = self._note_change
        return gate

    def _note_change(self) -> None:
        self.on_change()


_RISING = (DISABLED, CLOSED, HALF_OPEN, OPEN, FORCED_OPEN)


def _statistics(gate: Gate) -> KeyStatistics:
    retry_in = gate.retry_in
    return KeyStatistics(gate.state, None if retry_in == math.inf else retry_in, gate.limit_rate)
