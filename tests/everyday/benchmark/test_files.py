"""What `localdelay bench` leaves behind: HdrHistogram's log, read by its own reader too, and the picture."""

from __future__ import annotations

import os
import random
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from localdelay.benchmark import hlog, plot
from localdelay.lateness import Latencies, LatencyRecorder

BEGAN_AT = 1_717_243_200.25
FACTS = "10,000 messages/s, each due after 2 s"
TITLE = "How late sends begin: 1,000 messages/s, each due after 2 s"


def drawn(count: int, scale: float, seed: int = 1) -> Latencies:
    draw = random.Random(seed)
    recorder = LatencyRecorder()
    for _ in range(count):
        recorder.record(draw.expovariate(1 / scale))
    return recorder.take()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.hlog"


@pytest.fixture
def log(path: Path) -> hlog.Log:
    log = hlog.Log(FACTS, BEGAN_AT, 1.0, [drawn(2_000, 0.001), Latencies(), drawn(500, 0.3)])
    hlog.write(path, log, seconds=2.625)
    return log


def test_the_librarys_own_reader_reads_it(path: Path, log: hlog.Log) -> None:
    """Counts, percentiles, start times and lengths of every interval survive, the empty one's too."""
    reader = HistogramLogReader(str(path), HdrHistogram(1, 3_600_000_000, 3))
    times = []
    for interval in log.intervals:
        histogram = reader.get_next_interval_histogram()
        assert histogram.get_total_count() == interval.count
        for share in (0.5, 0.9, 0.99, 0.999):
            # The library's percentile is the upper end of a counter, and not cut off at the maximum.
            found = histogram.get_value_at_percentile(share * 100)
            assert found == pytest.approx(interval.at(share)[0] * 1e6, rel=1e-3, abs=1)
        times.append((histogram.get_start_time_stamp(), histogram.get_end_time_stamp()))
    assert reader.get_next_interval_histogram() is None
    assert reader.get_start_time_sec() == BEGAN_AT
    reader.close()
    assert times == [
        ((BEGAN_AT + at) * 1e3, (BEGAN_AT + end) * 1e3) for at, end in ((0, 1), (1, 2), (2, 2.625))
    ]


def test_what_was_written_is_read_back(path: Path, log: hlog.Log) -> None:
    """The maximum to the microsecond, and past what HdrHistogram's tools may add to or between lines."""
    lines = path.read_text().splitlines()
    lines[6] = f"Tag=A,{lines[6]}"
    path.write_text("\n".join([*lines, "#[a remark]", "", ""]))
    back = hlog.read(path)
    assert (back.facts, back.began_at, back.length) == (FACTS, BEGAN_AT, 1.0)
    assert [one.counts for one in back.intervals] == [one.counts for one in log.intervals]
    longest = [one.longest for one in log.intervals]
    assert [one.longest for one in back.intervals] == pytest.approx(longest, abs=1e-6)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("#[Values: microseconds]", "#"), "no log of localdelay bench: its values may have any unit"),
        (("1.000,1.000,", "1.000;1.000;"), "line 8 is no interval"),
        (("HISTFAAA", "HISTFAAB"), "line 7 has no histogram that can be decoded"),
        (("0.000,1.000", "now,1.000"), "line 7 is no interval"),
        (("0.000,1.000", f"0.000,{'9' * 400}"), "line 7 has a time that is too long"),
    ],
)
def test_what_is_damaged_is_refused(path: Path, change: tuple[str, str], said: str) -> None:
    """It is named by what is wrong with it."""
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match=said):
        hlog.read(path)


def test_what_is_no_log_is_refused(path: Path) -> None:
    """One without a latency, bytes of anything, what has no end, and what would fill the memory."""
    hlog.write(path, hlog.Log(FACTS, BEGAN_AT, 1.0, [Latencies()]), seconds=1.0)
    with pytest.raises(ValueError, match="not one latency"):
        hlog.read(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="no log of localdelay bench"):
        hlog.read(path)
    os.truncate(path, 100_000_001)
    with pytest.raises(ValueError, match="it has more than 100 MB"):
        hlog.read(path)
    path.unlink()
    os.mkfifo(path)
    for odd in (path, path.parent):
        with pytest.raises(ValueError, match="it is no regular file"):
            hlog.read(odd)


def picture(path: Path, *labels: str) -> list[str]:
    """Draw as many runs, and return the texts in the SVG."""
    runs = [[drawn(2_000, 0.001, seed + at) for at in range(5)] for seed in range(len(labels))]
    plot.draw(path, TITLE, FACTS, [plot.Series(*one, 1.0) for one in zip(labels, runs, strict=True)])
    return texts(path)


def texts(path: Path) -> list[str]:
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_svg_says_what_it_shows(tmp_path: Path) -> None:
    """Title, facts, both panels, the axis of nines; names of runs as they are, none where one is alone."""
    found = picture(tmp_path / "one.svg", "this run")
    panels = ("by percentile, the maximum as a dot", "second by second", "percentile")
    for text in (
        TITLE,
        FACTS,
        *panels,
        "0",
        "90",
        "99",
        "99.9",
        "99.99",
        "100 µs",
        "1 ms",
        "p50",
        "p99",
        "max",
    ):
        assert text in found, text
    assert "this run" not in found
    assert {"a $x^2$ b", "hidden"} <= set(picture(tmp_path / "two.svg", "a $x^2$ b", "_hidden"))
    picture(tmp_path / "again.svg", "a $x^2$ b", "_hidden")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "two.svg").read_bytes(), "the same run"


@pytest.mark.parametrize(
    "run",
    [
        [Latencies({0: 5}, 0.0)],
        [Latencies({0: 1}, 0.0)],
        [Latencies(), drawn(1_000, 0.001), Latencies(), drawn(1, 0.1)],
        [Latencies({1_500: 100}, 0.0015)] * 3,
    ],
    ids=["nothing late", "one message", "gaps", "all alike"],
)
def test_odd_runs_can_be_drawn(run: list[Latencies], tmp_path: Path) -> None:
    """No warning and no error for what is the limit of a logarithmic axis."""
    plot.draw(tmp_path / "run.svg", TITLE, FACTS, [plot.Series("run", run, 1.0)])
    found = texts(tmp_path / "run.svg")
    assert sum(text.endswith((" µs", " ms", " s")) for text in found) >= 2, "an axis needs two labels"


def test_the_curve_has_the_nines_of_its_ranks() -> None:
    """990 of 1,000 within 1 ms are two nines; the longest stands at the place of the last one."""
    recorder = LatencyRecorder()
    recorder.record(0.001, 990)
    recorder.record(0.002, 9)
    recorder.record(0.5)
    corners = list(plot.percentile_curve(recorder.take()))
    assert [value for _, value in corners] == [0.001, 0.001, 0.002, 0.002, 0.5, 0.5]
    assert [nines for nines, _ in corners] == pytest.approx([0, 2, 2, 3, 3, 3])
    assert [plot.percent(nines) for nines in (0, 1, 2, 3, 6)] == ["0", "90", "99", "99.9", "99.9999"]
