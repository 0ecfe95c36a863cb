"""The bench runs, loses nothing and reports in the shape that its readers expect. No speeds here."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from bench import report, speed
from bench.contenders import (
    BARE,
    BATCH,
    DEGRADED,
    LITERAL,
    LOCALDELAY,
    PAYLOADS,
    TITLES,
    UNCANCELLABLE,
    open_contender,
)
from bench.literal import Waiting, open_literal_port
from bench.pace import BODY_BYTES, Pace, Percentiles, Recorder, body, draw_delays, offer, percentiles
from bench.samples import Result, in_process, is_held, medians
from bench.scenarios import sample
from bench.worlds import TrioWorld
from localdelay.benchmark.load import CHUNK

TINY = speed.Settings(
    rates=(100.0,), seconds=0.5, runs=2, workers=3, closed_messages=300, memory_messages=2_000
)


def on_virtual_time(kind: str, arguments: dict[str, Any]) -> Result:
    return trio.run(sample, kind, arguments, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def measured() -> Result:
    return speed.measure(TINY, on_virtual_time, lambda _: None)


def test_a_measurement_is_one_json_object_with_every_part(measured: Result) -> None:
    """What `--json` prints can be read back and has every part that the README names."""
    assert json.loads(json.dumps(measured)).keys() == {
        "machine",
        "settings",
        "closed",
        "open",
        "memory",
        "targets",
    }
    assert measured["settings"]["seed"] == TINY.seed
    assert {"cores", "cores_allowed", "python", "trio"} <= measured["machine"].keys()


def test_the_closed_loop_reports_every_contender(measured: Result) -> None:
    """Every contender has a cost for every call that it can be asked for."""
    assert measured["closed"].keys() == {LOCALDELAY, UNCANCELLABLE, BATCH, LITERAL, BARE}
    for name, costs in measured["closed"].items():
        assert min(costs["put_nowait"], costs["await_put"], costs["checkpoint"]) > 0
        assert (costs["put_take_send"] is None) == (name == BARE)


def test_the_memory_of_every_contender_is_reported(measured: Result) -> None:
    """The figure is there, or None where the system does not tell it."""
    assert measured["memory"].keys() == {LOCALDELAY, UNCANCELLABLE, DEGRADED, LITERAL, PAYLOADS}
    for result in measured["memory"].values():
        assert result.keys() == {"messages", "beyond_payload"}


def test_no_open_loop_loses_a_message_or_sends_one_early(measured: Result) -> None:
    """The contenders send everything that was offered, and nothing before it was due."""
    assert [(loop["rate"], loop["delays"]) for loop in measured["open"]] == [(100, "fixed"), (100, "mixed")]
    for loop in measured["open"]:
        assert loop["contenders"].keys() == {LOCALDELAY, BATCH, LITERAL}
        for result in loop["contenders"].values():
            assert result["offered"] == result["put"] == result["sent"] == 50
            assert result["lateness"]["count"] == result["put_lateness"]["count"] == 50
            assert result["unsent"] == result["early"] == 0


def test_the_queue_counts_what_the_bench_counts(measured: Result) -> None:
    """The queue's own statistics stand beside the bench's figures, and agree with them."""
    for loop in measured["open"]:
        own = loop["contenders"][LOCALDELAY]["own"]
        assert (own["accepted"], own["sent"], own["pending"]) == (50, 50, 0)
        assert own["lateness"]["count"] == 50
        assert loop["contenders"][LITERAL]["own"] is None


def test_on_virtual_time_only_the_literal_port_is_late(measured: Result) -> None:
    """With mixed delays the literal port's workers sleep on the wrong messages; the queue's do not."""
    mixed = measured["open"][1]["contenders"]
    assert mixed[LOCALDELAY]["lateness"]["max"] == 0
    assert mixed[LOCALDELAY]["held_runs"] == TINY.runs
    assert mixed[LITERAL]["lateness"]["p50"] > 0.1
    assert mixed[LITERAL]["held_runs"] == 0


def test_the_report_fits_80_columns_and_names_everything(measured: Result) -> None:
    """The table for people: no line over 80 columns, the seed and the targets stated."""
    lines = list(report.lines(measured))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert f"seed {TINY.seed}" in text
    assert "at most 10: not measured" in text
    assert all(TITLES[name] in text for name in TITLES)


def test_the_report_tells_what_was_not_sent(measured: Result) -> None:
    """A contender that fell behind is not shown by its percentiles alone."""
    behind = json.loads(json.dumps(measured))
    behind["open"][0]["contenders"][LITERAL] |= {"unsent": 1_200, "offered": 50_000}
    assert "literal port: 1,200 of 50,000 not sent in time" in "\n".join(report.lines(behind))


def test_a_load_that_cannot_be_sent_in_time_is_given_up() -> None:
    """The run ends when its time is over, and says how much was left."""
    result = on_virtual_time(
        "open",
        {"contender": LITERAL, "rate": 10, "seconds": 2, "delay": (1.0, 9.0), "seed": 3, "workers": 0},
    )
    assert (result["put"], result["sent"], result["unsent"]) == (20, 0, 20)
    assert not is_held(result)


def test_a_sample_runs_in_a_process_of_its_own() -> None:
    """A sample started as a process answers what it answers here."""
    result = in_process("memory", {"contender": PAYLOADS, "messages": 1_000})
    assert result["messages"] == 1_000


def test_medians_are_taken_figure_by_figure_and_the_worst_of_what_should_be_0() -> None:
    """One early message in one run of three is not averaged away."""
    runs = [
        {"early": early, "lateness": {"p99": p99}, "own": None} for early, p99 in [(0, 3), (1, 1), (0, 2)]
    ]
    assert medians(runs) == {"early": 1, "lateness": {"p99": 2}, "own": None}


def test_targets_are_compared_with_what_was_measured() -> None:
    """Met and missed come from the p99 of the queue itself."""
    p99s = {("fixed", 50_000): 0.009, ("fixed", 10_000): 0.001, ("mixed", 10_000): 0.0025}
    loops = [
        {"delays": delays, "rate": rate, "contenders": {LOCALDELAY: {"lateness": {"p99": p99}}}}
        for (delays, rate), p99 in p99s.items()
    ]
    fixed, mixed = speed.targets(loops)
    assert (fixed["measured"], fixed["met"]) == (9.0, True)
    assert (mixed["measured"], mixed["met"]) == (2.5, False)


@pytest.mark.parametrize("rates", ["", "fast", "100,", "0", "-1", "nan", "inf"])
def test_rates_that_are_none_are_refused(rates: str) -> None:
    """A bad rate is a one-line error that names the option."""
    result = CliRunner().invoke(speed.main, ["--rates", rates])
    assert result.exit_code == 2
    assert "--rates" in result.output


def test_the_command_prints_json_and_its_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is one JSON object; the options arrive in its settings."""
    monkeypatch.setattr(speed, "in_process", on_virtual_time)
    monkeypatch.setattr(speed, "QUICK", TINY)
    options = ["--quick", "--json", "--rates", "50", "--seconds", "0.2", "--runs", "1", "--seed", "7"]
    result = CliRunner().invoke(speed.main, options)
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["settings"]
    assert settings == json.loads(
        json.dumps(attrs.asdict(attrs.evolve(TINY, rates=(50.0,), seconds=0.2, runs=1, seed=7)))
    )
    assert "run 1/1" in result.stderr


