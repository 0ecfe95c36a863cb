"""What was aimed at, and whether it was met. Pure."""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class Target:
    """A bound for a figure; one that was not measured (None) is neither met nor missed."""

    name: str
    measured: float | None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the figure is within its bound."""
        if self.measured is None:
            return None
        if self.at_most is not None and self.measured > self.at_most:
            return False
        return self.at_least is None or self.measured >= self.at_least

    @property
    def line(self) -> str:
        """All of it, in a line for people."""
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        text = f"{self.name}: " + ", ".join(f"{how} {bound:g}" for how, bound in bounds if bound is not None)
        if self.measured is None:
            return f"{text}: not measured"
        return f"{text}: {_short(self.measured)}, {'met' if self.met else 'missed'}"


def _short(value: float) -> str:
    if math.isinf(value):
        return "fails"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
