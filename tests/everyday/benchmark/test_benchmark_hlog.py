"""The benchmark's log: in HdrHistogram's format, and read back by its own reader."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from localdelay.benchmark import hlog
from localdelay.lateness import Latencies, LatencyRecorder

BEGAN_AT = 1_717_243_200.25
FACTS = "10,000 messages/s, each due after 2 s"


def drawn(count: int, scale: float) -> Latencies:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    recorder = LatencyRecorder()
    for _ in range(count):
        recorder.record(draw.expovariate(1 / scale))
    return recorder.take()


def written(path: Path) -> hlog.Log:
    log = hlog.Log(FACTS, BEGAN_AT, 1.0, [drawn(2_000, 0.001), Latencies(), drawn(500, 0.3)])
    hlog.write(path, log, seconds=2.625)
    return log


def test_the_librarys_own_reader_reads_it(tmp_path: Path) -> None:
    """Counts, percentiles, start times and lengths of every interval survive, the empty one's too."""
    log = written(tmp_path / "run.hlog")
    reference = HdrHistogram(1, 3_600_000_000, 3)
    reader = HistogramLogReader(str(tmp_path / "run.hlog"), reference)
    times = []
    for interval in log.intervals:
        histogram = reader.get_next_interval_histogram()
        assert histogram.get_total_count() == interval.count
        for share in (0.5, 0.9, 0.99, 0.999):
            (expected,) = interval.at(share)
            found = histogram.get_value_at_percentile(share * 100)
            # The library's percentile is the upper end of a counter, and not cut off at the maximum.
            assert found == pytest.approx(expected * 1e6, rel=1e-3, abs=1)
        times.append((histogram.get_start_time_stamp(), histogram.get_end_time_stamp()))
    assert reader.get_next_interval_histogram() is None
    assert reader.get_start_time_sec() == BEGAN_AT
    reader.close()
    assert times == [
        (BEGAN_AT * 1e3, (BEGAN_AT + 1) * 1e3),
        ((BEGAN_AT + 1) * 1e3, (BEGAN_AT + 2) * 1e3),
        ((BEGAN_AT + 2) * 1e3, (BEGAN_AT + 2.625) * 1e3),
    ]


def test_a_span_of_it_can_be_read(tmp_path: Path) -> None:
    """The reader finds an interval by its time relative to the start, and adds intervals up."""
    log = written(tmp_path / "run.hlog")
    reader = HistogramLogReader(str(tmp_path / "run.hlog"), HdrHistogram(1, 3_600_000_000, 3))
    assert reader.get_next_interval_histogram(1.5, 3.0).get_total_count() == log.intervals[2].count
    reader.close()
    whole = HdrHistogram(1, 3_600_000_000, 3)
    reader = HistogramLogReader(str(tmp_path / "run.hlog"), whole)
    while reader.add_next_interval_histogram():
        pass
    reader.close()
    assert whole.get_total_count() == 2_500


def test_the_columns_are_those_of_the_format(tmp_path: Path) -> None:
    """Start and length in seconds, the exact maximum in milliseconds, then the histogram."""
    log = written(tmp_path / "run.hlog")
    lines = (tmp_path / "run.hlog").read_text().splitlines()
    assert lines[:6] == [
        "#[Histogram log format version 1.2]",
        f"#[Run: {FACTS}]",
        "#[Values: microseconds]",
        "#[StartTime: 1717243200.250 (seconds since epoch), 2024-06-01 12:00:00.250+00:00]",
        "#[BaseTime: 1717243200.250 (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    columns = [line.split(",") for line in lines[6:]]
    assert [(start, length) for start, length, _, _ in columns] == [
        ("0.000", "1.000"),
        ("1.000", "1.000"),
        ("2.000", "0.625"),
    ]
    assert [maximum for _, _, maximum, _ in columns] == [
        f"{interval.longest * 1e3:.3f}" for interval in log.intervals
    ]
    assert all(text.startswith("HIST") for *_, text in columns)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    """What is read for a comparison is what was written, the maximum to the microsecond."""
    log = written(tmp_path / "run.hlog")
    back = hlog.read(tmp_path / "run.hlog")
    assert (back.facts, back.began_at, back.length) == (FACTS, BEGAN_AT, 1.0)
    assert [interval.counts for interval in back.intervals] == [interval.counts for interval in log.intervals]
    assert [interval.longest for interval in back.intervals] == pytest.approx(
        [interval.longest for interval in log.intervals], abs=1e-6
    )


def test_a_tag_and_comments_of_others_do_not_matter(tmp_path: Path) -> None:
    """What HdrHistogram's tools may add to a line or between lines is passed over."""
    written(tmp_path / "run.hlog")
    lines = (tmp_path / "run.hlog").read_text().splitlines()
    lines[6] = f"Tag=A,{lines[6]}"
    (tmp_path / "run.hlog").write_text("\n".join([*lines, "#[a remark]", "", ""]))
    assert len(hlog.read(tmp_path / "run.hlog").intervals) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("#[Values: microseconds]", "#"), "no log of localdelay bench: its values may have any unit"),
        (("1.000,1.000,", "1.000;1.000;"), "line 8 is no interval"),
        (("HISTFAAA", "HISTFAAB"), "line 7 has no histogram that can be decoded"),
        (("0.000,1.000", "now,1.000"), "line 7 is no interval"),
    ],
)
def test_what_can_not_be_read_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """A file that is damaged, or someone else's, is named by what is wrong with it."""
    written(tmp_path / "run.hlog")
    text = (tmp_path / "run.hlog").read_text()
    (tmp_path / "run.hlog").write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=said):
        hlog.read(tmp_path / "run.hlog")


def test_a_log_without_a_latency_is_refused(tmp_path: Path) -> None:
    """There is nothing to compare with in it."""
    hlog.write(tmp_path / "run.hlog", hlog.Log(FACTS, BEGAN_AT, 1.0, [Latencies()]), seconds=1.0)
    with pytest.raises(ValueError, match="not one latency"):
        hlog.read(tmp_path / "run.hlog")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A file of anything is not read as if it were a log."""
    (tmp_path / "run.hlog").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="no log of localdelay bench"):
        hlog.read(tmp_path / "run.hlog")


def test_a_pipe_or_a_directory_is_refused(tmp_path: Path) -> None:
    """What is no regular file may have no end, and is not even opened."""
    os.mkfifo(tmp_path / "run.hlog")
    for path in (tmp_path / "run.hlog", tmp_path):
        with pytest.raises(ValueError, match="it is no regular file"):
            hlog.read(path)


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    """It is not read into the memory to find out what it is."""
    log = tmp_path / "run.hlog"
    log.touch()
    os.truncate(log, 100_000_001)
    with pytest.raises(ValueError, match="it has more than 100 MB"):
        hlog.read(log)
    os.truncate(log, 100)
    with pytest.raises(ValueError, match="no log of localdelay bench"):
        hlog.read(log)
