"""The picture of a run: how late sends began, by percentile and second by second. Needs the extra `plot`.

The axis of the percentiles is HdrHistogram's: every nine takes as much room as all that came before it, so
that the slowest message in a million is as easy to see as the median.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import attrs

from localdelay.lateness import Latencies
from localdelay.units import format_duration

SUFFIXES = (".svg", ".png")
_COLOURS = ("#0b62c4", "#d1495b", "#2a9d62", "#c98a00", "#7b4fb5", "#5f6b76")
_FAINT = "#6a737d"
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name of a file is no formula
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
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
        figure = Figure(figsize=(10.0, 4.7), dpi=160)
        by_percentile, by_time = figure.subplots(1, 2, sharey=True, width_ratios=(1.1, 1))
        figure.subplots_adjust(left=0.075, right=0.98, top=0.775, bottom=0.115, wspace=0.06)
        figure.text(0.012, 0.945, title, fontsize=13, fontweight="bold")
        figure.text(0.012, 0.885, facts, fontsize=9.5, color=_FAINT)
        for run, colour in zip(runs, cycle(_COLOURS), strict=False):
            _draw_percentiles(by_percentile, run, colour)
            _draw_intervals(by_time, run, colour)
        _label_percentiles(by_percentile, runs)
        _label_intervals(by_time, max(len(run.intervals) * run.length for run in runs))
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata)


def percentile_curve(latencies: Latencies) -> Iterator[tuple[float, float]]:
    """The corners of the stairs: (nines, seconds), where 90 % is 1, 99 % is 2, and so on.

    They end with the maximum, at the place of the last one of all the messages.
    """
    total = latencies.count
    before = 0
    for seconds, reached in latencies.steps():
        for rank in (before, min(reached, total - 1)):
            yield -math.log10((total - rank) / total), max(_LEAST, seconds)
        before = reached


def percent(nines: int) -> str:
    """0, 90, 99, 99.9 ...: the percentile with so many nines."""
    return ("0", "90", "99")[nines] if nines < 3 else f"99.{'9' * (nines - 2)}"


def _draw_percentiles(axes: Any, run: Series, colour: str) -> None:
    corners = list(percentile_curve(Latencies.together(run.intervals)))
    label = run.label.lstrip("_") or "run"  # matplotlib hides what begins with an underscore
    axes.plot(*zip(*corners, strict=True), color=colour, linewidth=1.8, label=label)
    axes.plot(*corners[-1], "o", color=colour, markersize=4.5)


def _draw_intervals(axes: Any, run: Series, colour: str) -> None:
    # Where nothing was sent there is a gap: nobody knows how late it would have been.
    nothing = (math.nan,) * 3
    rows = [(*one.at(0.5, 0.99), one.longest) if one.counts else nothing for one in run.intervals]
    p50, p99, longest = ([max(value, _LEAST) for value in column] for column in zip(*rows, strict=True))
    edges = [number * run.length for number in range(len(rows) + 1)]
    axes.stairs(p50, edges, baseline=None, color=colour, linewidth=1.1, alpha=0.55)
    axes.stairs(p99, edges, baseline=None, color=colour, linewidth=1.8)
    axes.plot([edge + run.length / 2 for edge in edges[:-1]], longest, ".", color=colour, markersize=5)


def _label_percentiles(axes: Any, runs: Sequence[Series]) -> None:
    most = max(sum(interval.count for interval in run.intervals) for run in runs)
    nines = max(1.0, math.log10(most))
    axes.set_xlim(0, nines * 1.03)
    axes.set_xticks(range(math.floor(nines) + 1), map(percent, range(math.floor(nines) + 1)))
    axes.set_xlabel("percentile")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: format_duration(value).replace(" us", " µs"))
    axes.minorticks_off()
    low, high = axes.get_ylim()
    high *= 1.3  # a little room above
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:  # two ticks at least
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    axes.set_ylim(low, high)
    axes.set_title("by percentile, the maximum as a dot", loc="left", fontsize=10.5)
    if len(runs) > 1:
        axes.legend(loc="lower right")


def _label_intervals(axes: Any, seconds: float) -> None:
    from matplotlib.lines import Line2D

    axes.set_xlim(0, seconds)
    axes.set_xlabel("seconds since the first message was due")
    axes.set_title("second by second", loc="left", fontsize=10.5)
    axes.tick_params(left=False)
    styles: dict[str, dict[str, Any]] = {
        "max": {"linestyle": "", "marker": "."},
        "p99": {"linewidth": 1.8},
        "p50": {"linewidth": 1.1, "alpha": 0.55},
    }
    handles = [Line2D([], [], color="black", label=label, **style) for label, style in styles.items()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderpad=0.1)
