"""What one fault came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from tests.kit.faults.counting import Count
from tests.kit.faults.scale import Watch

_COLUMNS = ("cycles", "accepted", "arrived", "lost", "duplicated", "early")


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table. All counts are of messages, and none is the library's own."""

    fault: str
    cycles: int
    """How often it was done."""
    accepted: int = 0
    """Messages whose put has returned."""
    arrived: int = 0
    """Those of them that the broker has."""
    lost: int = 0
    """Those that it has not, and that nobody was told of either."""
    duplicated: int = 0
    """Copies beyond the first."""
    allowed_duplicates: int = 0
    """As many as may have been in flight when the fault struck."""
    early: int = 0
    """Copies that were there before they were due."""
    seconds: float
    notes: str = ""
    wrong: tuple[str, ...] = ()
    """What else is not as it must be."""

    @classmethod
    def of(cls, fault: str, counted: Count, watch: Watch, *, wrong: Sequence[str] = (), **others: Any) -> Row:
        """What was counted, and what else was found wrong."""
        counts = {name: getattr(counted, name) for name in ("arrived", "lost", "duplicated", "early")}
        wrong = tuple(dict.fromkeys((*wrong, *counted.wrong)))
        return cls(**{"fault": fault, **counts, "seconds": watch.seconds, "wrong": wrong, **others})

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.early or self.wrong) and 0 <= self.duplicated <= self.allowed_duplicates


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a table of them; a row that is bad says why."""
    rows = list(rows)
    lines = [("fault", *_COLUMNS, "seconds"), *map(_cells, rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for row, (fault, *cells) in zip([None, *rows], lines, strict=True):
        line = "  ".join([fault.ljust(first), *map(str.rjust, cells, others)])
        if row is None:
            yield line
            continue
        yield line + (f"  {row.notes}" if row.notes else "") + ("" if row.is_good else "  BAD")
        for wrong in row.wrong:
            yield f"  wrong: {wrong}"


def _cells(row: Row) -> tuple[str, ...]:
    cells = {column: f"{getattr(row, column):,}" for column in _COLUMNS}
    if row.duplicated:
        cells["duplicated"] += f" of {row.allowed_duplicates:,}"
    return row.fault, *cells.values(), f"{row.seconds:.1f}"
