"""The extreme scenes, small enough for every submission: counts of messages and of memory, no times.

The large ones are `python -m bench.extremes`; what it reports is tested here too.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner

import localdelay
from bench import extremes
from bench.extremes_figures import Figure, rows
from bench.extremes_probes import Arrivals, Collections, Steps, account, longest, number_of
from bench.extremes_scenes import SCENES
from bench.pace import BODY_BYTES, body
from bench.samples import ROOT
from localdelay.benchmark.process import resident_bytes

PENDING = 1_200_000
WARM_UP = 2_000
MOST_BEYOND_PAYLOAD = 200
HOUR = 3600.0


async def fill_and_send(clock: trio.testing.MockClock) -> dict[str, Any]:
    """Put 1,200,000 messages, count their memory, have them all fall due, and count what was sent."""
    arrivals = Arrivals(trio.current_time, expected=WARM_UP + PENDING)
    async with localdelay.open_delay_queue(
        send_batch=arrivals.send_batch, capacity=PENDING, workers=20, cancellable=False
    ) as queue:
        for number in range(WARM_UP):
            queue.put_nowait(body(number), delay=0)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        before = resident_bytes()
        for number in range(WARM_UP, WARM_UP + PENDING):
            queue.put_nowait(body(number), delay=HOUR)
            if number % 256 == 0:
                clock.jump(0.001)  # a clock that stood still would give all of them one and the same instant
        gc.collect()
        after = resident_bytes()
        waiting = attrs.asdict(queue.statistics())
        clock.jump(HOUR)
    told = account(arrivals, WARM_UP + PENDING, queue.statistics(), queue.messages())
    beyond = None if before is None or after is None else (after - before) / PENDING - BODY_BYTES
    return {"beyond": beyond, "waiting": waiting, **attrs.asdict(told)}


def test_a_million_pending_messages_take_little_memory_and_none_is_lost() -> None:
    """With 1,200,000 pending, each costs at most 200 bytes beyond its payload, and each is sent once."""
    # A process of its own: what else the tests have left in memory would blur the count.
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    print(f"{told['beyond']} bytes beyond the payload")
    assert told["waiting"]["accepted"] == WARM_UP + PENDING
    assert told["waiting"]["pending"] == told["waiting"]["waiting"] == PENDING
    assert (told["lost"], told["twice"], told["early"], told["books"]) == (0, 0, 0, "")
    assert told["beyond"] is None or told["beyond"] <= MOST_BEYOND_PAYLOAD


@pytest.mark.parametrize("sender", ["send", "send_batch"])
def test_a_stopped_process_loses_nothing(sender: str) -> None:
    """Half a second of SIGSTOP while 20,000 fall due: all leave once, and none early."""
    burst = {"messages": 20_000, "sender": sender, "frozen": 0.5, "spread": 0.5}
    figures = extremes.in_process("burst", burst)
    assert counts(figures) == {
        "lost": 0,
        "twice": 0,
        "early": 0,
        "books that don't add up": 0,
        "still pending": 0,
    }


def test_what_is_cancelled_at_once_leaves_no_memory_behind() -> None:
    """300,000 messages, each cancelled after its put: resident memory has grown by at most 20 %."""
    figures = extremes.in_process("cancel", {"messages": 300_000, "when": "at once"})
    assert counts(figures) == {"not cancelled": 0}
    (grown,) = (figure for figure in figures if figure.name == "resident memory, grown by")
    print(f"grown by {grown.value} %")
    assert grown.at_most == 20
    assert grown.met is not False


def counts(figures: list[Figure]) -> dict[str, float | None]:
    """The figures that must be 0, for they are about promises and not about speed."""
    return {figure.name: figure.value for figure in figures if figure.at_most == 0}


def on_virtual_time(kind: str, arguments: dict[str, Any]) -> list[Figure]:
    async def run() -> list[Figure]:
        return await SCENES[kind](**arguments)

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


TINY = extremes.Settings(
    backlog={"pending": 70_000, "rate": 10_000, "seconds": 0.5},
    cancelled=2_000,
    indexed=2_000,
    idle_messages=2_000,
    idle_seconds=0.5,
    burst=2_000,
    frozen=0.5,
)


@pytest.mark.parametrize(
    "sample", [sample for sample in extremes.plan(TINY) if sample.scene != "freeze"], ids=lambda s: s.title
)
@pytest.mark.filterwarnings("error")
def test_every_scene_keeps_the_promises(sample: extremes.Sample) -> None:
    """Each scene runs, small and on virtual time, has figures, and nothing is lost, early or sent twice."""
    figures = on_virtual_time(sample.kind, sample.arguments)
    assert not any(figure.is_broken_promise for figure in figures)
    assert any(figure.at_most for figure in figures) or sample.scene == "hold"
    assert gc.isenabled()


def test_the_scene_of_the_backlog_keeps_its_number_waiting() -> None:
    """As many fall due as come in, so what is pending at the end is what was pending at the start."""
    figures = {figure.name: figure.value for figure in on_virtual_time("backlog", TINY.backlog)}
    assert figures["pending at its end"] == pytest.approx(70_000, abs=2)
    assert figures["sent in the run"] == pytest.approx(5_000, abs=2)
    assert figures["lateness max"] == pytest.approx(0)  # the rounding of the clock's reading
    assert figures["the load's own lateness p99"] == pytest.approx(0)


async def statistics_of(put: int, sent: int, pending: int) -> localdelay.Statistics:
    lateness = localdelay.LatencySummary(count=sent)
    async with localdelay.open_delay_queue(
        Arrivals(trio.current_time, expected=0).send, capacity=1, workers=1
    ) as queue:
        empty = queue.statistics()
    return attrs.evolve(
        empty,
        accepted=put,
        sent=sent,
        pending=pending,
        waiting=pending,
        pending_bytes=pending * BODY_BYTES,
        lateness=lateness,
    )


def message(number: int, execute_at: float = 0.0) -> localdelay.Message:
    return localdelay.Message(id=str(number), payload=body(number), execute_at=execute_at)


async def arrivals_of(*numbers: int, now: float = 1.0) -> Arrivals:
    arrivals = Arrivals(lambda: now, expected=4)
    await arrivals.send_batch([message(number) for number in numbers])
    return arrivals


async def test_an_account_that_adds_up() -> None:
    """Two sent, one pending, one never put: nothing to complain about."""
    told = account(await arrivals_of(0, 2), 3, await statistics_of(3, 2, 1), [message(1)])
    assert (told.lost, told.twice, told.early, told.books) == (0, 0, 0, "")


async def test_an_account_sees_what_is_lost() -> None:
    """A number that is neither sent nor pending is lost, whatever the statistics say."""
    told = account(await arrivals_of(0), 3, await statistics_of(3, 1, 2), [message(1)])
    assert told.lost == 1
    assert "counted 3, 1, 1" in told.books


async def test_an_account_sees_what_is_sent_twice() -> None:
    """Sent twice, sent and still pending, or sent without having been put."""
    told = account(await arrivals_of(0, 0), 1, await statistics_of(1, 2, 0), [])
    assert told.twice == 1
    told = account(await arrivals_of(0, 1), 2, await statistics_of(2, 2, 1), [message(1)])
    assert told.twice == 1
    told = account(await arrivals_of(0, 3), 1, await statistics_of(1, 2, 0), [])
    assert told.twice == 1


async def test_an_account_sees_what_is_early() -> None:
    """A send that began before execute-at."""
    arrivals = await arrivals_of(0, now=-1e-9)
    assert account(arrivals, 1, await statistics_of(1, 1, 0), []).early == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"accepted": 4}, "accepted 4, but finished 2"),
        ({"retrying": 1}, "retrying 1"),
        ({"pending_bytes": 1}, "pending_bytes 1"),
        ({"lateness": localdelay.LatencySummary(count=7)}, "lateness of 7"),
    ],
)
async def test_an_account_sees_books_that_do_not_add_up(change: dict[str, Any], complaint: str) -> None:
    """Every equation between the statistics is checked."""
    books = attrs.evolve(await statistics_of(3, 2, 1), **change)
    assert complaint in account(await arrivals_of(0, 2), 3, books, [message(1)]).books


def test_a_number_survives_its_payload() -> None:
    """The number that a body was made of can be read off it."""
    assert [number_of(body(number)) for number in (0, 1, 12_345_678)] == [0, 1, 12_345_678]


async def test_the_first_ones_have_left() -> None:
    """The event is set when the last of the first numbers is sent, whatever else is sent meanwhile."""
    arrivals = Arrivals(lambda: 0.0, expected=4, first=2)
    await arrivals.send(message(1))
    await arrivals.send_batch([message(2), message(3)])
    assert not arrivals.all_left.is_set()
    await arrivals.send(message(0))
    assert arrivals.all_left.is_set()
    assert arrivals.late == array("d", [0.0] * 4)


def test_what_began_before_the_process_was_woken_does_not_count() -> None:
    """The longest step, pass, call or collection is looked for from an instant on."""
    assert longest([(1.0, 5.0), (2.0, 0.1), (3.0, 0.2)], since=2.0) == 0.2
    assert longest([(1.0, 5.0)], since=2.0) == 0
    steps = Steps()
    steps._steps += [(1.0, 5.0, 0.0, "a"), (2.0, 0.1, 0.0, "b")]
    assert steps.longest_step(since=1.5).task == "b"
    assert steps.longest_step(since=9).seconds == steps.longest_pass(since=9).seconds == 0
    collections = Collections()
    collections.runs[2].extend([(1.0, 5.0), (2.0, 0.1)])
    assert (collections.longest(2, since=1.5), collections.longest(2), collections.total()) == (0.1, 5, 5.1)


def test_collections_are_noticed() -> None:
    """A full collection while watching is recorded, and none afterwards."""
    collections = Collections()
    with collections.watched():
        gc.collect()
    gc.collect()
    assert len(collections.runs[2]) == 1


async def test_steps_are_counted_by_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's length is recorded with the name of its task, once it is long enough to note."""
    monkeypatch.setattr("bench.extremes_probes._NOTED", -1.0)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        for _ in range(3):  # the first step and the first pass began before anybody looked
            await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(steps)
    assert steps.count > 0
    assert steps.longest_step(since=0).task != "none"
    assert steps.longest_pass(since=0).task == "a pass"


