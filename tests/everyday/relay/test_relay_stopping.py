"""A relay on the virtual clock that is stopped, or breaks: nothing that was read is lost."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from localdelay import Message, PartialSendError, PermanentSendError
from localdelay.relay import run as runs
from localdelay.relay.run import Relay
from localdelay.relay.settings import Outcome, Phase, Settings
from tests.kit.relay_stage import Script, Sink, Stage, conserve


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_a_signal_drains_within_the_grace(stage: Stage, autojump_clock: MockClock) -> None:
    """What comes due by then is sent on time, and the rest is written, with the time that is left."""
    sink = Sink()
    began = trio.current_time()
    script = Script(b"a\n", 3.0, b"b\n", 4.0, b"c\n\xff\n", rest=b"d\nhal", ends=False)
    outcome = await stage.relay(script, sink, signals=[8.0], delay=10.0, grace=6.0)
    assert [(when - began, payload) for (when, _), payload in zip(sink.got, sink.payloads, strict=True)] == [
        (pytest.approx(10.0), b"a"),
        (pytest.approx(13.0), b"b"),
    ]
    assert trio.current_time() - began == pytest.approx(13.0), "nothing more comes due within the grace"
    c, binary, d, half = stage.records()
    assert (c["payload"], binary["payload_base64"], d["payload"], half) == (
        "c",
        "/w==",
        "d",
        {"cut_off": "hal"},
    )
    due = [datetime.fromisoformat(record["at"]).timestamp() for record in (c, binary, d)]
    assert [when - due[0] for when in due] == pytest.approx([0.0, 0.0, 1.0], abs=0.01)
    assert len({record["id"] for record in (c, binary, d)}) == 3
    assert (outcome.lines, outcome.unsent, outcome.half) == (5, 3, 3)
    assert (outcome.stopped_by, outcome.input_ended) == (signal.SIGTERM, False)
    assert stat.S_IMODE(stage.unsent.stat().st_mode) == 0o600


async def test_what_was_written_is_read_back(stage: Stage, autojump_clock: MockClock) -> None:
    """Another relay sends it, under the same ids, headers and all, when it was due from the first."""
    lines = [
        {"payload": f"m{number}", "delay": 100 + number, "headers": {"n": str(number)}} for number in range(3)
    ]
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    await stage.relay(Script(text, ends=False), format="jsonl", signals=[30.0], grace=0.0)
    written = stage.unsent.read_bytes()
    sink = Sink()
    began = trio.current_time()
    outcome = await stage.relay(Script(written), sink, format="jsonl")
    # The wall clock stood still while the virtual one went on; what is left is what was left.
    assert [when - began for when, _ in sink.got] == pytest.approx([70.0, 71.0, 72.0], abs=1.0)
    assert sink.payloads == [b"m0", b"m1", b"m2"]
    assert [dict(message.headers) for _, message in sink.got] == [{"n": "0"}, {"n": "1"}, {"n": "2"}]
    assert [message.id for _, message in sink.got] == [record["id"] for record in stage.records()]
    assert outcome.wrong == outcome.unsent == 0


async def test_a_second_signal_ends_it_at_once(stage: Stage, autojump_clock: MockClock) -> None:
    """Within the grace, with a send that hangs: its message is written with the others."""
    began = trio.current_time()
    script = Script(b"a\nb\n", ends=False)
    outcome = await stage.relay(script, Sink(1e6, native_delay=True), signals=[5.0, 7.0], grace=60.0)
    assert trio.current_time() - began == pytest.approx(7.0)
    assert [record["payload"] for record in stage.records()] == ["a", "b"]
    assert outcome.stopped_by == signal.SIGTERM
    assert stage.watched.seen[-1].phase is Phase.STOPPING
    assert stage.watched.seen[-1].grace_left == pytest.approx(58.0, abs=0.6)


async def test_a_signal_while_the_queue_is_full(stage: Stage, autojump_clock: MockClock) -> None:
    """The lines that found no room are written, each once, and in their order."""
    script = Script(b"0\n1\n2\n3\n4\n", rest=b"5\n6\n", ends=False)
    outcome = await stage.relay(script, signals=[5.0], capacity=2, delay=60.0)
    assert [record["payload"] for record in stage.records()] == [str(number) for number in range(7)]
    assert (outcome.lines, outcome.unsent) == (7, 7)


async def test_what_was_read_and_comes_due_within_the_grace_is_sent(
    stage: Stage, autojump_clock: MockClock
) -> None:
    """Though there was no room for it when the signal came; what comes due later is written."""
    sink = Sink(2.0)
    lines = [b'{"payload": "%d"}\n' % number for number in range(6)]
    later = b'{"payload": "later", "delay": 99}\n'
    script = Script(b"".join(lines[:4]), rest=b"".join([later, *lines[4:]]), ends=False)
    began = trio.current_time()
    outcome = await stage.relay(
        script, sink, signals=[3.0], capacity=2, delay=0.0, grace=30.0, format="jsonl"
    )
    assert sink.payloads == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert trio.current_time() - began == pytest.approx(12.0), "2 s a send, and no more of the grace"
    assert [record["payload"] for record in stage.records()] == ["later"]
    assert (outcome.lines, outcome.unsent) == (7, 1)


@pytest.mark.parametrize(("signals", "grace"), [([3.0], 4.0), ([3.0, 7.0], 30.0)])
async def test_what_does_not_find_room_within_the_grace_is_written(
    stage: Stage, autojump_clock: MockClock, signals: list[float], grace: float
) -> None:
    """Each line once, be it the grace that ends or a second signal that comes."""
    sink = Sink(1.9)
    script = Script(b"0\n1\n2\n3\n4\n", rest=b"5\n6\n", ends=False)
    began = trio.current_time()
    outcome = await stage.relay(script, sink, signals=signals, capacity=2, delay=0.0, grace=grace)
    assert trio.current_time() - began == pytest.approx(7.0)
    assert sink.payloads == [b"0", b"1", b"2"]
    assert [record["payload"] for record in stage.records()] == ["3", "4", "5", "6"]
    assert outcome.unsent == 4


async def test_a_signal_after_the_end_of_the_input(stage: Stage, autojump_clock: MockClock) -> None:
    """The wait for the rest becomes a drain; where all of it comes due, nothing is left to tell."""
    began = trio.current_time()
    outcome = await stage.relay(Script(b"a\nb\n"), signals=[3.0], delay=10.0, grace=25.0)
    assert trio.current_time() - began == pytest.approx(10.0)
    assert (outcome.input_ended, outcome.stopped_by, outcome.unsent) == (True, signal.SIGTERM, 0)
    outcome = await stage.relay(Script(b"a\nb\n"), signals=[3.0], delay=10.0, grace=1.0)
    assert (outcome.input_ended, outcome.stopped_by, outcome.unsent) == (True, signal.SIGTERM, 2)


async def test_a_pipe_that_has_ended_when_the_signal_comes(stage: Stage, autojump_clock: MockClock) -> None:
    """Its last line is whole, though no line break ends it."""
    script = Script(b"a\n", 60.0, rest=b"b\nlast")
    outcome = await stage.relay(script, signals=[5.0], delay=30.0)
    assert [record["payload"] for record in stage.records()] == ["a", "b", "last"]
    assert (outcome.input_ended, outcome.half, outcome.lines) == (True, 0, 3)


async def test_what_a_file_keeps_is_not_cut_off(stage: Stage, autojump_clock: MockClock) -> None:
    """The beginning of a line of a file is still there: it is neither written nor told."""
    script = Script(b"a\nb", ends=False, keeps=True)
    outcome = await stage.relay(script, signals=[5.0], delay=60.0)
    assert [record["payload"] for record in stage.records()] == ["a"]
    assert (outcome.lines, outcome.half) == (1, 0)


async def test_hand_back(stage: Stage, autojump_clock: MockClock) -> None:
    """What comes due after the grace goes to the broker's own delay at once, with what is left."""
    sink = Sink(native_delay=True)
    script = Script(b"a\n", 8.0, b"b\nc\n", ends=False)
    outcome = await stage.relay(script, sink, signals=[9.0], delay=10.0, grace=5.0, hand_back=True)
    assert sink.payloads == [b"a"]
    assert [(delay, message.payload) for delay, message in sink.delayed] == [
        (pytest.approx(9.0), b"b"),
        (pytest.approx(9.0), b"c"),
    ]
    assert outcome.queue is not None
    assert (outcome.queue.handed_back, outcome.unsent) == (2, 0)
    assert not stage.unsent.exists()


