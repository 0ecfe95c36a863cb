"""A relay on the virtual clock: what is sent and when, what is told, and what is given up."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from localdelay import Message, PermanentSendError, Throttled
from localdelay.relay.run import check
from localdelay.relay.settings import Phase, Settings
from tests.kit.relay_stage import Script, Sink, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_each_line_is_sent_when_it_is_due(stage: Stage, autojump_clock: MockClock) -> None:
    """A delay counts from when its line is read; the end comes when all is sent, and no file is made."""
    began = trio.current_time()
    sink = Sink()
    outcome = await stage.relay(Script(b"a\nb\r\n\n", 2.0, b"la", 0.5, b"st"), sink, delay=5.0)
    assert sink.payloads == [b"a", b"b", b"", b"last"]
    assert [when - began for when, _ in sink.got] == pytest.approx([5.0, 5.0, 5.0, 7.5])
    assert (outcome.lines, outcome.wrong, outcome.unsent, outcome.dead) == (4, 0, 0, 0)
    assert (outcome.input_ended, outcome.stopped_by, outcome.failure) == (True, None, None)
    assert outcome.seconds == pytest.approx(7.5, abs=0.05)
    assert not stage.unsent.exists()
    assert not stage.letters.exists()


async def test_json_lines_have_times_of_their_own(stage: Stage, autojump_clock: MockClock) -> None:
    """Mixed delays, ids and headers reach the broker; a time that has passed means now."""
    began = trio.current_time()
    sink = Sink()
    lines = [
        {"payload": "slow", "delay": 9},
        {"payload_base64": "/w==", "delay": "500ms", "id": "chosen", "headers": {"k": "v"}},
        {"payload": "past", "at": "2020-01-01T00:00:00Z"},
        {"payload": "default"},
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    outcome = await stage.relay(Script(text), sink, format="jsonl")
    assert sink.payloads == [b"past", b"\xff", b"default", b"slow"]
    assert [when - began for when, _ in sink.got] == pytest.approx([0.0, 0.5, 1.0, 9.0])
    assert sink.got[1][1].id == "chosen"
    assert dict(sink.got[1][1].headers) == {"k": "v"}
    assert outcome.queue is not None
    assert outcome.queue.sent == 4


async def test_a_line_that_expires_is_not_sent_later(stage: Stage, autojump_clock: MockClock) -> None:
    """It is a dead letter that says so; and what a line says of its time reaches the queue, too."""
    lines = [
        {"payload": "slow"},
        {"payload": "expired", "expires": 2},
        {"payload": "in time", "expires": "1m"},
        {"payload": "past", "at": "2020-01-01T00:00:00Z", "expires": 0},
    ]
    sink = Sink(3.0)
    outcome = await stage.relay(Script("\n".join(map(json.dumps, lines)).encode()), sink, format="jsonl")
    assert sink.payloads == [b"past", b"slow", b"in time"]
    assert [message.expires for _, message in sink.got] == [0.0, None, 60.0]
    assert sink.got[0][1].at == datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    assert [payload for payload, _ in stage.watched.dead] == [b"expired"]
    assert outcome.queue is not None
    assert outcome.queue.expired == outcome.dead == 1


async def test_an_empty_input(stage: Stage, autojump_clock: MockClock) -> None:
    """No lines, and nothing to wait for."""
    outcome = await stage.relay(Script())
    assert (outcome.lines, outcome.input_ended, outcome.seconds) == (0, True, 0.0)


async def test_it_reads_no_faster_than_there_is_room(stage: Stage, autojump_clock: MockClock) -> None:
    """With two held at most, a third line waits; each has the delay from its own reading on."""
    sink = Sink()
    began = trio.current_time()
    script = Script(*(b"%d\n" % number for number in range(6)))
    outcome = await stage.relay(script, sink, capacity=2)
    assert sink.payloads == [b"%d" % number for number in range(6)]
    assert [when - began for when, _ in sink.got] == pytest.approx([1, 1, 1, 2, 2, 2])
    assert [progress.queue.puts_waiting for progress in stage.watched.seen[1:4]] == [1, 1, 1]
    assert max(progress.queue.pending for progress in stage.watched.seen) == 2
    assert outcome.lines == 6


async def test_bytes_are_held_within_a_limit_too(stage: Stage, autojump_clock: MockClock) -> None:
    """A line that could never fit is wrong; the others wait for room."""
    sink = Sink()
    outcome = await stage.relay(Script(b"123456\n1234\n12345678901\n1\n"), sink, capacity_bytes=10)
    assert sink.payloads == [b"123456", b"1234", b"1"]
    assert stage.watched.wrong == [(3, "payload and headers of 11 bytes are over the capacity_bytes of 10")]
    assert (outcome.lines, outcome.wrong) == (4, 1)


async def test_wrong_lines_are_told_and_skipped(stage: Stage, autojump_clock: MockClock) -> None:
    """With their numbers, and what is right around them is sent."""
    good = b'{"payload": "x", "id": "a"}\n'
    sink = Sink()
    script = Script(good + b"secret\n\n" + b"y" * 200 + b"\n" + good, 3.0, good + b'{"payload"')
    outcome = await stage.relay(script, sink, format="jsonl", max_line=100)
    assert stage.watched.wrong == [
        (2, "is no JSON: Expecting value at character 1"),
        (3, "is no JSON: Expecting value at character 1"),
        (4, "is longer than 100 bytes"),
        (5, "id 'a' is the id of a message that is pending already"),
        (7, "is no JSON: Expecting ':' delimiter at character 11"),
    ]
    assert sink.payloads == [b"x", b"x"], "an id is free again when its message was sent"
    assert (outcome.lines, outcome.wrong, outcome.input_ended) == (7, 5, True)


async def test_strict_reads_nothing_after_a_wrong_line(stage: Stage, autojump_clock: MockClock) -> None:
    """What came before it is sent in time; what was read behind it is kept, and the input is closed."""
    sink = Sink()
    script = Script(b"a\nlonger\nb\nlonger\nc\n", 1.0, b"d\n", rest=b"e\nf")
    outcome = await stage.relay(script, sink, strict=True, max_line=5, delay=60.0)
    assert sink.payloads == [b"a"]
    assert stage.watched.wrong == [(2, "is longer than 5 bytes"), (4, "is longer than 5 bytes")]
    assert [record["payload"] for record in stage.records()[:-1]] == ["b", "c", "e"]
    assert stage.records()[-1] == {"cut_off": "f"}
    assert (script.reads, script.stops) == (1, 1)
    assert (outcome.lines, outcome.wrong, outcome.unsent, outcome.half) == (6, 2, 3, 1)
    assert outcome.input_ended is False
    assert outcome.seconds == pytest.approx(60.0, abs=0.05)


async def test_batches(stage: Stage, autojump_clock: MockClock) -> None:
    """At most so many messages a send; what failed of one is sent again."""
    sink = Sink(fail=lambda _, call: ConnectionError("no") if call == 2 else None)
    outcome = await stage.relay(Script(b"a\nb\nc\nd\ne\n"), sink, batch=3)
    assert sink.batches[:2] == [3, 2]
    assert sorted(sink.payloads) == [b"a", b"b", b"c", b"d", b"e"]
    assert outcome.queue is not None
    assert (outcome.queue.sent, outcome.queue.failures) == (5, 1)


async def test_sends_are_tried_again_for_ever(stage: Stage, autojump_clock: MockClock) -> None:
    """By default: the end waits for them, throttled or failed."""

    def fail(_: Message, call: int) -> Exception | None:
        return None if call > 40 else Throttled("429") if call % 2 else ConnectionError("lost")

    outcome = await stage.relay(Script(b"a\n"), Sink(fail=fail))
    assert outcome.queue is not None
    assert (outcome.queue.sent, outcome.queue.failures, outcome.queue.throttled) == (1, 40, 20)
    assert (outcome.dead, outcome.unsent) == (0, 0)


async def test_a_send_that_hangs_is_tried_again(stage: Stage, autojump_clock: MockClock) -> None:
    """After the timeout, which can be set."""
    sink = Sink(5.0)
    outcome = await stage.relay(Script(b"a\n"), sink, send_timeout=3.0, signals=[60.0], grace=0.0)
    assert outcome.queue is not None
    assert outcome.queue.failures >= 4
    assert len(stage.records()) == 1


async def test_dead_letters_go_to_their_file(stage: Stage, autojump_clock: MockClock) -> None:
    """What is given up is there with its error, and can be read back; the other messages are sent."""

    def fail(message: Message, _: int) -> Exception | None:
        return {b"a": PermanentSendError("too large\nfor it"), b"b": ConnectionError("lost")}.get(
            message.payload
        )

    sink = Sink(fail=fail)
    outcome = await stage.relay(Script(b"a\nb\nc\n"), sink, attempts=3)
    assert sink.payloads == [b"c"]
    assert [(record["payload"], record["error"]) for record in stage.records(stage.letters)] == [
        ("a", "PermanentSendError: too large for it"),
        ("b", "ConnectionError: lost"),
    ]
    assert (outcome.dead, outcome.letters, outcome.unsent) == (2, stage.letters, 0)
    assert stage.watched.dead == [(b"a", "too large\nfor it"), (b"b", "lost")]
    assert stat.S_IMODE(stage.letters.stat().st_mode) == 0o600
    again = Sink()
    await stage.relay(Script(stage.letters.read_bytes()), again, format="jsonl", delay=None)
    assert again.payloads == [b"a", b"b"]
    assert [message.id for _, message in again.got] == [
        record["id"] for record in stage.records(stage.letters)
    ]


@pytest.mark.parametrize("taken", [False, True])
async def test_the_file_of_dead_letters_by_default(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool, autojump_clock: MockClock
) -> None:
    """It is in the current directory; where it can't be there, it is a temporary one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.getpid", lambda: 4711)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if taken:
        stage.occupy("localdelay-dead-letters-4711.jsonl")
    sink = Sink(fail=lambda *_: PermanentSendError("no such topic"))
    outcome = await stage.relay(Script(b"a\nb\n"), sink, dead_letters=None)
    assert (outcome.dead, outcome.failure) == (2, None)
    assert outcome.letters is not None
    assert outcome.letters.name.startswith(
        "localdelay-dead-letters-4711-" if taken else "localdelay-dead-letters-4711."
    )
    assert [record["payload"] for record in stage.records(outcome.letters)] == ["a", "b"]


