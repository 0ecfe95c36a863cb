"""The parts of `localdelay demo` that need no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio

from localdelay.cli.demo import closing, exit_code
from localdelay.demo import scene as scenes
from localdelay.demo import server as servers
from localdelay.demo.report import FallbackResult, Report, Run, percentile, reckon
from localdelay.nurseries import bare_nursery
from localdelay.signals import Stopped

KEYS = [field.name for field in attrs.fields(FallbackResult)]


def result_of(**figures: int) -> FallbackResult:
    zero: Mapping[str, Any] = {**dict.fromkeys(KEYS, 0), "timeline": []}
    return FallbackResult(**{**zero, **figures})


def test_exit_codes() -> None:
    """1 where something was lost with localdelay, 3 where nothing was refused, else 0."""
    calm = result_of(published=9, accepted=9, received=9)
    refusing = result_of(published=9, accepted=5, refused=4, received=5, lost=4)
    saved = result_of(published=9, accepted=5, refused=4, degraded=4, received=9)
    assert exit_code(Report(calm, calm)) == 3
    assert exit_code(Report(refusing, saved)) == 0
    assert exit_code(Report(refusing, calm)) == 0
    assert exit_code(Report(refusing, refusing)) == 1
    assert exit_code(Report(calm, attrs.evolve(calm, lost=1))) == 1


def test_closing_words() -> None:
    """The last lines say what has happened, in each case."""
    refusing = result_of(published=9, accepted=5, refused=4, received=5, lost=4)
    saved = result_of(published=9, accepted=5, refused=4, degraded=4, received=9)
    calm = result_of(published=9, accepted=9, received=9)
    told = " ".join(closing(Report(refusing, saved)))
    assert "Plainly, 4 of 9 messages never arrived." in told
    assert "all 9 arrived. The broker took 5 natively, 0 of them handed back" in told
    assert "4 messages waited here until due." in told
    assert "1 message came again" in " ".join(closing(Report(refusing, attrs.evolve(saved, duplicates=1))))
    assert "must not happen" in " ".join(closing(Report(refusing, refusing)))
    assert "The broker never throttled" in " ".join(closing(Report(calm, calm)))


async def test_reckoning(autojump_clock: trio.testing.MockClock) -> None:
    """Received, lost, duplicates and lateness follow from ids and times alone."""
    run = Run("plain", due={"a": 10.0, "b": 10.0, "c": 11.0, "d": 12.0}, refused=2)
    run.primary, run.local = [0.0], [0.0, 0.1, 0.2]
    start = trio.current_time()
    for at, message_id in (
        (1.0, "stranger"),
        (10.5, "a"),
        (11.0, "c"),
        (12.0, "b"),
        (99.0, "a"),
        (99.0, "a"),
    ):
        await trio.sleep_until(at)
        run.read(message_id)
    assert (start, run.readings) == (0.0, 6)
    result = reckon(run)
    assert attrs.asdict(result) == {
        "published": 4,
        "accepted": 1,
        "refused": 2,
        "degraded": 3,
        "received": 3,
        "lost": 1,
        "duplicates": 2,
        "lateness_p50": 0.5,
        "lateness_p99": 2.0,
        "lateness_max": 2.0,
    }


def test_reckoning_of_nothing() -> None:
    """Where nothing arrived there is no lateness."""
    result = reckon(Run("plain", due={"a": 1.0}, refused=1))
    assert (result.received, result.lost) == (0, 1)
    assert (result.lateness_p50, result.lateness_p99, result.lateness_max) == (None, None, None)


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1, 100)]
)
def test_percentile(share: float, value: float) -> None:
    """The smallest value that so large a share does not exceed."""
    assert percentile(range(1, 101), share) == value


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["rate", "delay"])
def test_scene_refuses_bad_numbers(field: str, bad: float) -> None:
    """A rate or delay that is not positive and finite is a ValueError that names it."""
    figures = {"rate": 1.0, "delay": 1.0, field: bad}
    with pytest.raises(ValueError, match=f"^{field} must be"):
        scenes.Scene(messages=[b""], **figures)


async def test_stuck(autojump_clock: trio.testing.MockClock) -> None:
    """A run that does not move for so long ends with an error; one that moves goes on."""
    seen, run = set[int](), Run("plain")
    start = trio.current_time()

    async def move() -> None:
        for _ in range(50):
            await trio.sleep(1)
            run.refused += 1

    with pytest.raises(servers.ServerError, match="nothing in 20 s"):
        async with bare_nursery() as nursery:
            nursery.start_soon(move)
            await scenes._report_progress(run, lambda run: seen.add(run.refused), 20.0)
    assert trio.current_time() - start == pytest.approx(70.1, abs=0.11)
    assert len(seen) == 51


class FakeReader:
    """A broker that delivers one message a second down to what it keeps."""

    def __init__(self, kept: int) -> None:
        self.left = 10
        self.kept = kept
        self.start = trio.current_time()

    async def backlog(self) -> tuple[int, int]:
        return max(self.kept, 10 - int(trio.current_time() - self.start)), 0


@pytest.mark.parametrize(("kept", "seconds"), [(0, 10.0), (3, 12.0)])
async def test_reading_all(autojump_clock: trio.testing.MockClock, kept: int, seconds: float) -> None:
    """The consumer waits until nothing is left, or until nothing has come for five seconds."""
    reader: Any = FakeReader(kept)
    await scenes._read_all(reader)
    assert trio.current_time() - reader.start == pytest.approx(seconds, abs=0.21)


def test_the_telling_exception_of_a_group() -> None:
    """Of several exceptions the one that tells of the server is shown."""
    told = servers.ServerError("told")
    group = BaseExceptionGroup("", [OSError("x"), BaseExceptionGroup("", [LookupError("y"), told])])
    assert scenes._first(group) is told
    assert str(scenes._first(BaseExceptionGroup("", [OSError("x")]))) == "x"
    assert isinstance(scenes._first(BaseExceptionGroup("", [OSError("x"), Stopped(2)])), Stopped)