def gone() -> PermanentSendError:
    error = PermanentSendError("nobody reads standard output any more: broken pipe")
    error.__cause__ = BrokenPipeError(32, "Broken pipe")
    return error


@pytest.mark.parametrize("batch", [None, 10])
async def test_a_reader_of_the_output_that_has_gone(
    stage: Stage, batch: int | None, autojump_clock: MockClock
) -> None:
    """It ends at once, and nothing is a dead letter: all that was not sent is written."""

    class Half(Sink):
        async def send_batch(self, messages: Sequence[Message]) -> None:
            self.got += [(0.0, message) for message in messages[:1]]
            raise PartialSendError({message.id: gone() for message in messages[1:]})

    sink = Half(fail=lambda _, call: gone() if call > 1 else None)
    began = trio.current_time()
    script = Script(b"a\nb\nc\n", 0.5, b"d\n", rest=b"e\n", ends=False)
    outcome = await stage.relay(script, sink, batch=batch)
    assert trio.current_time() - began == pytest.approx(1.0)
    assert outcome.failure == "nobody reads standard output any more: broken pipe"
    assert sink.payloads == [b"a"]
    assert sorted(record["payload"] for record in stage.records()) == ["b", "c", "d", "e"]
    assert all("error" not in record for record in stage.records())
    assert (outcome.dead, outcome.unsent, stage.letters.exists()) == (0, 4, False)


