"""A valve for each key: what a queue with keys asks and tells of its sends, and each key's valve decides."""

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

from .lines import Line
from .valve import Pace, Valve


class KeyedValve(Valve):
    """All valves of a queue, of which each has a limit and a probe; the pace is the queue's."""

    def __init__(
        self,
        keys: Keys,
        limit: Limit | None,
        policy: ProbePolicy | None,
        pace: Pace,
        listener: Listener | None,
        lines: Mapping[Hashable, Line],
    ) -> None:
        super().__init__(limit, policy, pace, listener)
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

    def of(self, key: Hashable) -> Valve:
        """The valve of this key, which is used now."""
        return self._valves.of(key)

    def known(self, key: Hashable) -> Valve | None:
        """The same without using it, if there is one."""
        return self._valves.known(key)

    def _of(self, entries: Sequence[Entry]) -> Valve:
        return self.of(self.key_of(entries[0]))  # what is sent together has one key

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

    def is_shut_for(self, entry: Entry) -> bool:
        """Whether this message may only go as a probe."""
        return self._of([entry]).probe.is_shut

    def give_back(self, entries: Sequence[Entry]) -> None:
        """These were let go, and are not sent: of senders elsewhere several keys come back at once."""
        for entry in entries:
            self._of([entry]).give_back([entry])

    def wants_nothing(self) -> None:
        """Nothing is to be sent after all: others may have what was owed."""
        for key, valve in self._valves.items():
            valve.wants_nothing()
            self.news.add(key)

    def sent(self, now: float, entries: Sequence[Entry], age: float) -> None:
        """These were sent."""
        valve = self._of(entries)
        if now >= valve.next_mark:
            valve.mark(now)
        valve.sent(now, entries, age)
        valve.count += len(entries)

    def failed(self, now: float, entries: Sequence[Entry], error: Exception, age: float) -> None:
        """A send of these has failed, and none of them was sent."""
        self._of(entries).failed(now, entries, error, age)

    def given_up(self, entries: Sequence[Entry]) -> None:
        """These are not sent any more: if one of them was the probe of its key, another is."""
        if entries:
            self._of(entries).given_up(entries)

    def record(
        self,
        now: float,
        entries: Sequence[Entry],
        age: float,
        error: Exception | None,
        *,
        delayed: bool = False,
    ) -> None:
        """Tell the limit of their key what a call with these came to."""
        self._of(entries).record(now, entries, age, error, delayed=delayed)

    def next_hand_back(self, entry: Entry, now: float) -> float:
        """When this may be handed back: now, or at its place behind the others of its key."""
        return self._of([entry]).next_hand_back(entry, now)

    def _make(self, key: Hashable) -> Valve:
        limit = self._keys.limits.of(key)
        valve = Valve(limit, self._policy, self.pace, self._listener, None, self._shut_lines, key)
        valve.on_change = partial(self._note, key)
        return valve

    def _forget(self, key: Hashable) -> None:
        self._keys.limits.forget(key)  # the next one lets something go at once: nobody is asked for ever
        self._note(key)

    def _note(self, key: Hashable) -> None:
        self.news.add(key)
        self.on_change()