def test_a_figure_is_met_or_not_or_neither() -> None:
    """Without a target or without a value nothing is met or missed; only a count over 0 breaks a promise."""
    assert Figure("p99", 2.0, "ms", 2.0).met is True
    assert Figure("p99", 2.1, "ms", 2.0).met is False
    assert Figure("p99", 2.1, "ms").met is None
    assert Figure("memory", None, "GB", 9.0).met is None
    assert not Figure("p99", 2.1, "ms", 2.0).is_broken_promise
    assert Figure("lost", 1, at_most=0).is_broken_promise
    assert not Figure("lost", 0, at_most=0).is_broken_promise


def test_the_table_fits_80_columns() -> None:
    """Every scene's figures under its title, once; values that are unknown say so."""
    table = list(
        rows(
            [
                ("freeze, batch", [Figure("books that don't add up", 1, at_most=0, note="accepted 3")]),
                (
                    "backlog",
                    [Figure("lateness max", 12_345.6, "ms", 100.0), Figure("memory", None, "GB", 9.0)],
                ),
            ]
        )
    )
    assert max(map(len, table)) <= 80
    text = "\n".join(table)
    assert "12,345.60 ms" in text
    assert "unknown" in text
    assert text.count("backlog") == text.count("accepted 3") == 1
    assert text.count("MISSED") == 2


