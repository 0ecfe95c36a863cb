"""What `bench/` reports is what happened: a run that loses, sends early or fails can't look good."""

from __future__ import annotations

import json
import math
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from bench import brokers, foreign, peers, peers_table, readme, samples
from bench.contenders import BARE, BATCH, CONTENDERS, GO, LEAN, LITERAL, LOCALDELAY, THREADS
from bench.figures import Figure
from bench.loops import on_trio
from bench.samples import Result, body, median, medians
from bench.scenarios import sample
from bench.times import Times
from localdelay import Message
from localdelay.benchmark.load import Delays, Pace
from localdelay.benchmark.meter import NO_TIME

TEN = Pace(10.0, 10.0, 1.0)
FAILED: Result = {"failed": "CalledProcessError, -9"}


def on_virtual_time(kind: str, arguments: Result) -> Result:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(on_trio, lambda loop: sample(loop, kind, arguments), clock=clock)


def told(*begun: tuple[int, float, float], puts: float = 0.0) -> Result:
    """The figures of ten messages, 0.1 s apart with 1 s of delay, each (number, began, execute-at)."""
    now = 0.0
    times = Times(lambda: now, TEN.total)
    for number, now, execute_at in begun:  # noqa: B007 (the clock reads it)
        times.begin(execute_at, body(number))
    times.put(0, 10, puts, puts + 1.0)
    return times.figures(TEN, Delays((1.0,)), 1, 0.0)


ON_TIME = [(number, 1 + number / 10, 1 + number / 10) for number in range(10)]


@pytest.mark.parametrize(
    ("begun", "count"),
    [
        (ON_TIME[:-1], {"sent": 9}),
        ([*ON_TIME, ON_TIME[3]], {"twice": 1}),
        ([*ON_TIME[:-1], (9, 1.9, 1.95)], {"early": 1}),
        ([*ON_TIME[:-1], (9, 1.85, NO_TIME)], {"early": 1}),
        ([*ON_TIME[:-1], (9, 1.92, 1.9)], {}),
        (ON_TIME, {"put": 10, "sent": 10}),
    ],
    ids=["lost", "twice", "early", "before it can have been due", "late", "on time"],
)
def test_what_is_lost_early_twice_or_late_is_not_held(
    begun: list[tuple[int, float, float]], count: Result
) -> None:
    """One message of ten is enough, also where a contender tells no execute-at."""
    figures = told(*begun)
    assert figures["held"] is (begun is ON_TIME)
    assert figures | count == figures


def test_a_late_put_makes_its_message_late() -> None:
    """Latency counts from the schedule: put half a second late, and sent on the dot of its execute-at."""
    figures = told(*[(number, begun + 0.5, due + 0.5) for number, begun, due in ON_TIME], puts=0.5)
    assert figures["latency"]["p50"] == pytest.approx(0.5, rel=0.01)
    assert figures["put_lateness"]["p50"] == pytest.approx(0.5, rel=0.01)
    assert (figures["early"], figures["held"]) == (0, False)


@pytest.mark.parametrize("numbers", [[3, 4, 5], [5, 3, 4], [3, 4, 4, 6], [7]])
def test_a_batch_is_its_messages(numbers: list[int]) -> None:
    """Consecutive or not, each message has its own place, and a repeated one is sent twice."""
    times = Times(lambda: 2.0, 10)
    times.begin_batch([Message(str(number), body(number), 2.5 if number == 5 else 1.0) for number in numbers])
    assert {number for number, now in enumerate(times.begun) if now == 2.0} == set(numbers)
    assert (times.sent, sum(times.flags)) == (len(numbers), numbers.count(5))


@pytest.mark.parametrize("name", [LITERAL, LOCALDELAY, BATCH, LEAN])
def test_an_open_loop_on_virtual_time(name: str) -> None:
    """With one delay all are exact; with mixed ones the literal port sleeps on the wrong messages."""
    load = {"rate": 100, "seconds": 0.5, "is_range": False, "seed": 3, "workers": 2, "patience": 9}
    fixed = on_virtual_time("open", {"contender": name, **load, "delays": [2.0]})
    assert (fixed["put"], fixed["sent"], fixed["early"], fixed["held"]) == (50, 50, 0, True)
    mixed = on_virtual_time("open", {"contender": name, **load, "delays": [0.1, 5.0], "is_range": True})
    assert (mixed["sent"], mixed["early"], mixed["held"]) == (50, 0, name != LITERAL)