async def test_dead_letters_that_can_not_be_written(
    stage: Stage, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It ends, and all that is left is written with the others, each given up one with its error."""
    letters = tmp_path / "gone" / "letters.jsonl"
    sink = Sink(fail=lambda message, _: PermanentSendError("no") if message.payload == b"a" else None)
    script = Script(b"a\n", 0.5, b"b\n", ends=False)
    outcome = await stage.relay(script, sink, dead_letters=letters)
    assert outcome.failure == "dead letters can't be written: No such file or directory"
    b, a = stage.records()
    assert (a["payload"], a["error"], b["payload"]) == ("a", "PermanentSendError: no", "b")
    assert (outcome.dead, outcome.unsent) == (0, 2)


async def test_a_memory_that_is_full(stage: Stage, autojump_clock: MockClock) -> None:
    """Python has no words for it: it is said, with what would have held less, and nothing is lost."""
    outcome = await stage.relay(Script(b"a\n", 0.5, MemoryError()))
    assert outcome.failure == "the memory is full: a smaller capacity or capacity_bytes holds less"
    assert [record["payload"] for record in stage.records()] == ["a"]


async def test_progress(stage: Stage, autojump_clock: MockClock) -> None:
    """Twice a second, with the phase and the counts of the moment."""
    script = Script(b"a\nb\n", 2.3, b"c\n")
    await stage.relay(script, delay=1.8, signals=[3.1], grace=9.0)
    seen = stage.watched.seen
    assert [progress.seconds for progress in seen] == pytest.approx(
        [number / 2 for number in range(len(seen))]
    )
    assert [progress.phase for progress in seen] == [Phase.READING] * 5 + [Phase.LAST] * 2 + [
        Phase.STOPPING
    ] * 2
    assert [progress.queue.pending for progress in seen[1:]] == [2, 2, 2, 0, 1, 1, 1, 1]
    assert [progress.lines for progress in seen[1:]] == [2, 2, 2, 2, 3, 3, 3, 3]
    assert [progress.grace_left for progress in seen[-3:]] == [None, pytest.approx(8.6), pytest.approx(8.1)]


def test_what_is_refused(tmp_path: Path) -> None:
    """A URL that is none, and a file that is read and written at once."""
    with pytest.raises(ValueError, match=r"^to must begin with one of"):
        check(Settings(to="nowhere", delay=1.0))
    path = tmp_path / "file"
    path.write_bytes(b"")
    with path.open("rb") as file:
        for name in ("unsent", "dead_letters"):
            with pytest.raises(ValueError, match=f"^{name} must not be the file that is read"):
                check(Settings(to="stdout:", delay=1.0, **{name: path}), file.fileno())  # type: ignore[arg-type]
        check(Settings(to="stdout:", delay=1.0, unsent=tmp_path / "other"), file.fileno())
    with Path("/dev/null").open("rb") as nothing:
        check(Settings(to="stdout:", delay=1.0, unsent=Path("/dev/null")), nothing.fileno())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "csv"}, "format must be one of text, jsonl, not 'csv'"),
        ({"delay": float("inf")}, "delay must be finite and at least 0"),
        ({"send_timeout": float("nan")}, "send_timeout must be finite"),
        ({"grace": -1.0}, "grace must be finite and at least 0"),
    ],
)
def test_settings_that_no_option_can_give_are_refused_too(options: dict[str, Any], said: str) -> None:
    """Each is named; the others are in `test_relay_options`."""
    with pytest.raises(ValueError, match=f"^{said}"):
        Settings(**{"to": "stdout:", "delay": 1.0, **options})
