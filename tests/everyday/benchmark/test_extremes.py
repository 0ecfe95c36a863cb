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
from bench.extremes_figures import Figure, rows
from bench.extremes_probes import Account, Arrivals, Collections, Steps, account, longest
from bench.extremes_scenes import SCENES
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


async def told(
    sent: list[int], pending: list[int], put: int, *, now: float = 1.0, wrong: dict[str, int] | None = None
) -> Account:
    """The account of numbers that were sent and that are pending, with books that agree but for `wrong`."""
    messages = [localdelay.Message(str(number), body(number), 0.0) for number in (*sent, *pending)]
    arrivals = Arrivals(lambda: now, expected=4)
    await arrivals.send_batch(messages[: len(sent)])
    async with localdelay.open_delay_queue(arrivals.send, capacity=1, workers=1) as queue:
        statistics = attrs.evolve(
            queue.statistics(),
            accepted=put,
            sent=len(sent),
            pending=len(pending),
            waiting=len(pending),
            pending_bytes=len(pending) * BODY_BYTES,
            lateness=localdelay.LatencySummary(count=len(sent)),
        )
    return account(arrivals, put, attrs.evolve(statistics, **(wrong or {})), messages[len(sent) :])


@pytest.mark.parametrize(
    ("sent", "pending", "put", "lost", "twice"),
    [
        ([0, 2], [1], 3, 0, 0),
        ([0], [1], 3, 1, 0),
        ([0, 0], [], 1, 0, 1),
        ([0, 1], [1], 2, 0, 1),
        ([0, 3], [], 1, 0, 1),
    ],
    ids=["adds up", "lost", "sent twice", "sent and pending", "never put"],
)
async def test_an_account_sees_what_is_lost_or_twice(
    sent: list[int], pending: list[int], put: int, lost: int, twice: int
) -> None:
    """Whatever the queue's statistics say, each number is looked for."""
    found = await told(sent, pending, put)
    assert (found.lost, found.twice, found.early) == (lost, twice, 0)


async def test_an_account_sees_what_is_early_or_does_not_add_up() -> None:
    """A send before its execute-at, and every equation between the statistics."""
    assert (await told([0], [], 1, now=-1e-9)).early == 1
    assert (await told([0, 2], [1], 3)).books == ""
    for change in ({"accepted": 4}, {"retrying": 1}, {"pending_bytes": 1}, {"sent": 7}):
        assert next(iter(change)) in (await told([0, 2], [1], 3, wrong=change)).books


def test_what_began_before_the_process_was_woken_does_not_count() -> None:
    """The longest step, call or collection is looked for from an instant on."""
    assert longest([(1.0, 5.0), (2.0, 0.1), (3.0, 0.2)], since=2.0) == 0.2
    steps = Steps()
    steps._steps += [(1.0, 5.0, 0.0, "a"), (2.0, 0.1, 0.0, "b")]
    assert steps.longest_step(since=1.5).task == "b"
    collections = Collections()
    with collections.watched():
        gc.collect()
    gc.collect()
    assert len(collections.runs[2]) == 1


def test_only_a_count_that_must_be_0_is_a_promise() -> None:
    """Without a target or a value nothing is met or missed; the table says which is which."""
    met = [Figure("p99", value, "ms", most).met for value, most in ((2.0, 2.0), (2.1, 2.0), (2.1, None))]
    assert met == [True, False, None]
    assert not Figure("p99", 2.1, "ms", 2.0).is_broken_promise
    assert Figure("lost", 1, at_most=0).is_broken_promise
    text = list(rows([("backlog", [Figure("memory", None, "GB", 9.0), Figure("lost", 1, at_most=0)])]))
    assert text[2:] == ["| backlog | memory | unknown | 9 GB |  |", "|  | lost | 1 | 0 | missed |"]


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
