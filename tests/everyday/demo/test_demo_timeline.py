"""The demo's timeline: what is kept, how it is counted, and how it looks."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio

import localdelay
from localdelay.cli.demo import parts, timeline_lines
from localdelay.cli.terminal import fitted
from localdelay.demo.report import COLUMNS, Bucket, Run, step_for, step_of, timeline


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        (0.0, 0.1),
        (6.39, 0.1),
        (6.41, 0.2),
        (12.81, 0.5),
        (32.01, 1.0),
        (64.01, 2.0),
        (128.01, 5.0),
        (3600.0, 100.0),
        (1e9, 2e7),
    ],
)
def test_the_step(seconds: float, step: float) -> None:
    """The shortest of the round steps of which a line holds enough."""
    assert step_for(seconds) == step
    assert int(seconds / step) < COLUMNS


def test_nothing_has_no_timeline() -> None:
    """Where nothing happened there is nothing to draw."""
    assert timeline([], [], [], []) == []
    assert timeline_lines([], "utf-8") == []


def test_rates() -> None:
    """Each row counts what happened in each step, per second, to the last step in which anything did."""
    buckets = timeline([0.0, 0.01, 0.31], [0.05, 0.15, 0.16, 0.17], [0.45], [])
    assert [bucket.at for bucket in buckets] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [round(bucket.primary) for bucket in buckets] == [20, 0, 0, 10, 0]
    assert [round(bucket.local) for bucket in buckets] == [10, 30, 0, 0, 0]
    assert [round(bucket.handed_back) for bucket in buckets] == [0, 0, 0, 0, 10]
    assert {bucket.found for bucket in buckets} == {None}
    assert step_of(buckets) == 0.1


def test_longer_runs_have_longer_steps() -> None:
    """Whatever its length, nothing is left out and no line is too long."""
    for seconds in (0.05, 6.4, 12.8, 63.9, 64.0, 1234.5):
        times = [number * seconds / 1000 for number in range(1001)]
        buckets = timeline(times, [], [], [])
        assert len(buckets) <= COLUMNS
        assert sum(bucket.primary for bucket in buckets) * step_of(buckets) == pytest.approx(1001)


STORY = [
    Bucket(0.0, 3000.0, 0.0, 0.0, None),
    Bucket(0.1, 1500.0, 1500.0, 0.0, 1500.0),
    Bucket(0.2, 0.0, 3000.0, 1.0, 9000.0),
    Bucket(0.3, 0.0, 0.0, 375.0, 375.0),
]


@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("utf-8", ["█▄..", ".▄█.", "..▁▁", ".▄█▁"]),
        ("ascii", ["95..", ".59.", "..12", ".592"]),
        ("iso-8859-1", ["95..", ".59.", "..12", ".592"]),
        ("no such", ["95..", ".59.", "..12", ".592"]),
        ("cp437", ["95..", ".59.", "..12", ".592"]),
    ],
)
def test_how_it_looks(encoding: str, rows: list[str]) -> None:
    """Blocks, or digits where the encoding has not all of them; any rate at all is seen."""
    legend = f"A column is 100 ms, {'█' if '█' in rows[0] else '9'} is 3,000/s or more."
    assert timeline_lines(STORY, encoding) == [
        "messages/s   0 s",
        f"primary      {rows[0]}",
        f"local        {rows[1]}",
        f"handed back  {rows[2]}",
        f"rate found   {rows[3]}",
        legend,
    ]


def full_length(step: float) -> Sequence[Bucket]:
    bucket = Bucket(0.0, 1e6, 0.0, 0.0, None)
    return [attrs.evolve(bucket, at=number * step) for number in range(COLUMNS)]


def test_the_axis() -> None:
    """Every tenth column has its time over it."""
    [axis, *_] = timeline_lines(full_length(0.1)[:45], "utf-8")
    assert axis == "messages/s   0 s       1 s       2 s       3 s       4 s"


def test_no_line_is_too_long() -> None:
    """80 columns hold the longest timeline, whatever its step."""
    for power in range(6):
        for digit in (1, 2, 5):
            for line in timeline_lines(full_length(digit * 10**power / 10), "utf-8"):
                assert len(line) <= 80, line


def test_the_rate_that_was_seen_last_stands_until_another_is() -> None:
    """None while all goes through, and nothing is known before somebody has looked."""
    found = [(0.0, None), (0.12, 70.0), (0.18, 90.0), (0.35, None)]
    buckets = timeline([0.0, 0.45], [], [], found)
    assert [bucket.found for bucket in buckets] == [None, 90.0, 90.0, None, None]


async def test_a_record_of_a_fallback(autojump_clock: trio.testing.MockClock) -> None:
    """It holds when each message was degraded or handed back."""
    well_at = trio.current_time() + 2.5

    async def publish_delayed(message: localdelay.Message, delay: float) -> None:
        if trio.current_time() < well_at:
            raise localdelay.Throttled("429")

    async def send(message: localdelay.Message) -> None:
        raise AssertionError(message)

    record = Run("fallback", start=trio.current_time())
    async with localdelay.open_delay_queue(send, capacity=9, workers=1) as queue:
        fallback = localdelay.Fallback(
            publish_delayed, queue, hand_back=True, hand_back_after=10.0, listener=record
        )
        for _ in range(4):
            await fallback.publish(b"", delay=100.0)
        await trio.sleep(20.0)
        statistics = fallback.statistics()
    assert record.local == [0.0] * 4
    assert record.refused == statistics.degraded[localdelay.Reason.THROTTLED] > 0
    assert len(record.handed_back) == statistics.handed_back == 4
    assert record.handed_back[0] >= 2.5


def test_how_far_a_run_is() -> None:
    """It fits 80 columns, the most important first; in the plain run, which holds nothing, there is less."""
    run = Run("fallback", due=dict.fromkeys(map(str, range(9000)), 0.0), refused=264)
    run.first = dict.fromkeys(map(str, range(6000)), 0.0)
    run.local, run.handed_back = [0.0] * 2000, [0.0] * 1936
    line = "with localdelay: 9,000 published  6,000 received  264 refused  2,000 held"
    assert fitted(parts(run), 200) == f"{line}  1,936 handed back"
    assert fitted(parts(run), 80) == line
    run.name = "plain"
    assert fitted(parts(run), 80) == "plain: 9,000 published  6,000 received  264 refused"
