"""`bench.peers` finds, compares and prints what it should. No speeds here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from bench import peers, peers_report, peers_table
from bench.contenders import (
    BARE,
    BATCH,
    BATCH_UNCANCELLABLE,
    LITERAL,
    LOCALDELAY,
    TASKS,
)
from bench.foreign import GO, JAVA
from bench.ladder import highest, ladder, rung_at
from bench.samples import Result
from bench.targets import Target

RUNGS = ladder(100, 2_000_000)


TINY = attrs.evolve(peers.QUICK, runs=2, put_messages=50, burst_messages=50, memory_messages=50)


def a_load(p99: float = 0.001, **changes: Any) -> Result:
    figures = {"unsent": 0, "early": 0, "lateness": {"p99": p99}, "put_lateness": {"p99": 0.001}}
    return {**figures, "waited_share": 0.01, **changes}


def holding(limits: dict[str, float]) -> Callable[[str, Result], Result]:
    """Contenders that hold these rates, and no higher ones; all else costs as much as their name is long."""

    def run_sample(kind: str, arguments: Result) -> Result:
        name = arguments["contender"]
        cost = float(len(name))
        if kind == "open":
            kept = arguments["rate"] <= limits[name]
            return a_load(p99=cost / 10_000, unsent=0 if kept else 7)
        return {
            "put": {"put_nowait": cost},
            "await": {"await_put": cost + 1, "checkpoint": cost},
            "memory": {"messages": 50, "beyond_payload": 10 * cost},
            "burst": {"drained": 1000 * cost, "early": 0},
        }[kind]

    return run_sample


LIMITS = {
    LITERAL: 30_000.0,
    TASKS: 1_000.0,
    LOCALDELAY: 150_000.0,
    BATCH: 500_000.0,
    BATCH_UNCANCELLABLE: 1e9,
}


@pytest.fixture(scope="module")
def measured() -> Result:
    return peers.measure(TINY, list(LIMITS), holding(LIMITS), lambda _: None, {GO: "go is not installed"})


def test_the_ladder_has_five_rungs_a_decade() -> None:
    """1, 2, 3, 5 and 7 times the powers of ten, within the bounds that were asked for."""
    assert ladder(1_000, 20_000) == [1_000, 2_000, 3_000, 5_000, 7_000, 10_000, 20_000]
    assert (RUNGS[0], RUNGS[-1]) == (100, 2_000_000)
    assert [rung_at(RUNGS, rate) for rate in (1, 100, 250, 1e9)] == [0, 0, 1, len(RUNGS) - 1]


def test_the_search_finds_the_highest_rung_from_everywhere() -> None:
    """Whatever holds and wherever it begins: the right one, none twice, in at most 9 tries of 22 rungs."""
    for top in range(-1, len(RUNGS)):
        for start in range(len(RUNGS)):
            tried: list[float] = []

            def holds(rate: float, tried: list[float] = tried, top: int = top) -> bool:
                tried.append(rate)
                return RUNGS.index(rate) <= top

            assert highest(RUNGS, start, holds) == (None if top < 0 else top)
            assert len(tried) == len(set(tried)) <= 9
            if start == top:
                assert len(tried) <= 2


def test_the_search_begins_within_the_ladder() -> None:
    """A start beyond an end begins at that end."""
    assert highest(RUNGS, 99, lambda _: True) == len(RUNGS) - 1
    assert highest(RUNGS, -5, lambda _: False) is None


def test_the_search_is_confirmed_by_the_full_load() -> None:
    """What short loads find is stepped down from until a load of the full length holds."""
    tried: list[tuple[float, float]] = []

    def run_sample(_: str, arguments: Result) -> Result:
        tried.append((arguments["rate"], arguments["seconds"]))
        limit = 30_000 if arguments["seconds"] == settings.probe_seconds else 15_000
        return a_load(unsent=int(arguments["rate"] > limit))

    settings = peers.Settings()
    search = peers.Search(settings, run_sample, lambda _: None)
    assert search.rate(LITERAL) == 10_000
    full = [(30_000, settings.seconds), (20_000, settings.seconds), (10_000, settings.seconds)]
    assert tried[-3:] == full
    tried.clear()
    search.rate(LITERAL)
    assert tried[0] == (10_000, settings.probe_seconds)  # the next search begins where this one has ended


def test_a_rate_that_never_holds_at_full_length_is_none() -> None:
    """The confirmation gives up after a few rungs, and at the end of the ladder."""
    settings = peers.Settings()

    def run_sample(_: str, arguments: Result) -> Result:
        return a_load(unsent=int(arguments["seconds"] == settings.seconds))

    assert peers.Search(settings, run_sample, lambda _: None).rate(LITERAL) is None
    low = attrs.evolve(settings, rates=(10_000, 20_000))
    assert peers.Search(low, run_sample, lambda _: None).rate(TASKS) is None


def test_a_load_that_ends_its_process_is_not_held() -> None:
    """Running out of memory at a rate that is far too high is an answer; the progress tells it."""
    told: list[str] = []

    def run_sample(_: str, arguments: Result) -> Result:
        if arguments["rate"] > 20_000:
            raise subprocess.CalledProcessError(-9, "sample")
        return a_load()

    assert peers.Search(peers.Settings(), run_sample, told.append).rate(LITERAL) == 20_000
    assert any("30,000/s" in line and "SIGKILL" in line for line in told)


def test_the_measurement_is_one_json_object_with_a_row_for_each(measured: Result) -> None:
    """What `--json` prints can be read back; the bare channel is there for its put alone."""
    assert json.loads(json.dumps(measured)).keys() == {"machine", "settings", "rows", "targets"}
    assert measured["rows"].keys() == {*LIMITS, BARE, GO}
    assert measured["rows"][GO] == {"unavailable": "go is not installed"}
    assert measured["rows"][BARE]["put_nowait"] == len(BARE)
    assert "drained" not in measured["rows"][BARE]
    assert "await_put" in measured["rows"][BATCH]
    assert "await_put" not in measured["rows"][LITERAL]


def test_the_rates_and_their_ratios_are_found(measured: Result) -> None:
    """The median of the runs, and beside each value what it is of the literal port's."""
    rows = measured["rows"]
    assert [rows[name]["held"] for name in (LITERAL, TASKS, BATCH)] == [30_000, 1_000, 500_000]
    assert rows[BATCH_UNCANCELLABLE]["held"] == TINY.rates[1]
    assert rows[LOCALDELAY]["held_runs"] == [100_000, 100_000]
    assert rows[LOCALDELAY]["ratios"]["held"] == pytest.approx(100 / 30)
    assert rows[LOCALDELAY]["ratios"]["put_nowait"] == pytest.approx(len(LOCALDELAY) / len(LITERAL))
    assert rows[LITERAL]["ratios"]["high"] is None


