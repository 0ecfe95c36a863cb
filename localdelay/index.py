"""The bodies of what waits, by number, for those who look one up or cancel it.

A dict of millions stops the world for as long as it takes to grow, and never shrinks. Numbers are given out
one after the other, so a dict of small pages does as well with a sixth of the memory: it grows a page at
a time, and a page goes when the last body of it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .entry import Body, Entry

_BITS = 6
_SIZE = 1 << _BITS
_MASK = _SIZE - 1


class Index:
    """Bodies by their numbers. A page is a list of so many bodies or None, and then how many they are."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, list[Any]] = {}

    def put(self, number: int, body: Body) -> None:
        """Keep a body under a number that is not there yet."""
        self.put_all([(0.0, number, body)])

    def put_all(self, entries: Iterable[Entry]) -> None:
        """Keep the bodies of all of these."""
        get = self._pages.get
        for _, number, body in entries:
            page = get(number >> _BITS)
            if page is None:
                page = self._pages[number >> _BITS] = [None] * _SIZE
                page.append(0)
            page[number & _MASK] = body
            page[_SIZE] += 1

    def get(self, number: int) -> Body | None:
        """The body under this number, or None."""
        page = self._pages.get(number >> _BITS)
        body: Body | None = None if page is None else page[number & _MASK]
        return body

    def pop(self, number: int) -> Body | None:
        """Take out the body under this number; None where there is none."""
        page = self._pages.get(number >> _BITS)
        if page is None:
            return None
        body: Body | None = page[number & _MASK]
        if body is not None:
            page[number & _MASK] = None
            page[_SIZE] -= 1
            if not page[_SIZE]:
                del self._pages[number >> _BITS]
        return body
