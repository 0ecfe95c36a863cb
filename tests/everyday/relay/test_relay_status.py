"""What `localdelay relay` says of itself: pure functions, and a standard error that nobody reads."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from localdelay import LatencySummary, Message, Statistics
from localdelay.cli.relay import Display, exit_code, has_the_terminal, problems, status_parts, summary
from localdelay.cli.terminal import Teller, fitted
from localdelay.relay.saving import Saved
from localdelay.relay.settings import Outcome, Phase, Settings

SETTINGS = Settings(to="nats://user:hunter2@host/orders", delay=1.0)


def statistics(**changes: Any) -> Statistics:
    zeros = {field.name: 0 for field in attrs.fields(Statistics)}
    none = LatencySummary()
    late = {"lateness": none, "send_time": none, "total": none}
    return Statistics(**{**zeros, **late, "capacity_bytes": None, "next_due_in": None, **changes})  # type: ignore[arg-type]


def progress(
    phase: Phase = Phase.READING, *, seconds: float = 1.0, wrong: int = 0, **queue: Any
) -> tuple[Outcome, Statistics]:
    left = 12.4 if phase is Phase.STOPPING else None
    return Outcome(seconds=seconds, phase=phase, grace_left=left, wrong=wrong), statistics(**queue)


LATE = LatencySummary(count=10, p50=0.001, p99=0.0123, max=0.5)
BUSY: dict[str, Any] = {"pending": 12_345, "next_due_in": 1.24, "sent": 98_765, "lateness": LATE}


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (progress(), "0 pending  0 sent  0/s  0 failed"),
        (progress(**BUSY), "12,345 pending  next 1.2 s  98,765 sent  0/s  0 failed  p99 late 12.3 ms"),
        (
            progress(Phase.LAST, pending=1, next_due_in=7199.0),
            "input ended  1 pending  next 2 h  0 sent  0/s  0 failed",
        ),
        (
            progress(Phase.STOPPING, pending=1, puts_waiting=1, handed_back=7),
            "stopping, 12 s left  1 pending  0 sent  0/s  0 failed  7 handed back",
        ),
        (progress(puts_waiting=1, pending=5), "full, input waits  5 pending  0 sent  0/s  0 failed"),
        (
            progress(wrong=3, dead=2, failures=4, sent=12_345_678),
            "0 pending  12,345,678 sent  0/s  4 failed  2 given up  3 wrong",
        ),
    ],
)
def test_the_status_line(shown: tuple[Outcome, Statistics], line: str) -> None:
    """What is pending, when the next is due, what was sent and failed, how fast, and how late."""
    assert fitted(status_parts(*shown, 0.0), 79) == line


def test_the_status_line_fits() -> None:
    """At any width there are whole parts, the first ones first."""
    parts = status_parts(*progress(Phase.STOPPING, wrong=1, dead=1, **BUSY), 1234.5)
    whole = fitted(parts, 1000)
    assert "  1,234/s  " in whole
    for width in range(len(whole) + 1):
        line = fitted(parts, width)
        assert len(line) <= width
        assert whole.startswith(line)
        if width >= 20:
            assert whole[len(line) : len(line) + 2] in ("", "  ")


def outcome(**changes: Any) -> Outcome:
    given = {"seconds": 75.0, "lines": 10, "input_ended": True, "queue": statistics(sent=10, lateness=LATE)}
    return Outcome(**{**given, **changes})  # type: ignore[arg-type]


def test_the_summary() -> None:
    """A sentence of what became of the lines, and one of how late they were, no password."""
    assert list(summary(outcome(), SETTINGS)) == [
        "10 lines to nats://***@host/orders in 75 s: 10 sent.",
        "Late by 1 ms (p50), 12.3 ms (p99), 500 ms (max).",
    ]
    queue = statistics(sent=1_234, handed_back=3, failures=7, throttled=5)
    many = outcome(lines=1, wrong=1, dead=2, queue=queue)
    assert list(summary(many, SETTINGS)) == [
        "1 line to nats://***@host/orders in 75 s: 1,234 sent, 3 handed back, 1 wrong, 2 given up.",
        "Sends that failed: 7 (5 throttled).",
    ]
    assert list(summary(Outcome(stopped_by=2), SETTINGS)) == []


UNSENT = Path("my unsent.jsonl")
GO_ON = "  localdelay relay --format jsonl --to 'nats://***@host/orders' < "
HOLD = "--hold 'redis://***@host/q'"
WAITING = "Not sent, and waiting in redis://***@host/q"
THEN = f"A relay with {HOLD} sends what waits there."


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, []),
        ({"stopped_by": 15}, 0, []),
        ({"wrong": 1}, 1, []),
        ({"dead": 2, "letters": Path("my letters")}, 1, ["Given up, and kept in 'my letters': 2 lines."]),
        ({"failure": "it broke"}, 1, ["Error: it broke"]),
        ({"wrong": 1, "stopped_by": 15}, 1, []),
        (
            {"stopped_by": 2, "input_ended": False, "lines": 1234},
            130,
            ["Stopped by SIGINT: the input was read up to line 1,234."],
        ),
        (
            {"stopped_by": 1, "unsent": 2, "saved": Saved([(UNSENT, 2)])},
            129,
            [
                "Stopped by SIGHUP.",
                "Not sent, and kept in 'my unsent.jsonl': 2 lines. To go on:",
                GO_ON + "'my unsent.jsonl'",
            ],
        ),
        (
            {"stopped_by": 15, "input_ended": False, "half": 7, "saved": Saved([(Path("u"), 1)])},
            143,
            [
                "Stopped by SIGTERM: the input was read up to line 10.",
                "The line after it was cut off: its first 7 bytes are kept, and no message.",
                "Not sent, and kept in u: 1 line. To go on:",
                GO_ON + "u",
            ],
        ),
        (
            {
                "stopped_by": 15,
                "unsent": 5,
                "saved": Saved([(Path("/tmp/u"), 2)], [(Path("u"), "full"), (None, "full, too")], 3),
            },
            3,
            [
                "Stopped by SIGTERM.",
                "Error: 'u' can't be written: full",
                "Error: the directory for temporary files can't be written: full, too",
                "Not sent, and kept in /tmp/u: 2 lines. To go on:",
                GO_ON + "/tmp/u",
                "Error: 3 lines LOST: not sent, and in no file.",
            ],
        ),
    ],
)
def test_what_somebody_must_know_and_the_exit_code(
    changes: dict[str, Any], code: int, said: list[str]
) -> None:
    """Why it ended, and where to find what was not sent; 0 only where all of the input was sent."""
    assert list(problems(outcome(**changes), SETTINGS)) == said
    assert exit_code(outcome(**changes)) == code


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, []),
        ({"stopped_by": 15}, 0, []),
        ({"stopped_by": 15, "held": 3}, 143, ["Stopped by SIGTERM.", f"{WAITING}: 3 lines. {THEN}"]),
        ({"stopped_by": 15, "held": None}, 143, ["Stopped by SIGTERM.", f"{WAITING}. {THEN}"]),
        ({"failure": "it broke", "held": 1}, 1, ["Error: it broke", f"{WAITING}: 1 line. {THEN}"]),
        (
            {"stopped_by": 15, "unsent": 2, "held": 0, "saved": Saved([(UNSENT, 2)])},
            143,
            [
                "Stopped by SIGTERM.",
                "Not sent, and kept in 'my unsent.jsonl': 2 lines. To go on:",
                f"{GO_ON.rstrip('< ')} {HOLD} < 'my unsent.jsonl'",
            ],
        ),
    ],
)
def test_what_waits_in_redis(changes: dict[str, Any], code: int, said: list[str]) -> None:
    """It is said, and how to send it, and to go on is to hold there again; no password."""
    holding = attrs.evolve(SETTINGS, hold="redis://:hunter3@host/q")
    assert list(problems(outcome(**changes), holding)) == said
    assert exit_code(outcome(**changes)) == code


def test_before_anything_was_read() -> None:
    """There is nothing to sum up."""
    found = Outcome(stopped_by=2)
    assert list(problems(found, SETTINGS)) == ["Stopped by SIGINT before anything was read."]
    assert exit_code(found) == 130


def test_where_strict_has_stopped_it() -> None:
    """It says so; without, a wrong line has stopped nothing."""
    strict = attrs.evolve(SETTINGS, strict=True)
    found = outcome(wrong=1, input_ended=False)
    assert list(problems(found, strict)) == ["Stopped by a wrong line: the input was read up to line 10."]
    assert list(problems(outcome(wrong=1), SETTINGS)) == []


def test_a_live_line_gives_way_to_others(capsys: pytest.CaptureFixture[str]) -> None:
    """It is drawn over itself; a line that stays takes its place; at the end it is wiped."""
    with Teller(live=True) as teller:
        teller.status(["one"])
        teller.status(["two"])
        teller.line("stays")
        teller.line("stays, too")
        teller.status(["three"])
    with teller:
        pass
    assert capsys.readouterr().err == (
        "\rone\x1b[K\rtwo\x1b[K\r\x1b[Kstays\nstays, too\n\rthree\x1b[K\r\x1b[K"
    )


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Every ten seconds, and one when it begins to stop."""
    display = Display(Teller(every=10.0, first=10.0), SETTINGS)
    for half_seconds in range(50):
        display.progress(*progress(seconds=half_seconds / 2, sent=half_seconds))
    for half_seconds in range(50, 60):
        display.progress(*progress(Phase.STOPPING, seconds=half_seconds / 2, sent=50))
    assert capsys.readouterr().err.splitlines() == [
        "0 pending  20 sent  2/s  0 failed",
        "0 pending  40 sent  2/s  0 failed",
        "stopping, 12 s left  0 pending  50 sent  2/s  0 failed",
    ]


