"""A valve for each of the keys that were used lately, and one before them all that finds it."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

from localdelay.entry import Entry, message_of
from localdelay.keys import ByKey, Keys
from localdelay.limit import Limit
from localdelay.listening import Listener
from localdelay.logs import log
from localdelay.probe import ProbePolicy
from localdelay.statistics import KeySends

from .schedule import Schedule
from .valve import Pace, Valve


class ValveOfKey(Valve):
    """That of one key: it counts what was sent of it, and has the lines of the log in common with others."""

    def __init__(self, key: Hashable, limit: Limit | None, policy: ProbePolicy | None, all_: Valves) -> None:
        note = partial(all_.note, key)
        super().__init__(limit, policy, all_.pace, all_.listener, lambda: self._count, note)
        self._count = 0
        self.shut_lines = all_.shut_lines
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
        policy: ProbePolicy | None,
        pace: Pace,
        listener: Listener | None,
        schedule: Schedule,
    ) -> None:
        super().__init__(None, policy, pace, listener, int, schedule.alarm.ring)
        self.probe.row.add(0)  # or nobody would tell of what was sent
        self.next_mark = math.inf  # each of them counts for itself
        self._keys = keys
        self._policy = policy
        self._schedule = schedule
        self.by_key: ByKey[Valve] = ByKey(self._make, self._forget)
        self._has_failed = False
        self.news: set[Hashable] = set()
        """Keys of which something else may go than before."""

    def key_of(self, entry: Entry) -> Hashable:
        """The key of this message; None where there is none by now, though there was one at the put."""
        try:
            key = self._keys.key(message_of(entry))
            self._schedule.lines.get(key)  # its `hash` and its `==` are a stranger's, too
        except Exception as error:  # noqa: BLE001 (as it is: the message must go out all the same)
            if not self._has_failed:
                self._has_failed = True
                line = "key must give a key of each message: those of which it gives none share one now (%s)"
                log(logging.WARNING, line, type(error).__name__)
            return None
        return key

    def of(self, entries: Sequence[Entry]) -> Valve:
        """The valve of the key of these, which is used now: what is sent together has one key."""
        return self.by_key.of(self.key_of(entries[0]))

    def known(self, entry: Entry) -> Valve | None:
        """The same for one message without using it, if there is one."""
        return self.by_key.known(self.key_of(entry))

    @property
    def limit_rate(self) -> float | None:
        """Messages a second that go, of all keys that are limited; None where none is."""
        rates = [rate for _, valve in self.by_key.items() if (rate := valve.limit_rate) is not None]
        return sum(rates) if rates else None

    def keys(self, now: float) -> Mapping[Hashable, KeySends]:
        """How the sends of each key go, the least recently used first."""
        found = {}
        for key, valve in self.by_key.items():
            line, probe = self._schedule.lines.get(key), valve.probe
            found[key] = KeySends(
                due=0 if line is None else line.count(),
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
        for key, valve in self.by_key.items():
            valve.wants_nothing()
            self.news.add(key)

    def _make(self, key: Hashable) -> Valve:
        return ValveOfKey(key, self._keys.limits.of(key), self._policy, self)

    def _forget(self, key: Hashable) -> None:
        self._keys.limits.forget(key)  # the next one lets something go at once: nobody is asked for ever
        self.note(key)

    def note(self, key: Hashable) -> None:
        """Something else of this key may go than before."""
        self.news.add(key)
        self._on_change()