async def test_an_unknown_contender_is_refused() -> None:
    """A name that nobody has is an error that repeats it."""
    with pytest.raises(ValueError, match="'zeromq'"):
        async with open_contender("zeromq", Recorder(trio.current_time), capacity=1):
            pass


async def test_the_literal_port_sends_each_message_when_it_is_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With one delay for all it is on time, in order, and leaving the block waits for the last one."""
    sent: list[tuple[float, bytes]] = []
    start = trio.current_time()

    async def send(message: Waiting) -> None:
        sent.append((trio.current_time() - start, message[1]))

    async with open_literal_port(send, capacity=10, workers=2) as port:
        port.put_nowait(b"a", delay=2.0)
        await trio.sleep(1)
        await port.put(b"b", delay=2.0)
    assert sent == [(2.0, b"a"), (3.0, b"b")]


async def test_the_literal_port_blocks_behind_its_head(autojump_clock: trio.testing.MockClock) -> None:
    """What it is there to show: one worker that sleeps on a long delay holds up a short one."""
    sent: list[tuple[float, bytes]] = []
    start = trio.current_time()

    async def send(message: Waiting) -> None:
        sent.append((trio.current_time() - start, message[1]))

    async with open_literal_port(send, capacity=10, workers=1) as port:
        port.put_nowait(b"long", delay=60.0)
        await trio.testing.wait_all_tasks_blocked()
        port.put_nowait(b"short", delay=1.0)
    assert sent == [(60.0, b"long"), (60.0, b"short")]


async def test_the_generator_puts_each_message_at_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Message i is put at start + i / rate, with its own body and delay, whatever became of the others."""
    put: list[tuple[float, bytes, float]] = []
    start = trio.current_time()

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        put.append((trio.current_time() - start, payload, delay))

    pace = Pace(trio.current_time, rate=4, delays=[0.1, 0.2, 0.3])
    await offer(TrioWorld(), pace, put_nowait)
    assert put == [(0.0, body(0), 0.1), (0.25, body(1), 0.2), (0.5, body(2), 0.3)]
    assert pace.lateness() == Percentiles(count=3)


