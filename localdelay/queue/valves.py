"""A valve for each key: what a queue with keys asks and tells of its sends, and each key's valve decides."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

from localdelay.entry import Entry, message_of
from localdelay.keys import ByKey, Keys
from localdelay.limit import Limit
from localdelay.listening import Lines, Listener
from localdelay.logs import log
from localdelay.probe import ProbePolicy
from localdelay.statistics import KeySends

from .lines import Line
from .valve import Pace, Valve


class ValveOfKey(Valve):
    """That of one key: it counts what was sent of it, and has the lines of the log in common with others."""

    def __init__(
        self,
        limit: Limit | None,
        policy: ProbePolicy | None,
        pace: Pace,
        listener: Listener | None,
        shut_lines: Lines,
        key: Hashable,
    ) -> None:
        super().__init__(limit, policy, pace, listener, lambda: self._count)
        self._count = 0
        self._shut_lines = shut_lines
        self._key = key
        self._whose = " of one key"

    def sent(self, now: float, entries: Sequence[Entry], age: float) -> None:
        """These were sent. To be told always."""
        if now >= self.next_mark:
            self.mark(now)
        super().sent(now, entries, age)
        self._count += len(entries)


class Valves(Valve):
    """All valves of a queue, of which each has a limit and a probe; the pace is the queue's.

    What comes of sends and hand-backs is for the valve of their key, which `of` finds, and never for this.
    """

    def __init__(
        self,
        keys: Keys,
        limit: Limit | None,
        policy: ProbePolicy | None,
        pace: Pace,
        listener: Listener | None,
        lines: Mapping[Hashable, Line],
    ) -> None:
        super().__init__(limit, policy, pace, listener, int)
        self.probe.row.add(0)  # or nobody would tell of what was sent
        self.next_mark = math.inf  # each of them counts for itself
        self._keys = keys
        self._policy = policy
        self._lines = lines
        self._valves = ByKey(self._make, self._forget)
        self._has_failed = False
        self.news: set[Hashable] = set()
        """Keys of which something else may go than before."""

    def key_of(self, entry: Entry) -> Hashable:
        """The key of this message; None where there is none by now, though there was one at the put."""
        try:
            key = self._keys.key(message_of(entry))
            self._lines.get(key)  # its `hash` and its `==` are a stranger's, too
        except Exception as error:  # noqa: BLE001 (as it is: the message must go out all the same)
            if not self._has_failed:
                self._has_failed = True
                line = "key must give a key of each message: those of which it gives none share one now (%s)"
                log(logging.WARNING, line, type(error).__name__)
            return None
        return key

    def of(self, entries: Sequence[Entry]) -> Valve:
        """The valve of the key of these, which is used now: what is sent together has one key."""
        return self.of_key(self.key_of(entries[0]))

    def known(self, entry: Entry) -> Valve | None:
        """The same for one message without using it, if there is one."""
        return self.known_key(self.key_of(entry))

    def of_key(self, key: Hashable) -> Valve:
        """The valve of this key, which is used now."""
        return self._valves.of(key)

    def known_key(self, key: Hashable) -> Valve | None:
        """The same without using it, if there is one."""
        return self._valves.known(key)

    @property
    def limits(self) -> bool:
        """Whether not all that is due may go now: that is to be asked each time."""
        return True

    @property
    def limit_rate(self) -> float | None:
        """Messages a second that go, of all keys that are limited; None where none is."""
        rates = [rate for _, valve in self._valves.items() if (rate := valve.limit_rate) is not None]
        return sum(rates) if rates else None

    def keys(self, now: float) -> Mapping[Hashable, KeySends]:
        """How the sends of each key go, the least recently used first."""
        found = {}
        for key, valve in self._valves.items():
            line, probe = self._lines.get(key), valve.probe
            found[key] = KeySends(
                due=0 if line is None else len(line),
                is_shut=probe.is_shut,
                retry_in=max(0.0, probe.next_at - now) if probe.is_shut else 0.0,
                limit_rate=valve.limit_rate,
            )
        return found

    def give_back(self, entries: Sequence[Entry]) -> None:
        """These were let go, and are not sent: of senders elsewhere several keys come back at once."""
        for entry in entries:
            self.of([entry]).give_back([entry])

    def wants_nothing(self) -> None:
        """Nothing is to be sent after all: others may have what was owed."""
        for key, valve in self._valves.items():
            valve.wants_nothing()
            self.news.add(key)

    def _make(self, key: Hashable) -> Valve:
        limit = self._keys.limits.of(key)
        valve = ValveOfKey(limit, self._policy, self.pace, self._listener, self._shut_lines, key)
        valve.on_change = partial(self._note, key)
        return valve

    def _forget(self, key: Hashable) -> None:
        self._keys.limits.forget(key)  # the next one lets something go at once: nobody is asked for ever
        self._note(key)

    def _note(self, key: Hashable) -> None:
        self.news.add(key)
        self.on_change()
