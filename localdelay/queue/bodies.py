"""The bodies of what waits, by number, for those who look one up or cancel it.

A dict of millions stops the world for as long as it takes to grow, and never shrinks. Numbers are given out
in runs, so a dict of small pages does as well with a sixth of the memory: it grows a page at
a time, and a page goes when the last body of it does. Numbers that the primary took leave holes: where one
message in a hundred is degraded, most pages have one body, and it takes 400 bytes instead of 13.

A page that is full is a tuple, which the garbage collector looks at once and then never again. It is a list
while it fills, and from when the first body of it goes: a collection would go through all of what waits, if
it were lists, and touch each payload, for milliseconds in which nothing is sent.
"""

from __future__ import annotations

from typing import Any

from localdelay.entry import Body

_BITS = 5
_SIZE = 1 << _BITS
_MASK = _SIZE - 1
_NOTHING: list[Any] = [None] * _SIZE


class Index:
    """Bodies by their numbers. A page is so many bodies or None, and then how many they are."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, Any] = {}

    def put(self, number: int, body: Body) -> None:
        """Keep a body under a number that is not there yet."""
        low = number & _MASK
        self._fill(number >> _BITS, low, low + 1, [body])

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
            if page[_SIZE] == _SIZE:
                page = self._pages[number >> _BITS] = list(page)
            page[number & _MASK] = None
            page[_SIZE] -= 1
            if not page[_SIZE]:
                del self._pages[number >> _BITS]
        return body

    # Numbers that are dealt with together mostly follow each other. Then it is done a page at a time.

    def put_all(self, numbers: list[int], bodies: list[Body]) -> None:
        """Keep each of these bodies under its number."""
        if not _follow_each_other(numbers):
            for number, body in zip(numbers, bodies, strict=True):
                self.put(number, body)
            return
        number, start = numbers[0], 0
        while start < len(bodies):
            low = number & _MASK
            here = bodies[start : start + _SIZE - low]
            self._fill(number >> _BITS, low, low + len(here), here)
            start += len(here)
            number += len(here)

    def get_all(self, numbers: list[int]) -> list[Body | None]:
        """The body under each of these numbers, or None."""
        if not _follow_each_other(numbers):
            return [self.get(number) for number in numbers]
        bodies: list[Body | None] = []
        number, end = numbers[0], numbers[-1] + 1
        while number < end:
            page = self._pages.get(number >> _BITS, _NOTHING)
            low = number & _MASK
            bodies += page[low : min(_SIZE, low + end - number)]
            number += _SIZE - low
        return bodies

    def drop_all(self, numbers: list[int]) -> None:
        """Take out the bodies under these numbers, which are all there."""
        if not _follow_each_other(numbers):
            for number in numbers:
                self.pop(number)
            return
        number, end = numbers[0], numbers[-1] + 1
        while number < end:
            page = self._pages[number >> _BITS]
            low = number & _MASK
            here = min(_SIZE - low, end - number)
            if page[_SIZE] == here:
                del self._pages[number >> _BITS]
            else:
                if page[_SIZE] == _SIZE:
                    page = self._pages[number >> _BITS] = list(page)
                page[low : low + here] = _NOTHING[:here]
                page[_SIZE] -= here
            number += here

    def _fill(self, key: int, low: int, high: int, bodies: list[Body]) -> None:
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = [*_NOTHING, 0]
        page[low:high] = bodies
        page[_SIZE] += high - low
        if page[_SIZE] == _SIZE:
            self._pages[key] = tuple(page)


def _follow_each_other(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