async def test_a_generator_that_wakes_late_catches_up_in_chunks(
    mock_clock: trio.testing.MockClock,
) -> None:
    """After a second away it puts what it missed in runs that let others in, and owns up to the delay."""
    put = 0
    runs: list[int] = []

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        nonlocal put
        if put == 1:
            mock_clock.jump(1.0)
        put += 1

    async def watch() -> None:
        while put < 1_001:
            runs.append(put)
            await trio.lowlevel.checkpoint()
        runs.append(put)

    pace = Pace(trio.current_time, rate=1_000, delays=[0.0] * 1_001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(offer, TrioWorld(), pace, put_nowait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(watch)
        await trio.lowlevel.checkpoint()
        mock_clock.jump(0.001)
    # Trio shuffles the tasks of a round, so two runs may pass between two looks, and the one message before.
    assert max(later - earlier for earlier, later in pairwise(runs)) <= 2 * CHUNK + 1
    late = pace.lateness()
    assert late.count == 1_001
    assert late.max == pytest.approx(0.999)
    assert late.p50 == pytest.approx(0.5, abs=0.01)


def test_percentiles_are_exact_ranks() -> None:
    """The nearest rank of the sorted values, the maximum included; nothing at all is all zeros."""
    thousand = [float(value) for value in range(1_000, 0, -1)]
    assert percentiles(thousand) == Percentiles(1_000, 500, 900, 990, 999, 1_000)
    assert percentiles([7.0]) == Percentiles(1, 7, 7, 7, 7, 7)
    assert percentiles([]) == Percentiles()


def test_bodies_are_500_bytes_and_distinct() -> None:
    """No two messages share their payload."""
    bodies = {body(number) for number in range(1_000)}
    assert len(bodies) == 1_000
    assert {len(payload) for payload in bodies} == {BODY_BYTES}
    assert body(999_999_999) == (999_999_999).to_bytes(BODY_BYTES, "big")


def test_delays_repeat_with_their_seed() -> None:
    """The same seed gives both contenders the same delays, within their bounds."""
    delays = draw_delays(100, 0.1, 5.0, seed=5)
    assert delays == draw_delays(100, 0.1, 5.0, seed=5)
    assert delays != draw_delays(100, 0.1, 5.0, seed=6)
    assert all(0.1 <= delay <= 5.0 for delay in delays)
    assert list(draw_delays(3, 2.0, 2.0, seed=5)) == [2.0, 2.0, 2.0]
