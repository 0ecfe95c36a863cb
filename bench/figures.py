"""What was measured beside what is aimed at, as a line and as a row of a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs

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
    """A figure and its bounds; one that was not measured (None) is neither met nor missed."""

    name: str
    value: float | None
    unit: str = ""
    at_most: float | None = None
    """0 is not about speed: a figure over it is a broken promise."""
    note: str = ""
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the figure is within its bounds; None where it has none, or was not measured."""
        if self.value is None or self.at_most is self.at_least is None:
            return None
        if self.at_most is not None and self.value > self.at_most:
            return False
        return self.at_least is None or self.value >= self.at_least

    @property
    def is_broken_promise(self) -> bool:
        """Whether this is a count that must be 0 and is not."""
        return self.at_most == 0 and self.met is False

    @property
    def line(self) -> str:
        """All of it, in a line for people."""
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        text = f"{self.name}: " + ", ".join(f"{how} {bound:g}" for how, bound in bounds if bound is not None)
        if self.value is None:
            return f"{text}: not measured"
        short = "fails" if math.isinf(self.value) else f"{self.value:,.{2 if abs(self.value) < 100 else 0}f}"
        return f"{text}: {short}, {'met' if self.met else 'missed'}"


def rows(scenes: Iterable[tuple[str, Iterable[Figure]]]) -> Iterator[list[str]]:
    """The rows of a table: scene, figure, value, what it is to be at most, and whether it is."""
    for title, figures in scenes:
        for number, figure in enumerate(figures):
            value = "unknown" if figure.value is None else _FORMATS[figure.unit].format(figure.value)
            target = "" if figure.at_most is None else f"{figure.at_most:g} {figure.unit}".rstrip()
            met = {None: "", True: "met", False: "missed"}[figure.met]
            told = "; ".join(filter(None, (met, figure.note)))
            yield ["" if number else title, figure.name.strip(), value, target, told]