@pytest.mark.parametrize(
    ("values", "lowest", "highest"),
    [
        ([1.0, 3.0, 2.0], 2.0, 2.0),
        ([1.0, None, 3.0], 3.0, 1.0),
        ([1.0, None], None, None),
        ([None, 2.0, None], None, None),
        ([], None, None),
    ],
)
def test_a_run_that_failed_is_the_worst_in_the_median(
    values: list[float | None], lowest: float | None, highest: float | None
) -> None:
    """It is not left out: two runs of three that failed are a failure, whatever the third was."""
    assert (median(values), median(values, highest_is_best=True)) == (lowest, highest)
    made = medians([{"rate": value} if value else FAILED for value in values], frozenset({"rate"}))
    assert made.get("rate") == highest


def a_load(p99: float = 0.001, **changes: Any) -> Result:
    figures = {"offered": 7, "put": 7, "sent": 7, "twice": 0, "early": 0, "held": p99 < 0.01}
    times = {"p50": p99 / 2, "p99": p99, "max": p99 * 2}
    return {**figures, "latency": times, "put_lateness": times, "waited_share": 0.01, **changes}


@pytest.mark.parametrize(
    ("runs", "p99", "failed"),
    [
        ([a_load(0.001), a_load(0.003), a_load(0.002)], 0.002, 0),
        ([a_load(0.001), FAILED, a_load(0.003)], 0.003, 1),
        ([a_load(0.001), a_load(sent=6), FAILED], None, 2),
        ([a_load(early=1)], None, 1),
        ([a_load(4.7)], 4.7, 0),
    ],
)
def test_a_column_of_the_table_counts_the_runs_that_failed(
    runs: list[Result], p99: float | None, failed: int
) -> None:
    """What lost a message or sent one early has no percentile to show."""
    made = peers_table.row({"low": runs})
    assert (made["low"], made["failed"]["low"]) == (p99, failed)


LIMITS = {LITERAL: 30_000.0, LOCALDELAY: 150_000.0, BATCH: 500_000.0}
TINY = attrs.evolve(peers.QUICK, runs=2, rates=(100, 2_000_000))


def holding(limits: dict[str, float]) -> Callable[[str, Result], Result]:
    """Contenders that hold these rates, and run out of memory at higher ones; all else costs their length."""

    def run_sample(kind: str, arguments: Result) -> Result:
        cost = float(len(arguments["contender"]))
        if kind == "open":
            if arguments["rate"] > limits[arguments["contender"]]:
                raise subprocess.CalledProcessError(-9, "sample")
            return a_load(cost / 10_000)
        figure = {"put": "put_us", "await": "await_us", "memory": "beyond_payload", "burst": "drained"}[kind]
        return {figure: cost, "checkpoint_us": 1.0}

    return run_sample


@pytest.fixture(scope="module")
def measured() -> Result:
    unavailable = {GO: "go is not installed"}
    return peers.measure(TINY, [*LIMITS, BARE], holding(LIMITS), lambda _: None, unavailable)


def test_a_rate_that_only_short_loads_hold_is_stepped_down_from() -> None:
    """Found by loads of a second and a half, it is confirmed by one of the full length."""
    settings = peers.Settings()

    def run_sample(_: str, arguments: Result) -> Result:
        limit = 100_000 if arguments["seconds"] == settings.probe_seconds else 50_000
        return a_load(held=arguments["rate"] <= limit)

    assert peers.Search(settings, run_sample, lambda _: None).rate(LOCALDELAY) == 50_000
    assert peers.Search(settings, lambda *_: FAILED, lambda _: None).rate(LOCALDELAY) is None


def test_contenders_take_turns_figure_by_figure() -> None:
    """What is compared is measured close together, and every other run goes backwards."""
    put: list[str] = []

    def run_sample(kind: str, arguments: Result) -> Result:
        put.extend([arguments["contender"]] * (kind == "put"))
        return holding(LIMITS)(kind, arguments)

    peers.measure(TINY, [LITERAL, BATCH, BARE], run_sample, lambda _: None)
    assert put == [LITERAL, BATCH, BARE, BARE, BATCH, LITERAL]