def test_a_rate_far_over_what_is_held_is_not_tried() -> None:
    """It fails without a load: over twice the rate that this run's search has found."""
    asked: list[tuple[str, float]] = []

    def run_sample(kind: str, arguments: Result) -> Result:
        if kind == "open" and arguments["seconds"] == settings.seconds:
            asked.append((arguments["contender"], arguments["rate"]))
        return holding(LIMITS)(kind, arguments)

    settings = attrs.evolve(TINY, runs=1, probe_seconds=0.4)
    rows = peers.measure(settings, [LITERAL, TASKS], run_sample, lambda _: None)["rows"]
    assert set(asked) == {(LITERAL, 30_000), (LITERAL, 10_000), (TASKS, 1_000)}
    assert (rows[LITERAL]["high"], rows[TASKS]["low"]) == (None, None)


def test_the_contenders_take_turns_figure_by_figure() -> None:
    """What is compared is measured close together, and every other run goes backwards."""
    put: list[str] = []

    def run_sample(kind: str, arguments: Result) -> Result:
        if kind == "put":
            put.append(arguments["contender"])
        return holding(LIMITS)(kind, arguments)

    peers.measure(TINY, [LITERAL, BATCH], run_sample, lambda _: None)
    assert put == [LITERAL, BATCH, BARE, BARE, BATCH, LITERAL]


@pytest.mark.parametrize(
    ("runs", "p99"),
    [
        ([a_load(0.001), a_load(0.003), a_load(0.002)], 0.002),
        ([a_load(0.001), None, a_load(0.003)], 0.002),
        ([a_load(0.001), a_load(unsent=1), None], None),
        ([a_load(early=1)], None),
        ([a_load(put_lateness={"p99": 0.5})], None),
        ([a_load(p99=4.7)], 4.7),
        ([], None),
    ],
)
def test_a_load_has_figures_where_it_was_kept_up_with(runs: list[Result | None], p99: float | None) -> None:
    """The median of the runs that put and sent all on time, if they are more than half."""
    assert peers_table.p99(peers_table.row({"low": runs}), "low") == p99


