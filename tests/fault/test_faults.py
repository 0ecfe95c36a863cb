"""The fault harness in its short version, and that it can fail. Long: `python -m bench.faults --long`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.kit.faults import every, killed, stopped
from tests.kit.faults.counting import Arrival, arrival_of, count, payload_of
from tests.kit.faults.gauges import not_flat
from tests.kit.faults.row import Row, table
from tests.kit.faults.scale import Scale
from tests.kit.servers.process import NotInstalled, Received

SEED = random.randrange(1 << 30)


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "light"


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """The rows of the table, which is printed when all are there."""
    done: list[Row] = []
    yield done
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if done and terminal is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            for line in ("", f"seed {SEED}", *table(done)):
                terminal.write_line(line)


@pytest.mark.parametrize("names", [list(every.LIGHT), *([name] for name in every.HEAVY)], ids=_named)
def test_nothing_is_lost_and_nothing_early(names: list[str], rows: list[Row]) -> None:
    """Each fault, with an independent count of what the broker has; those that mostly wait go together."""
    print(f"seed {SEED}")
    try:
        now = list(every.run_all(names, Scale(seed=SEED)))
    except NotInstalled as missing:
        if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    rows += now
    assert [row.fault for row in now] == names
    assert all(row.is_good for row in now), "\n".join(table(now))
    assert all(row.accepted and row.arrived for row in now)


def test_a_kill_without_a_journal_loses_messages() -> None:
    """So the harness sees it when something is lost."""
    row = killed.killed("kill -9, no journal", Scale(seed=SEED), kills=1, journal=False)
    assert 0 < row.lost < row.accepted
    assert not row.is_good
    assert any(wrong.startswith("lost: run0.") for wrong in row.wrong)


def test_a_process_that_starts_late_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come of it is read until all is there, however long a busy machine takes to begin."""

    class Late(stopped.Child):
        def __init__(self, *args: Any) -> None:
            time.sleep(6.0)
            super().__init__(*args)

    monkeypatch.setattr(stopped, "Child", Late)
    monkeypatch.setattr(stopped, "_HIGH", 2.5)
    monkeypatch.setattr(stopped, "_GRACE", 0.5)
    try:
        row = stopped.sigterm("late", Scale(seed=SEED), primary="beanstalkd", cycles=1)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    assert row.is_good, "\n".join(table([row]))


AT = 1_800_000_000.0


def arrival(key: str, *, late: float = 0.5, id: str | None = None) -> Arrival:
    return Arrival(key, id or f"id-{key}", AT, AT, AT + late)


def test_every_copy_is_counted() -> None:
    """What is lost, what came twice, what was being put when it was cut off, and what nobody has put."""
    accepted = {key: f"id-{key}" for key in "abc"}
    arrivals = [arrival("a"), arrival("b"), arrival("b", late=2.0), arrival("x")]
    counted = count(accepted, arrivals, begun={*accepted, "x"})
    assert (counted.arrived, counted.lost, counted.duplicated, counted.cut_off) == (2, 1, 1, 1)
    assert (counted.early, counted.latest, counted.wrong) == (0, 0.5, ("lost: c",))
    assert count(accepted, arrivals).wrong == ("1 arrived that nobody has put", "lost: c")
    told = count(accepted, [arrival("a"), arrival("b")], told={"b", "c"})
    assert (told.lost, told.both) == (0, 1)


def test_what_is_early_is_seen() -> None:
    """By the payload or by the header, whichever says so, at the precision of the broker's clock."""
    accepted = {"a": "id-a"}
    assert count(accepted, [arrival("a", late=-0.01)]).early == 1
    by_header = attrs.evolve(arrival("a", late=0.0), due=AT - 9.0, header_due=AT + 0.001)
    assert count(accepted, [by_header]).early == 1
    assert count(accepted, [by_header], headers=False).early == 0
    assert count(accepted, [arrival("a", late=-3600.0)], ahead=3600.5).early == 0
    received = Received(payload_of("a", AT + 0.0004, 100), {}, AT)
    assert len(received.payload) == 100
    assert count({"a": "?"}, [arrival_of(received, 0.001)]).early == 0
    assert count({"a": "?"}, [arrival_of(received, 0.0)]).early == 1


def test_another_payload_is_seen() -> None:
    """By its digest, whichever byte of it has changed."""
    payload = payload_of("a", AT, 100)
    for place in (0, 20, 50, 99):
        changed = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        assert arrival_of(Received(payload, {}, AT)).is_sound
        assert not place or not arrival_of(Received(changed, {}, AT)).is_sound
    damaged = attrs.evolve(arrival("a"), is_sound=False)
    assert count({"a": "id-a"}, [damaged]).wrong == ("1 arrived with another payload",)


def test_another_id_is_seen() -> None:
    """The id never changes, from the first publish to the last retry."""
    assert count({"a": "id-a"}, [arrival("a", id="other")]).wrong == ("1 arrived under another id",)


def test_what_grows_is_seen() -> None:
    """After the warm-up, which is the first third."""
    flat = [{"resident": 50_000_000, "files": 9, "tasks": 7}] * 6
    assert not_flat(flat) == []
    assert not_flat([{"resident": 1, "files": 1, "tasks": 1}] * 2 + flat) == []
    assert not_flat([*flat, {**flat[0], "tasks": 10}]) == ["tasks has grown from 7 to 10"]
    assert len(not_flat([*flat, {"resident": 90_000_000, "files": 99, "tasks": 99}])) == 3
    assert not_flat(flat[:2]) == ["only 2 samples"]


def test_a_bad_row_says_why() -> None:
    """In the table, and by `is_good`."""
    good = Row(fault="good", cycles=1, accepted=9, arrived=9, duplicated=1, allowed_duplicates=1, seconds=1.0)
    bad = [
        attrs.evolve(good, lost=1),
        attrs.evolve(good, early=1),
        attrs.evolve(good, duplicated=2),
        attrs.evolve(good, wrong=("it has grown",)),
    ]
    assert good.is_good
    assert not any(row.is_good for row in bad)
    lines = list(table([good, *bad]))
    assert [line.endswith("BAD") for line in lines[1:6]] == [False, True, True, True, True]
    assert lines[6] == "  wrong: it has grown"


def test_a_fault_that_breaks_is_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is in the table."""

    def breaks(name: str, scale: Scale) -> Row:
        raise RuntimeError("no broker answers")

    monkeypatch.setitem(every.FAULTS, "it", breaks)
    row = every.run("it", Scale(seed=1))
    assert not row.is_good
    assert row.wrong == ("RuntimeError: no broker answers",)