def test_the_table_says_what_failed_and_where_it_comes_from(measured: Result) -> None:
    """Markdown: a row for each, the command, commit, Python and cores, what is missing, and the targets."""
    assert [measured["rows"][name]["held"] for name in LIMITS] == [30_000, 100_000, 500_000]
    assert list(measured["rows"]) == [GO, LITERAL, LOCALDELAY, BATCH, BARE]
    again = json.loads(json.dumps(measured))
    again["rows"][BATCH] |= {"failed": {"low": 1}}
    lines = list(peers_table.lines(again))
    where = again["facts"]
    assert all(str(where[fact]) in lines[0] for fact in ("command", "commit", "python", "cores"))
    rows = {
        line.split(" | ")[0].removeprefix("| "): line for line in reversed(lines) if line.startswith("| ")
    }
    assert rows[CONTENDERS[LITERAL].title].split(" | ")[1:4] == ["30,000", "0.70 ms", "fails"]
    assert "1.60 ms (1 failed)" in rows[CONTENDERS[BATCH].title]
    assert "go is not installed" in rows[CONTENDERS[GO].title]
    targets = {line.partition(":")[0]: line for line in lines if line.startswith("- ")}
    assert "- send_batch: held / literal port: at least 5: 16.67, met" in lines
    assert "- send: p99 at 100k/s in ms: at most 2: 1.00, met" in lines
    assert targets["- threads"].endswith("not measured")
    failed = {THREADS: {"held": None, "drained": 1.0}, LOCALDELAY: {"high": None, "low": 0.001}}
    missed = {target.name: target.met for target in peers_table.found(failed)}
    assert (missed["threads: held /s"], missed["send: p99 at 100k/s in ms"]) == (False, False)
    assert missed["send_batch: p99 at 100k/s in ms"] is None
    assert Figure("b", math.inf, at_most=120).line == "b: at most 120: fails, missed"


def test_what_was_measured_is_kept_small_and_printed_again(
    measured: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is JSON with all runs in it, without names or paths, and `--table` prints what it has."""
    monkeypatch.setattr(samples, "RESULTS", tmp_path)
    samples.save("peers", {**measured, "exact": 1.23456789})
    text = (tmp_path / "peers.json").read_text()
    assert json.loads(text)["exact"] == 1.2346
    assert len(text) < 20_000
    assert str(samples.ROOT) not in text
    done = CliRunner().invoke(peers.main, ["--table"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == list(peers_table.lines(samples.load("peers")))


def test_a_table_goes_to_its_place_in_the_readme() -> None:
    """Once or again, and nowhere else; each program's table has a place there."""
    text = "a\n<!-- peers -->\nold\n<!-- end of peers -->\nb\n"
    once = readme.filled(text, "peers", "| new \\1 |")
    assert once == "a\n<!-- peers -->\n\n| new \\1 |\n\n<!-- end of peers -->\nb\n"
    assert readme.filled(once, "peers", "| new \\1 |") == once
    page = (samples.ROOT / "bench" / "README.md").read_text()
    assert all(readme.filled(page, name, "here") != page for name in readme.TABLES)


def test_a_round_of_a_broker_that_failed_is_in_its_ratio() -> None:
    """One failed round of three is the worst of them; the median is that of the other two's lower one."""
    ours = [{"rate": rate, "p50": 1.0, "p99": 2.0, "max": 3.0} for rate in (80.0, 90.0, 100.0)]
    bare: list[Result] = [{"rate": 100.0, "p50": 1.0, "p99": 2.0, "max": 3.0}] * 2
    shape = brokers.combined({"localdelay": ours, "bare": [*bare, FAILED]})
    assert shape["ratios"]["bare"] == 0.8
    assert shape["rates"]["bare"] == [100.0, 100.0, None]


def test_what_a_program_answers_is_metered_as_the_others_are() -> None:
    """Doubles in, the figures of the scenario out: begins by number, NaN for what was not sent."""
    pace, delays = Pace(10.0, 10.0, 0.3), Delays((0.1,))
    runs = (2, 0.0, 0.0, 3, 0.25, 0.25)
    answer = array("d", (0, 0.3, 4, 1, 0.102, math.nan, 0.301, *runs))
    result = foreign.interpret("open", 3, answer, pace, delays, 1)
    assert (result["put"], result["sent"], result["early"], result["held"]) == (3, 2, 1, False)
    assert result["latency"]["p50"] == pytest.approx(0.001, abs=1e-5)
    assert result["put_lateness"]["max"] == pytest.approx(0.05)
    burst = array("d", (1.0, 0, 0, 0, 1.001, 1.002))
    assert foreign.interpret("burst", 2, burst, pace, delays, 1) == {"drained": pytest.approx(1000.0)}
    lost = array("d", (1.0, 0, 0, 0, 1.001, math.nan))
    assert foreign.interpret("burst", 2, lost, pace, delays, 1) == {"failed": "1 of 2 sent, 0 early"}
