"""What the extreme scenes report: nothing lost, early or twice can hide there. Small, on virtual time."""

from __future__ import annotations

import gc
import subprocess
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner

import localdelay
from bench import extremes
from bench.extremes_probes import Arrivals, account
from bench.extremes_scenes import SCENES
from bench.figures import Figure, rows
from bench.samples import BODY_BYTES, body

TINY = extremes.Settings(
    backlog={"pending": 70_000, "rate": 10_000, "seconds": 0.5},
    cancelled=2_000,
    indexed=2_000,
    idle_messages=2_000,
    idle_seconds=0.5,
    burst=2_000,
    frozen=0.5,
)


def on_virtual_time(kind: str, arguments: dict[str, Any]) -> list[Figure]:
    async def run() -> list[Figure]:
        return await SCENES[kind](**arguments)

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "sample", [one for one in extremes.plan(TINY) if one.scene != "freeze"], ids=lambda one: one.title
)
@pytest.mark.filterwarnings("error")
def test_every_scene_keeps_the_promises(sample: extremes.Sample) -> None:
    """Each scene has figures, and nothing is lost, early or sent twice; the backlog stays what it is."""
    figures = on_virtual_time(sample.kind, sample.arguments)
    assert not any(figure.is_broken_promise for figure in figures)
    assert gc.isenabled()
    if sample.scene == "backlog":
        values = {figure.name: figure.value for figure in figures}
        assert values["pending at its end"] == pytest.approx(70_000, abs=2)
        assert values["sent in the run"] == pytest.approx(5_000, abs=2)
        assert values["lateness max"] == pytest.approx(0)
        assert values["the load's own lateness p99"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("sent", "pending", "put", "now", "wrong", "found"),
    [
        ([0, 2], [1], 3, 1.0, {}, {}),
        ([0], [1], 3, 1.0, {}, {"lost": 1}),
        ([0, 0], [], 1, 1.0, {}, {"twice": 1}),
        ([0, 1], [1], 2, 1.0, {}, {"twice": 1}),
        ([0, 3], [], 1, 1.0, {}, {"twice": 1}),
        ([0], [], 1, -1e-9, {}, {"early": 1}),
        *(([0, 2], [1], 3, 1.0, {name: 7}, {"books": name}) for name in ("accepted", "retrying", "sent")),
        ([0, 2], [1], 3, 1.0, {"pending_bytes": 1}, {"books": "pending_bytes"}),
    ],
)
async def test_an_account_sees_what_is_lost_twice_or_early(
    sent: list[int], pending: list[int], put: int, now: float, wrong: dict[str, int], found: dict[str, Any]
) -> None:
    """Whatever the statistics say, each number is looked for; and their equations are reckoned."""
    messages = [localdelay.Message(str(number), body(number), 0.0) for number in (*sent, *pending)]
    arrivals = Arrivals(lambda: now, expected=4)
    await arrivals.send_batch(messages[: len(sent)])
    async with localdelay.open_delay_queue(arrivals.send, capacity=1, workers=1) as queue:
        books = {"accepted": put, "sent": len(sent), "pending": len(pending), "waiting": len(pending)}
        books |= {"pending_bytes": len(pending) * BODY_BYTES} | wrong
        lateness = localdelay.LatencySummary(count=len(sent))
        statistics = attrs.evolve(queue.statistics(), **books, lateness=lateness)
    told = attrs.asdict(account(arrivals, put, statistics, messages[len(sent) :]))
    assert found.pop("books", "") in told.pop("books")
    assert told == {"lost": 0, "twice": 0, "early": 0} | found


def test_only_a_count_that_must_be_0_is_a_promise() -> None:
    """Without a target or a value nothing is met or missed; the table says which is which."""
    met = [Figure("p99", value, "ms", most).met for value, most in ((2.0, 2.0), (2.1, 2.0), (2.1, None))]
    assert met == [True, False, None]
    assert not Figure("p99", 2.1, "ms", 2.0).is_broken_promise
    assert Figure("lost", 1, at_most=0).is_broken_promise
    text = list(rows([("backlog", [Figure("memory", None, "GB", 9.0), Figure("lost", 1, at_most=0)])]))
    assert text == [["backlog", "memory", "unknown", "9 GB", ""], ["", "lost", "1", "0", "missed"]]


@pytest.mark.parametrize("status", [1, -9])
def test_a_scene_that_fails_is_reported_and_the_others_go_on(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that dies has a row that says so, is a broken promise, and makes the exit status 1."""

    def run_sample(kind: str, _: Any) -> list[Figure]:
        if kind == "idle":
            raise subprocess.CalledProcessError(status, ["bench"])
        return [Figure("lost", 0, at_most=0)]

    monkeypatch.setattr(extremes, "in_process", run_sample)
    done = CliRunner().invoke(extremes.main, ["hold", "idle", "--quick"])
    assert done.exit_code == 1
    assert f"{abs(status)} | 0 | missed" in done.stdout
    assert done.stdout.count("| lost | 0 | 0 | met |") == 3
    assert CliRunner().invoke(extremes.main, ["hold", "--quick"]).exit_code == 0
