"""The contenders of `bench.peers`: every scenario runs for each, and none is early or loses a message."""

from __future__ import annotations

import asyncio
import shutil
import sys
from array import array
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from bench import foreign
from bench.contenders import (
    BATCH,
    BATCH_UNCANCELLABLE,
    CALL_AT,
    DEGRADED,
    LITERAL,
    LOCALDELAY,
    TASKS,
    THREADS,
    open_contender,
)
from bench.foreign import GO, JAVA
from bench.pace import Outcome, Pace, Recorder, body, put_lateness, take_turns
from bench.samples import Result
from bench.scenarios import sample
from bench.worlds import AsyncioWorld, TrioWorld

PYTHON = [LITERAL, TASKS, CALL_AT, THREADS, LOCALDELAY, BATCH, BATCH_UNCANCELLABLE]


def in_its_loop(kind: str, arguments: Result) -> Result:
    """A sample in this process, in real time."""
    if arguments["contender"] == CALL_AT:
        return asyncio.run(sample(kind, arguments))
    return trio.run(sample, kind, arguments)


def test_what_a_program_answers_becomes_the_result_of_its_scenario() -> None:
    """Doubles in, the figures of the scenario out, by the code that makes them for the others."""
    runs = (2, 0.0, 0.0, 3, 0.25, 0.25)
    result = foreign.interpret("open", 3, 10.0, array("d", (0, 0.3, 4, 2, 0.002, 0.001, *runs)))
    assert (result["put"], result["sent"], result["unsent"], result["early"]) == (3, 2, 1, 0)
    assert result["lateness"]["max"] == 0.002
    assert result["put_lateness"]["max"] == pytest.approx(0.05)
    burst = foreign.interpret("burst", 2, 1.0, array("d", (0, 0, 0, 2, 0.001, 0.002)))
    assert burst == {"drained": 1000.0, "early": 0}
    assert foreign.interpret("put", 2, 1.0, array("d", (4e-6, 0, 0, 0))) == {"put_nowait": pytest.approx(2)}
    assert foreign.interpret("memory", 2, 1.0, array("d", (1180, 0, 0, 0)))["beyond_payload"] == 90


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is the reason; nothing is measured."""
    compiler = tmp_path / "go"
    compiler.write_text(f"#!{sys.executable}\nraise SystemExit('no space left')\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(foreign.UnavailableError, match="go failed: no space left"):
        foreign.build(GO, tmp_path)


@pytest.mark.parametrize(("name", "compiler"), [(GO, "go"), (JAVA, "javac")])
def test_a_program_sends_all_and_nothing_early(name: str, compiler: str, tmp_path: Path) -> None:
    """Where the compiler is installed, the program puts and sends what it is given; else it is told."""
    if shutil.which(compiler) is None:
        with pytest.raises(foreign.UnavailableError, match=f"{compiler} is not installed"):
            foreign.build(name, tmp_path)
        return
    command = foreign.build(name, tmp_path)
    load = {"rate": 1_000, "seconds": 0.2, "delay": (0.01, 0.05), "seed": 3, "workers": 20}
    result = foreign.sample(command, "open", load)
    assert (result["put"], result["sent"], result["early"]) == (200, 200, 0)
    assert result["lateness"]["count"] == result["put_lateness"]["count"] == 200


@pytest.mark.parametrize("name", PYTHON)
def test_a_peer_sends_all_and_nothing_early(name: str) -> None:
    """A small load in real time, with mixed delays: all is put, all is sent, and nothing before its time."""
    load = {"rate": 2_000, "seconds": 0.15, "delay": (0.01, 0.05), "seed": 3, "workers": 20}
    result = in_its_loop("open", {"contender": name, **load})
    assert (result["put"], result["sent"], result["unsent"], result["early"]) == (300, 300, 0, 0)


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.parametrize(
    ("kind", "arguments", "figure"),
    [
        ("put", {"messages": 100}, "put_nowait"),
        ("memory", {"messages": 100}, "beyond_payload"),
        ("burst", {"messages": 100, "workers": 20, "margin": 0.02}, "drained"),
    ],
)
def test_every_scenario_runs_for_every_peer(name: str, kind: str, arguments: Result, figure: str) -> None:
    """Each of the figures of the table can be taken of each of the contenders."""
    assert figure in in_its_loop(kind, {"contender": name, **arguments})


async def test_delays_taken_in_turn_are_all_kept(autojump_clock: trio.testing.MockClock) -> None:
    """Five fixed delays, on virtual time: each message is sent when its own is over."""
    load = {"rate": 10, "seconds": 2, "delay": (0.5, 1, 2, 3, 5), "in_turn": True, "seed": 1, "workers": 2}
    result = await sample("open", {"contender": BATCH, **load})
    assert (result["sent"], result["lateness"]["max"]) == (20, 0)
    assert list(take_turns(5, [1, 2])) == [1, 2, 1, 2, 1]


async def test_a_degraded_publish_is_held_locally(autojump_clock: trio.testing.MockClock) -> None:
    """The primary refuses every message, and the queue sends it; without an await there is no publish."""
    recorder = Recorder(trio.current_time)
    async with open_contender(DEGRADED, recorder, capacity=10) as queue:
        await queue.put(b"x", delay=3.0)
        with pytest.raises(TypeError, match="awaited"):
            queue.put_nowait(b"x", delay=3.0)
    assert list(recorder.late) == [0.0]


async def test_the_recorder_keeps_every_lateness(mock_clock: trio.testing.MockClock) -> None:
    """One by one, or a batch at once: each message's own, from one reading of the clock."""
    recorder = Recorder(trio.current_time)
    now = trio.current_time()
    recorder.one(now - 2.0)
    mock_clock.jump(1.0)
    recorder.batch([Due(now), Due(now + 0.5)])
    assert list(recorder.late) == [2.0, 1.0, 0.5]


@attrs.frozen
class Due:
    execute_at: float


def test_the_lateness_of_puts_is_interpolated_within_a_run() -> None:
    """Between the two clock readings of a run the puts are taken to be evenly spaced."""
    late = put_lateness([(4, 1.0, 1.4), (5, 2.0, 2.0)], rate=10.0)
    assert list(late) == [pytest.approx(value) for value in (1.0, 1.0, 1.0, 1.0, 1.6)]
    assert Outcome(5, [], [], 10.0, 0.0, 1.0).figures()["put"] == 0


def test_a_world_that_is_asyncios_ends_its_block_on_time() -> None:
    """The block is left at its deadline, or when it is given up, as on Trio."""

    async def run() -> list[str]:
        world, told = AsyncioWorld(), []
        async with world.move_on_at(world.clock() + 0.01):
            await world.sleep_until(world.clock() + 60)
            told.append("overslept")
        async with world.move_on_at(world.clock() + 60) as give_up:
            give_up()
            await world.sleep_until(world.clock() + 60)
            told.append("went on")
        return told

    assert asyncio.run(run()) == []


async def test_a_pace_ends_with_its_last_put(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing is left to wait for after that; a call before its time puts nothing."""
    pace = Pace(TrioWorld().clock, rate=2, delays=[1.0, 1.0])
    put: list[bytes] = []

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        put.append(payload)

    when = pace.put_due(put_nowait)
    assert when == trio.current_time() + 0.5
    assert pace.put_due(put_nowait) == when
    await trio.sleep_until(when)
    assert pace.put_due(put_nowait) is None
    assert put == [body(0), body(1)]
    assert len(pace.runs) == 2
