"""A figure, what is aimed at, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from .samples import table

_FORMATS = {
    "ms": "{:,.2f} ms",
    "%": "{:.3g} %",
    "s": "{:.2f} s",
    "GB": "{:.2f} GB",
    "B": "{:,.0f} B",
    "µs": "{:.2f} µs",
    "×": "{:.2f} ×",
    "": "{:,.0f}",
}


@attrs.frozen
class Figure:
    """One line of the table. Every target is an upper bound."""

    name: str
    value: float | None
    """None: this system does not tell."""
    unit: str = ""
    at_most: float | None = None
    """The target; None where there is none. 0 is not about speed: a figure over it is a broken promise."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is no target or no value."""
        if self.at_most is None or self.value is None:
            return None
        return self.value <= self.at_most

    @property
    def is_broken_promise(self) -> bool:
        """Whether this is a count that must be 0 and is not."""
        return self.at_most == 0 and self.met is False


def rows(scenes: Iterable[tuple[str, Iterable[Figure]]]) -> Iterator[str]:
    """The table, in Markdown."""
    lines = (
        [title if number == 0 else "", *_cells(figure)]
        for title, figures in scenes
        for number, figure in enumerate(figures)
    )
    yield from table(["scene", "figure", "measured", "at most", ""], lines)


def _cells(figure: Figure) -> list[str]:
    known = figure.value is not None
    value = _FORMATS[figure.unit].format(figure.value) if known else "unknown"
    target = "" if figure.at_most is None else f"{figure.at_most:g} {figure.unit}".rstrip()
    met = {None: "", True: "met", False: "missed"}[figure.met]
    return [figure.name.strip(), value, target, "; ".join(filter(None, (met, figure.note)))]
