"""`python -m bench.journal`, with few messages: what it counts and prints, and no times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import journal
from bench.journal import Settings, in_process, lines, measure, sampled, targets

TINY = Settings(runs=2, alone=5, together=200, seconds=0.2, recovered=500)


def taken(kind: str, **arguments: Any) -> dict[str, Any]:
    """A sample in this process, with a delay that a test can wait for."""
    if kind == "steady":
        arguments["delay"] = 0.05
    return sampled(kind, **arguments)


def test_a_run(tmp_path: Path) -> None:
    """All of it runs, leaves nothing behind, and prints 80 columns with each figure and target."""
    told: list[str] = []
    measured = measure(TINY, tmp_path, taken, told.append)
    assert list(tmp_path.iterdir()) == []
    assert told[1:3] == ["run 1/2: disk", "run 1/2: bare"]
    assert told[-2:] == ["run 2/2: bare", "run 2/2: disk"]
    printed = list(lines(measured))
    assert max(map(len, printed)) <= 80
    assert any(line.startswith("64 producers, fsync") for line in printed)
    assert printed[-1].startswith("  bytes on disk over payload bytes: at most 1.5: ")
    assert json.loads(json.dumps(measured)) == measured
    assert measured["fsync, 1"]["group"] == 1
    assert 1 < measured["os, 64"]["group"] <= 64
    state = measured["steady"]
    assert state["rows"] == pytest.approx(state["puts"] + state["removals"], rel=0.5)
    assert min(state["puts"], state["removals"], measured["bare"]["rows"], measured["disk"]["syncs"]) > 0


def test_bytes_on_disk(tmp_path: Path) -> None:
    """Pending messages of 500 bytes cost less than 1.5 times that, and all of them are recovered."""
    filled = sampled("fill", directory=str(tmp_path), messages=20_000)
    assert 1 < filled["closed"] <= filled["open"] < 1.5
    assert sampled("recover", directory=str(tmp_path), messages=20_000)["rate"] > 0


def test_a_target_that_is_missed() -> None:
    """Each figure is held against its own bound."""
    figures = {
        "fsync, 64": {"rate": 29_999.0},
        "recover": {"rate": 200_000.0},
        "bytes": {"open": 1.6, "closed": 1.2},
    }
    assert [target.met for target in targets(figures)] == [False, True, False]


def test_a_sample_in_a_process_of_its_own(tmp_path: Path) -> None:
    """It is told what to take, and prints only that."""
    assert in_process("disk", directory=str(tmp_path), seconds=0.01)["syncs"] > 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json it prints one object; --runs is taken over."""
    monkeypatch.setattr(journal, "SHORT", TINY)
    monkeypatch.setattr(journal, "in_process", taken)
    options = ["--short", "--runs", "1", "--directory", str(tmp_path)]
    done = CliRunner().invoke(journal.main, [*options, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["runs"] == 1
    done = CliRunner().invoke(journal.main, options)
    assert "medians of 1 run" in done.stdout
