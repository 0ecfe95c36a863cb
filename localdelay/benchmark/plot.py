"""The picture of a run: how late sends began, by percentile and second by second. Needs the extra `plot`.

The axis of the percentiles is HdrHistogram's: every nine takes as much room as all that came before it, so
that the slowest message in a million is as easy to see as the median.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from localdelay.lateness import Latencies
from localdelay.units import format_duration

SUFFIXES = (".svg", ".png")
_COLOURS = ("#0b62c4", "#d1495b", "#2a9d62", "#c98a00", "#7b4fb5", "#5f6b76")
_INK, _FAINT, _GRID = "#1f2328", "#6a737d", "#e4e7eb"
_WIDTH, _HEIGHT = 10.0, 4.7  # inches; 72 points of SVG each
_STYLE: dict[Any, Any] = {
    # A name of a file is no formula.
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "path.simplify_threshold": 0.5,
    # Text stays text, and the same run gives the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "localdelay",
}
_LEAST = 1e-6


@attrs.frozen
class Series:
    """One run in the picture."""

    label: str
    intervals: Sequence[Latencies] = attrs.field(repr=False)
    length: float
    """Seconds of each interval."""


def available() -> bool:
    """Whether the extra is installed."""
    return find_spec("matplotlib") is not None


def draw(path: Path, title: str, facts: str, runs: Sequence[Series]) -> None:
    """Draw the runs over one another into an SVG or PNG file; an `OSError` if it can't be written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=160)
        by_percentile, by_time = figure.subplots(1, 2, sharey=True, width_ratios=(1.1, 1))
        figure.subplots_adjust(left=0.075, right=0.985, top=0.775, bottom=0.115, wspace=0.06)
        figure.text(0.012, 0.945, title, fontsize=13, fontweight="bold")
        figure.text(0.012, 0.885, facts, fontsize=9.5, color=_FAINT)
        for run, colour in zip(runs, _cycle(), strict=False):
            together = Latencies.together(run.intervals)
            _draw_percentiles(by_percentile, run.label, together, colour)
            _draw_intervals(by_time, run, colour)
        _finish_percentiles(by_percentile, runs)
        _finish_intervals(by_time, max(len(run.intervals) * run.length for run in runs))
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata)


def percentile_curve(latencies: Latencies) -> Iterator[tuple[float, float]]:
    """The corners of the stairs: (nines, seconds), where 90 % is 1, 99 % is 2, and so on.

    They end with the maximum, at the place of the last one of all the messages.
    """
    total = latencies.count
    before = 0
    for seconds, reached in latencies.steps():
        value = max(_LEAST, seconds)
        yield _nines(before, total), value
        yield _nines(min(reached, total - 1), total), value
        before = reached


def _nines(reached: int, total: int) -> float:
    return -math.log10((total - reached) / total)


def _cycle() -> Iterator[str]:
    while True:
        yield from _COLOURS


def _draw_percentiles(axes: Any, label: str, latencies: Latencies, colour: str) -> None:
    corners = list(percentile_curve(latencies))
    label = label.lstrip("_") or "run"  # matplotlib hides what begins with an underscore
    axes.plot(*zip(*corners, strict=True), color=colour, linewidth=1.8, label=label, solid_joinstyle="round")
    axes.plot(*corners[-1], "o", color=colour, markersize=4.5)


def _draw_intervals(axes: Any, run: Series, colour: str) -> None:
    times: list[float] = []
    p50: list[float] = []
    p99: list[float] = []
    longest: list[float] = []
    for number, interval in enumerate(run.intervals):
        # Where nothing was sent there is a gap: nobody knows how late it would have been.
        values = (*interval.at(0.5, 0.99), interval.longest) if interval.counts else (math.nan,) * 3
        times.append(number * run.length)
        for row, value in zip((p50, p99, longest), values, strict=True):
            row.append(max(value, _LEAST))
    edges = [*times, len(times) * run.length]
    axes.stairs(p50, edges, baseline=None, color=colour, linewidth=1.1, alpha=0.55)
    axes.stairs(p99, edges, baseline=None, color=colour, linewidth=1.8)
    axes.plot([time + run.length / 2 for time in times], longest, ".", color=colour, markersize=5)


def _finish_percentiles(axes: Any, runs: Sequence[Series]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    most = max(sum(interval.count for interval in run.intervals) for run in runs)
    nines = max(1.0, math.log10(max(10, most)))
    axes.set_xlim(0, nines * 1.03)
    axes.xaxis.set_major_locator(FixedLocator(list(range(math.floor(nines) + 1))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(round(value))))
    axes.set_xlabel("percentile")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_duration(value).replace(" us", " µs"))
    )
    axes.minorticks_off()
    axes.set_ylim(*_limits(*axes.get_ylim()))
    axes.set_title("by percentile, the maximum as a dot", loc="left", fontsize=10.5)
    if len(runs) > 1:
        axes.legend(loc="lower right")


def _limits(low: float, high: float) -> tuple[float, float]:
    """With a little room above, and so that two ticks are in it at least."""
    high *= 1.3
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    return low, high


def _finish_intervals(axes: Any, seconds: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, seconds)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=seconds > 1))
    axes.set_xlabel("seconds since the first message was due")
    axes.set_title("second by second", loc="left", fontsize=10.5)
    axes.tick_params(left=False)
    handles = [
        Line2D([], [], color=_INK, linestyle="", marker=".", markersize=5, label="max"),
        Line2D([], [], color=_INK, linewidth=1.8, label="p99"),
        Line2D([], [], color=_INK, linewidth=1.1, alpha=0.55, label="p50"),
    ]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        handlelength=1.4,
        borderpad=0.1,
    )


def percent(nines: int) -> str:
    """0, 90, 99, 99.9 ...: the percentile with so many nines."""
    if nines < 2:
        return ("0", "90")[nines]
    return "99" + ("." + "9" * (nines - 2) if nines > 2 else "")
