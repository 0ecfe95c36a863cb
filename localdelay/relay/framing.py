"""Chunks of bytes into lines. Pure."""

from __future__ import annotations


class Splitter:
    r"""Splits what it is fed into lines, and keeps the one that is not finished, up to `longest` bytes.

    A line ends with `\n` or `\r\n`; all other bytes stay as they are. A line that is longer is dropped
    piece by piece as it comes, and None stands in its place as soon as it is known to be too long.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._begun = bytearray()
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that this chunk completes."""
        first_end = chunk.find(b"\n")
        if first_end < 0:
            return self._begin(chunk)
        if self._dropping:
            self._dropping = False
            chunk = chunk[first_end + 1 :]
        if self._begun:
            chunk = bytes(self._begun) + chunk
            self._begun = bytearray()
        found = chunk.replace(b"\r\n", b"\n").split(b"\n")
        rest = found.pop()
        return [*self._checked(found), *self._begin(rest)]

    def end(self) -> list[bytes | None]:
        """The last line, where no line break has ended it: nothing follows any more."""
        last = self.cut()
        return self._checked([last]) if last else []

    def cut(self) -> bytes:
        """What there is of the line that is not finished, and forget it."""
        cut = bytes(self._begun)
        self._begun = bytearray()
        self._dropping = False
        return cut

    def _begin(self, part: bytes) -> list[bytes | None]:
        if self._dropping:
            return []
        self._begun += part
        if len(self._begun) <= self._longest + 1:  # the last byte may be half of a line break
            return []
        self._begun = bytearray()
        self._dropping = True
        return [None]

    def _checked(self, lines: list[bytes]) -> list[bytes | None]:
        if max(map(len, lines), default=0) <= self._longest:
            return lines  # type: ignore[return-value]  # nobody else has this list
        return [line if len(line) <= self._longest else None for line in lines]
