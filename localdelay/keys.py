"""What each key of messages, a topic or a tenant, has of its own. Keys are strangers': so few are remembered.

`key(message)` gives something hashable. What is kept for a key is made when it is first used; of more keys
than `KEYS` the one that was used least recently is forgotten, and begins anew when it comes again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from . import arguments
from .limit import Limit
from .logs import told
from .message import Message

_T = TypeVar("_T")

Key: TypeAlias = Callable[[Message], Hashable]
"""Gives a message its key. It only computes, as a `Cost` does, and is called more than once for a message."""

KEYS = 1024
"""So many keys are remembered."""


def check_key(key: object) -> None:
    """Raise a `TypeError` unless this is an ordinary function, or None."""
    if key is None:
        return
    arguments.check_callable("key", key)
    if arguments.is_async(key):
        raise TypeError("key must be an ordinary function: an async one gives no key")


class ByKey(Generic[_T]):
    """One of something for each key that was used lately. In any thread."""

    def __init__(
        self, make: Callable[[Hashable], _T], forget: Callable[[Hashable], None] = lambda _: None
    ) -> None:
        """`forget` is told of a key that is forgotten."""
        self._make = make
        self._forget = forget
        self._lock = threading.RLock()  # what is made may tell a stranger, who asks
        self._by_key: OrderedDict[Hashable, _T] = OrderedDict()

    def of(self, key: Hashable) -> _T:
        """That of this key, which is used now. Raises `TypeError` for what is no key."""
        with self._lock:
            one = self._by_key.get(key)
            if one is not None:
                self._by_key.move_to_end(key)
                return one
            self._by_key[key] = one = self._make(key)
            if len(self._by_key) > KEYS:
                self._forget(self._by_key.popitem(last=False)[0])
            return one

    def known(self, key: Hashable) -> _T | None:
        """That of this key, if there is one; this is no use of it."""
        return self._by_key.get(key)

    def items(self) -> list[tuple[Hashable, _T]]:
        """All of them with their keys, the least recently used first."""
        with self._lock:
            return list(self._by_key.items())


class Limits:
    """A limit for each key, copied from one. Whoever uses that of a key has the same one. In any thread."""

    def __init__(self, limit: Limit | None) -> None:
        """Raises `TypeError` for a limit that can't be copied."""
        if limit is not None:
            limit.copy()
        self._limit = limit
        self._lock = threading.RLock()  # as a gate's
        # Held by those who use them, who forget them: so these need no bound of their own.
        self._by_key: WeakValueDictionary[Hashable, Limit] = WeakValueDictionary()

    def of(self, key: Hashable) -> Limit | None:
        """That of this key; None where nothing is limited."""
        if self._limit is None:
            return None
        with self._lock:
            one = self._by_key.get(key)
            if one is None:
                one = self._by_key[key] = self._limit.copy()
                one.lines = self._limit.lines
            return one

    def forget(self, key: Hashable) -> None:
        """Whoever asks for that of this key from now on gets another one, which has found nothing yet."""
        with self._lock:
            self._by_key.pop(key, None)


class Keys:
    """The keys of a queue, for all who share them."""

    def __init__(self, key: Key, limit: Limit | None) -> None:
        check_key(key)
        self.key = key
        self.limits = Limits(limit)

    def check(self, message: Message) -> None:
        """Raise a `ValueError` where `key` raises, and a `TypeError` where it gives nothing hashable."""
        try:
            its_key = self.key(message)
        except Exception as error:
            raise ValueError(f"key must give a key of the message, and raised {told(error)}") from error
        try:
            hash(its_key)
        except Exception:  # noqa: BLE001 (a stranger's)
            raise TypeError(f"key must give something hashable, not {type(its_key).__name__}") from None
