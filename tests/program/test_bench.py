"""The programs of `bench/`, small, in real time and in processes of their own: counts, and no speeds."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import localdelay
from bench import extremes, foreign, journal
from bench.contenders import ALL, CONTENDERS, PROGRAM
from bench.extremes_probes import Arrivals, account
from bench.loops import run
from bench.samples import BODY_BYTES, ROOT, Result, body, in_process
from bench.scenarios import sample
from localdelay.benchmark.process import resident_bytes

PENDING = 1_200_000
WARM_UP = 2_000
MOST_BEYOND_PAYLOAD = 200
HOUR = 3600.0
LOAD: Result = {
    "rate": 1_000,
    "seconds": 0.2,
    "delays": [0.01, 0.05],
    "is_range": True,
    "seed": 3,
    "workers": 20,
    "patience": 30,
}
CLOSED = {"put": {}, "memory": {}, "burst": {"workers": 20, "margin": 0.2}}
EXTRA = {"await": ("await", {}), "producers": ("producers", {"workers": 20})}


@pytest.mark.parametrize("name", [name for name, one in CONTENDERS.items() if one.world != PROGRAM])
def test_a_contender_sends_all_and_nothing_early_in_its_world(name: str) -> None:
    """Every figure that the table has of it can be taken, and a small load is all put and sent."""
    contender = CONTENDERS[name]
    assert contender.world != PROGRAM
    for figure in contender.figures:
        kind, arguments = EXTRA.get(figure, (figure, CLOSED.get(figure)))
        if arguments is not None:
            asked = {"contender": name, "messages": 400, **arguments}
            found = run(contender.world, lambda loop: sample(loop, kind, asked))  # noqa: B023 (called at once)
            assert "failed" not in found, (figure, found)
    if "low" in contender.figures:
        load = {"contender": name, **LOAD}
        found = run(contender.world, lambda loop: sample(loop, "open", load))
        assert (found["put"], found["sent"], found["twice"], found["early"]) == (200, 200, 0, 0)


@pytest.mark.parametrize("name", [name for name, one in CONTENDERS.items() if one.world == PROGRAM])
def test_a_program_sends_all_and_nothing_early(name: str, tmp_path: Path) -> None:
    """Where the compiler is installed, it puts and sends what it is given; else it is told."""
    if shutil.which({"go": "go", "java": "javac"}[name]) is None:
        with pytest.raises(foreign.UnavailableError, match="is not installed"):
            foreign.build(name, tmp_path)
        return
    command = foreign.build(name, tmp_path)
    found = foreign.sample(command, "open", LOAD)
    assert (found["put"], found["sent"], found["early"]) == (200, 200, 0)
    for kind, arguments in CLOSED.items():
        assert "failed" not in foreign.sample(command, kind, {"messages": 400, **arguments})
    assert set(CONTENDERS[name].figures) == set(ALL)


def test_a_sample_in_a_process_of_its_own() -> None:
    """It answers what it answers here, and one that fails raises what its caller counts."""
    asked = {"contender": "localdelay", "messages": 100}
    assert in_process("scenarios", "put", asked)["put_us"] > 0
    with pytest.raises(subprocess.CalledProcessError):
        in_process("scenarios", "put", {})


def test_the_journal_is_measured(tmp_path: Path) -> None:
    """All of it runs, leaves nothing behind, counts what it did, and prints a row for each."""

    def taken(kind: str, arguments: Result) -> Result:
        return journal.SAMPLES[kind](**arguments | ({"delay": 0.05} if kind == "steady" else {}))

    told: list[str] = []
    tiny = journal.Settings(runs=2, alone=5, together=200, seconds=0.2, recovered=20_000)
    measured = journal.measure(tiny, tmp_path, taken, told.append)
    assert list(tmp_path.iterdir()) == []
    assert told[1:3] == ["run 1/2: disk", "run 1/2: bare"]
    assert told[-2:] == ["run 2/2: bare", "run 2/2: disk"]
    assert measured["fsync, 1"]["group"] == 1
    assert 1 < measured["os, 64"]["group"] <= 64
    state = measured["steady"]
    assert state["rows"] == pytest.approx(state["puts"] + state["removals"], rel=0.5)
    # Open, its log is there, too, which SQLite empties from 1,000 pages on: whatever the last commits were.
    assert 1 < measured["bytes"]["closed"] <= measured["bytes"]["open"]
    assert measured["bytes"]["closed"] < 1.3
    assert json.loads(json.dumps(measured)) == measured
    assert any(line.startswith("| 64 producers, fsync |") for line in journal.lines(measured))


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout)
    print(f"{told['beyond']} bytes beyond the payload")
    assert told["waiting"]["accepted"] == WARM_UP + PENDING
    assert told["waiting"]["pending"] == told["waiting"]["waiting"] == PENDING
    assert (told["lost"], told["twice"], told["early"], told["books"]) == (0, 0, 0, "")
    assert told["beyond"] is None or told["beyond"] <= MOST_BEYOND_PAYLOAD


@pytest.mark.parametrize("sender", ["send", "send_batch"])
def test_a_stopped_process_loses_nothing(sender: str) -> None:
    """Half a second of SIGSTOP while 5,000 fall due: all leave once, and none early."""
    burst = {"messages": 5_000, "sender": sender, "frozen": 0.5, "spread": 0.5}
    counts = {one.name: one.value for one in extremes.in_process("burst", burst) if one.at_most == 0}
    assert counts == dict.fromkeys(["lost", "twice", "early", "books that don't add up", "still pending"], 0)


def test_what_is_cancelled_at_once_leaves_no_memory_behind() -> None:
    """150,000 messages, each cancelled after its put: resident memory has grown by at most 20 %."""
    figures = extremes.in_process("cancel", {"messages": 150_000, "when": "at once"})
    assert {one.name: one.value for one in figures if one.at_most == 0} == {"not cancelled": 0}
    (grown,) = (one for one in figures if one.name == "resident memory, grown by")
    assert grown.at_most == 20
    assert grown.met is not False


if __name__ == "__main__":
    virtual = trio.testing.MockClock()
    print(json.dumps(trio.run(fill_and_send, virtual, clock=virtual)))