def fail(status: int) -> Callable[[str, Any], list[Figure]]:
    def run_sample(kind: str, arguments: Any) -> list[Figure]:
        if kind == "idle":
            raise subprocess.CalledProcessError(status, ["bench"])
        return [Figure("lost", 0, at_most=0)]

    return run_sample


@pytest.mark.parametrize("status", [1, -9])
def test_a_scene_that_fails_is_reported_and_the_others_go_on(status: int) -> None:
    """A child that dies has a row that says so, and is a broken promise."""
    samples = [sample for sample in extremes.plan(TINY) if sample.scene in ("idle", "hold")]
    measured = dict(extremes.measure(samples, fail(status), lambda _: None))
    assert measured.keys() == {"idle, auto", "idle, trio", "hold, send", "hold, batch", "hold, unordered"}
    assert measured["idle, auto"][0].value == abs(status)
    assert measured["idle, auto"][0].is_broken_promise
    assert not measured["hold, send"][0].is_broken_promise


def test_the_command_runs_the_scenes_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress goes to standard error, the table to standard output; exit status 0 if all were sent."""
    monkeypatch.setattr(extremes, "QUICK", TINY)
    monkeypatch.setattr(extremes, "in_process", on_virtual_time)
    done = CliRunner().invoke(extremes.main, ["cancel", "--quick"])
    assert done.exit_code == 0, done.output
    assert "cancel at once" in done.stdout
    assert "idle" not in done.stdout
    assert "1/3: cancel at once" in done.stderr


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object with the machine, the settings, and the figures by scene."""
    monkeypatch.setattr(extremes, "QUICK", TINY)
    monkeypatch.setattr(extremes, "in_process", fail(3))
    done = CliRunner().invoke(extremes.main, ["hold", "idle", "--quick", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told.keys() == {"machine", "settings", "scenes"}
    assert told["scenes"]["idle, auto"][0]["met"] is False
    assert told["scenes"]["hold, send"] == [attrs.asdict(Figure("lost", 0, at_most=0)) | {"met": True}]


def test_a_scene_that_does_not_exist_is_refused() -> None:
    """The names that there are stand in the message."""
    done = CliRunner().invoke(extremes.main, ["nonsense"])
    assert done.exit_code == 2
    assert "backlog" in done.output


if __name__ == "__main__":
    virtual = trio.testing.MockClock()
    print(json.dumps(trio.run(fill_and_send, virtual, clock=virtual)))