def test_quiet_shows_no_progress_but_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong lines and dead letters are told all the same."""
    display = Display(Teller(status=False), SETTINGS)
    display.progress(*progress(Phase.STOPPING, seconds=100.0))
    display.wrong_line(7, "is empty, and no JSON object")
    display.dead_letter(Message("a", b"secret", 0.0), ConnectionError("to user:hunter2@host\n\x1b[2Jlost"))
    holding = attrs.evolve(SETTINGS, hold="redis://:hunter3@host/q")
    Display(Teller(), holding).notice("no hunter2, and no hunter3")
    assert capsys.readouterr().err.splitlines() == [
        "line 7: is empty, and no JSON object",
        "given up: message a of 6 bytes: ConnectionError: to ***@host \ufffd[2Jlost",
        "no ***, and no ***",
    ]


def test_many_dead_letters(capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty are told, and then that there are more."""
    display = Display(Teller(), SETTINGS)
    for _ in range(1000):
        display.dead_letter(Message("a", b"x", 0.0), ConnectionError("lost"))
    *told, last = capsys.readouterr().err.splitlines()
    assert len(told) == 20
    assert last == "more messages are given up; they are kept with the others, and not told"


def test_a_pipe_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for it: what has no room is dropped and counted, and said when there is room again."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream, open(reader, "rb") as other:  # noqa: PTH123 (these are descriptors)
        monkeypatch.setattr(sys, "stderr", stream)
        teller = Teller()
        for _ in range(2000):
            teller.line("x" * 99)
        os.set_blocking(reader, False)
        first = other.read()
        assert 500 * 100 < len(first) <= 65_536
        assert set(first.splitlines()) == {b"x" * 99}
        teller.line("y" * 10_000)
        missing, last = other.read().splitlines()
        assert (
            missing.decode() == f"({2000 - len(first) // 100:,} lines are missing here: nobody has read them)"
        )
        assert last == b"y" * 1000


def test_a_standard_error_that_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No reason to stop."""
    monkeypatch.setattr(sys, "stderr", None)
    Teller().last("nobody hears it")
    with (tmp_path / "file").open("w") as stream:
        stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        Teller(live=True).status(["nor this"])
    assert (tmp_path / "file").read_bytes() == b""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminals", "to", "live"),
    [
        ({"stderr"}, "stdout:", True),
        ({"stderr", "stdout"}, "nats://host/s", True),
        ({"stderr", "stdout"}, "stdout:", False),
        ({"stderr", "stdin"}, "nats://host/s", False),
        ({"stdin", "stdout"}, "nats://host/s", False),
        (set(), "nats://host/s", False),
    ],
)
def test_when_a_line_can_change(
    terminals: set[str], to: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where standard error is a terminal, and neither what is typed nor the messages are on it."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, _Terminal() if name in terminals else io.StringIO())
    settings = Settings(to=to, delay=1.0)
    assert has_the_terminal(settings) is live
    monkeypatch.setenv("TERM", "dumb")
    assert has_the_terminal(settings) is False
    monkeypatch.setattr(sys, "stderr", None)
    assert has_the_terminal(settings) is False
