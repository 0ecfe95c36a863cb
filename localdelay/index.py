"""The bodies of what waits, by number, for those who look one up or cancel it.

A dict of millions stops the world for as long as it takes to grow, and never shrinks. Numbers are given out
one after the other, so a dict of small pages does as well with a sixth of the memory: it grows a page at
a time, and a page goes when the last body of it does. Numbers that the primary took leave holes: where one
message in a hundred is degraded, most pages have one body, and it takes 400 bytes instead of 13.
"""

from __future__ import annotations

from typing import Any

from .entry import Body

_BITS = 5
_SIZE = 1 << _BITS
_MASK = _SIZE - 1


class Index:
    """Bodies by their numbers. A page is a list of so many bodies or None, and then how many they are."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, list[Any]] = {}

    def put(self, number: int, body: Body) -> None:
        """Keep a body under a number that is not there yet."""
        self._put_run(number, [body])

    def put_all(self, numbers: list[int], bodies: list[Body]) -> None:
        """Keep each of these bodies under its number."""
        first = numbers[0]
        if numbers == list(range(first, first + len(numbers))):  # mostly, and then it is done page by page
            self._put_run(first, bodies)
        else:
            for number, body in zip(numbers, bodies, strict=True):
                self._put_run(number, [body])

    def _put_run(self, number: int, bodies: list[Body]) -> None:
        while bodies:
            page = self._pages.get(number >> _BITS)
            if page is None:
                page = self._pages[number >> _BITS] = [None] * _SIZE
                page.append(0)
            low = number & _MASK
            here = bodies[: _SIZE - low]
            page[low : low + len(here)] = here
            page[_SIZE] += len(here)
            number += len(here)
            del bodies[: len(here)]

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