def test_early_messages_of_every_sample_are_counted() -> None:
    """One early message in one run is not lost in a median."""
    samples = {"low": [a_load(early=2), a_load()], "burst": [{"drained": 5.0, "early": 1}]}
    assert peers_table.row(samples)["early"] == 3


def test_the_tables_are_legible(measured: Result) -> None:
    """Under 100 columns, every contender named, what failed and what is missing told, targets at the end."""
    lines = list(peers_report.lines(measured))
    assert max(map(len, lines)) < 100
    text = "\n".join(lines)
    assert all(peers_report.TITLES[name] in text for name in (*LIMITS, BARE))
    assert "go is not installed" in text
    literal = next(line for line in lines if line.startswith(peers_report.TITLES[LITERAL]))
    assert literal.split()[-7:] == ["30,000", "1.00", "0.70", "1.00", "fails", "0.70", "1.00"]
    assert "messages sent early: at most 0: 0.00, met" in text
    assert f"seed {TINY.seed}" in text


def test_without_the_literal_port_there_are_no_ratios() -> None:
    """The table still prints; the targets that need it are not measured."""
    result = peers.measure(TINY, [BATCH], holding(LIMITS), lambda _: None)
    assert set(result["rows"][BATCH]["ratios"].values()) == {None}
    assert "literal port: at least 5 (aim: 500,000/s, is 500,000/s): not measured" in "\n".join(
        peers_report.lines(result)
    )


def test_the_targets_compare_what_the_issue_names(measured: Result) -> None:
    """Ratios within the run, milliseconds, microseconds and bytes, each met or missed."""
    targets = {target["name"]: target for target in measured["targets"]}
    outcomes = {name: (target["measured"], target["met"]) for name, target in targets.items()}
    assert outcomes["send_batch: held / literal port"] == (pytest.approx(500 / 30), True)
    assert outcomes["send: p99 at 10k/s / literal port"] == (pytest.approx(10 / 7), False)
    assert outcomes["await put less a checkpoint, in µs"] == (1.0, True)
    assert outcomes["send: p99 with five delays / with one"] == (1.0, True)
    assert outcomes["cancellable=False: bytes beyond the payload"] == (300.0, False)


def test_a_target_says_its_bound_its_aim_and_what_came_out() -> None:
    """Met at the bound itself; neither met nor missed where nothing was measured."""
    assert Target("a", 5.0, at_least=5).line == "a: at least 5: 5.00, met"
    assert Target("a", 4.9, at_least=5, aim="7").line == "a: at least 5 (aim: 7): 4.90, missed"
    assert Target("b", 123.4, at_most=120).line == "b: at most 120: 123, missed"
    assert Target("b", None, at_most=2).met is None


def test_a_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row says which one is not installed, and the rest is measured."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with peers.programs([GO, JAVA, LITERAL]) as (_, unavailable):
        assert unavailable == {GO: "go is not installed", JAVA: "javac is not installed"}


@pytest.mark.parametrize(("option", "value"), [("--only", "kafka"), ("--runs", "0"), ("--seconds", "0")])
def test_options_that_make_no_sense_are_refused(option: str, value: str) -> None:
    """A bad option is a one-line error that names it."""
    result = CliRunner().invoke(peers.main, [option, value])
    assert result.exit_code == 2
    assert option in result.output


def test_the_command_measures_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is one JSON object with the chosen contenders and settings; progress goes elsewhere."""
    monkeypatch.setattr(peers, "in_process", holding(LIMITS))
    options = ["--quick", "--json", "--only", f"{BATCH},{LITERAL}", "--runs", "1", "--delay", "0.1"]
    result = CliRunner().invoke(peers.main, [*options, "--seconds", "0.3"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["rows"].keys() == {LITERAL, BATCH, BARE}
    assert (told["settings"]["runs"], told["settings"]["delay"], told["settings"]["seconds"]) == (1, 0.1, 0.3)
    assert "run 1/1" in result.stderr
    table = CliRunner().invoke(peers.main, ["--quick", "--only", LITERAL])
    assert "TARGETS" in table.stdout