async def test_an_input_that_breaks_off(stage: Stage, autojump_clock: MockClock) -> None:
    """What was read until then is sent when it is due, and the reason is told."""
    sink = Sink()
    outcome = await stage.relay(Script(b"a\nb\nhal", OSError(5, "Input/output error"), ends=False), sink)
    assert sink.payloads == [b"a", b"b"]
    assert outcome.failure == "standard input can't be read: Input/output error"
    assert (outcome.input_ended, outcome.half) == (False, 3)


class Breaking(Sink):
    """A broker whose connection breaks for good, and takes the block around it along."""

    async def send(self, message: Message) -> None:
        self._scope.cancel()
        await trio.sleep_forever()

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._scope = trio.CancelScope()
        self._error = error

    async def __aenter__(self) -> Breaking:
        self._entered = self._scope.__enter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        self._scope.__exit__(*raised)
        raise self._error


@pytest.mark.parametrize("error", [ConnectionError("lost, user:hunter2 and all"), KeyError("a bug")])
async def test_a_broker_that_breaks_for_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception, autojump_clock: MockClock
) -> None:
    """What is left is written, the reason is told without a password, and there is no traceback."""
    monkeypatch.setattr(runs, "open_broker", lambda _: Breaking(error))
    settings = Settings(to="nats://user:hunter2@host/subject", unsent=stage.unsent, delay=1.0)
    one = Relay(settings, Script(b"a\nb\n", ends=False), stage.watched)
    await one.go()
    outcome = one.outcome
    conserve(outcome)
    assert outcome.failure is not None
    assert outcome.failure.startswith(type(error).__name__)
    assert "hunter2" not in outcome.failure
    assert [record["payload"] for record in stage.records()] == ["a", "b"]


async def test_a_broker_that_breaks_while_it_is_ended(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A failure beside the cancellation of a second signal: the outcome still says where all is."""

    class Breaks(Sink):
        async def __aenter__(self) -> Breaks:
            self._manager = trio.open_nursery()
            nursery = await self._manager.__aenter__()
            nursery.start_soon(self._break)
            return self

        async def __aexit__(self, *raised: Any) -> None:
            await self._manager.__aexit__(*raised)

        async def _break(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ConnectionError("lost")

    monkeypatch.setattr(runs, "open_broker", lambda _: Breaks())
    settings = Settings(to="nats://host/subject", unsent=stage.unsent, delay=60.0)
    one = Relay(settings, Script(b"a\n", ends=False), stage.watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.go)
        await trio.sleep(2.0)
        one.stop(signal.SIGINT)
        one.stop(signal.SIGINT)
    outcome = one.outcome
    conserve(outcome)
    assert (outcome.failure, outcome.stopped_by) == ("ConnectionError: lost", signal.SIGINT)
    assert [record["payload"] for record in stage.records()] == ["a"]


@pytest.mark.parametrize("is_down", [True, False])
async def test_nothing_is_read_before_the_broker_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, is_down: bool, autojump_clock: MockClock
) -> None:
    """Where it is down the error comes out as it is; a signal meanwhile ends it at once, with no drain."""

    class Opening(Sink):
        async def __aenter__(self) -> Opening:
            if is_down:
                raise ConnectionError("no connection")
            await trio.sleep_forever()
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(runs, "open_broker", lambda _: Opening())
    script = Script(b"a\n")
    one = Relay(Settings(to="nats://host/subject", delay=1.0), script, stage.watched)
    if is_down:
        with pytest.raises(ConnectionError, match="no connection"):
            await one.go()
    else:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.go)
            await trio.sleep(2.0)
            one.stop(signal.SIGINT)
    assert one.outcome == Outcome(stopped_by=None if is_down else signal.SIGINT)
    assert (script.reads, script.stops) == (0, 0)


async def test_a_file_that_is_full_is_followed_by_another(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Without room in the file of one's choice it is a temporary one; without that, they are lost."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nowhere = tmp_path / "gone" / "unsent.jsonl"
    script = Script(b"a\nb\n", ends=False)
    outcome = await stage.relay(script, signals=[5.0], delay=60.0, unsent=nowhere)
    assert outcome.saved.failures == [(nowhere, "No such file or directory")]
    ((path, count),) = outcome.saved.places
    assert (path.parent, count, outcome.saved.lost) == (tmp_path, 2, 0)
    assert [record["payload"] for record in stage.records(path)] == ["a", "b"]
    monkeypatch.setattr("tempfile.tempdir", str(nowhere))
    script = Script(b"a\nb\n", ends=False)
    outcome = await stage.relay(script, signals=[5.0], delay=60.0, unsent=nowhere)
    assert (outcome.saved.places, outcome.saved.lost, outcome.unsent) == ([], 2, 2)


async def test_the_file_by_default(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """In the current directory, with the number of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.getpid", lambda: 4711)
    outcome = await stage.relay(Script(b"a\n", ends=False), signals=[5.0], delay=60.0, unsent=None)
    assert outcome.saved.places == [(Path("localdelay-unsent-4711.jsonl"), 1)]
    assert len(stage.records(tmp_path / "localdelay-unsent-4711.jsonl")) == 1
