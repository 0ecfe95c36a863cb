"""The parts of `localdelay compare` that need no clock and no Redis."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from localdelay import capacity
from localdelay.benchmark.comparison import (
    Busy,
    Comparison,
    Cost,
    Crash,
    Found,
    Job,
    Plan,
    Report,
    Waiting,
    formula,
    queue_url,
    reckon_crash,
)
from localdelay.benchmark.load import Delays
from localdelay.benchmark.process import Machine
from localdelay.benchmark.redis import Seen
from localdelay.cli.compare import report as told
from localdelay.cli.output import laid_out
from localdelay.redis_plan import RedisTuning, claims, keys, puts

INFO = """\
# Server
redis_version:7.0.15
# Memory
used_memory:1000000
# CPU
used_cpu_sys:0.500000
used_cpu_user:0.250000
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.5}, "rate must be finite and at least 1"),
        ({"rate": float("nan")}, "rate must be finite"),
        ({"rate": 2e6}, "rate must be at most 1,000,000"),
        ({"seconds": 0.0}, "seconds must be finite and at least 0.1"),
        ({"seconds": 601.0}, "seconds must be at most 600, not 601"),
        ({"shards": 0}, "shards must be finite and at least 1"),
        ({"shards": 16_385}, "shards must be at most 16,384, not 16,385"),
        ({"workers": 0}, "workers must be finite and at least 1"),
        ({"size": 7}, "size must be finite and at least 8"),
        ({"delays": Delays((601.0,))}, "delay must be at most 600"),
        ({"delays": Delays((2.0, 1.0), is_range=True)}, "delay must be a range from the shorter"),
        ({"redis": "nats://host"}, "redis must be a server, like"),
        ({"redis": "redis://"}, "redis must be a server, like"),
        ({"redis": "redis://host?db=1"}, "redis must be a server, like"),
        ({"redis": "redis://host/queue"}, "redis must have nothing after the host but the number"),
    ],
)
def test_nonsense_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    """Every number out of its range, and every URL that is no server, names its argument."""
    with pytest.raises(ValueError, match=message):
        Comparison(**options)


def test_passwords_are_not_shown() -> None:
    """What a report says of the settings has no user and no password in it."""
    shown = json.dumps(Comparison(redis="redis://user:secret@host/3").as_json())
    assert "secret" not in shown
    assert "host/3" in shown
    asked = Comparison(redis="redis://user:secret@host/3", only=(Plan.MEMORY, Plan.REDIS))
    job = Job(Plan.REDIS, asked, "secret", "t")
    assert "secret" not in repr(job)
    assert asked.only == (Plan.REDIS, Plan.MEMORY), "in the usual order"


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("redis://host", "redis://host/name"),
        ("redis://host:1/", "redis://host:1/name"),
        ("rediss://user:p%40ss@host:1/2", "rediss://user:p%40ss@host:1/name?db=2"),
    ],
)
def test_a_queue_on_a_server(server: str, url: str) -> None:
    """The number of the database moves to where the queue's URL has it."""
    assert queue_url(server, "name") == url


def test_what_a_crash_has_lost_is_counted_by_number() -> None:
    """A message that was sent twice is not lost, and hides no other one that is; what was sent was there."""
    assert reckon_crash([1, 2, 3, 4], [1, 2], [2, 2, 4], 0.5) == Crash(
        stored=4, sent_before=2, lost=1, twice=2, recovered_in=0.5
    )
    assert reckon_crash([], [5, 5], [], None) == Crash(stored=1, sent_before=2, twice=1)


def test_info_is_read() -> None:
    """Processor time, memory and version."""
    now = Seen.of(INFO)
    assert (now.cpu, now.memory, now.version) == (0.75, 1_000_000, "7.0.15")


def test_the_formulas_are_the_plans() -> None:
    """The write-up's formulas, for these shards and one instance."""
    said = formula(Comparison(rate=200.0, shards=64))
    assert (said["zadd"], said["zrange"], said["setnx"], said["zrem"]) == (200, 320, 320, 200)
    assert said["redis_commands"] == pytest.approx(82.6, abs=0.1)
    assert said["redis_commands_idle"] == 1.6
    assert formula(Comparison(delays=Delays((1.0, 2.0))))["redis_commands"] is None, "it is for one delay"


def test_the_formula_knows_what_the_queue_does_by_default() -> None:
    """The constants of the formula are the queue's own."""
    defaults = RedisTuning()
    assert defaults.linger == capacity.REDIS_LINGER
    assert defaults.claim_ahead == capacity.REDIS_CLAIM_AHEAD
    assert defaults.confirm_within == capacity.REDIS_CONFIRM_WITHIN
    assert defaults.heartbeat == capacity.REDIS_HEARTBEAT
    assert defaults.shard_messages == capacity.REDIS_ELEMENTS_PER_KEY
    assert defaults.shard_bytes == capacity.REDIS_BYTES_PER_KEY
    assert capacity.REDIS_RUN == keys.RUN
    assert capacity.REDIS_MOST_CLAIMED == claims.MOST
    assert capacity.REDIS_MOST_PUT == puts.MOST


def found(plan: Plan, **changes: Any) -> Found:
    busy = Busy(
        offered=100,
        stored=100,
        refused=0,
        sent=100,
        early=0,
        p50=0.1,
        p99=0.2,
        longest=0.3,
        carried=True,
        cost=None,
    )
    return Found(
        plan=plan,
        redis="7.0.15",
        carried_rate=None,
        tried=[(100.0, False)],
        waiting=Waiting(messages=2_000, process_bytes=None, redis_bytes=740.4),
        idle=Cost(sent_per_s=1.6, sent_per_message=None, cpu=0.5, redis_cpu=0.0),
        busy=attrs.evolve(busy, **changes),
        intervals=[],
        crash=Crash(stored=10, sent_before=4, lost=6, twice=0, recovered_in=None),
    )


def test_a_report_says_what_was_not_carried_and_why() -> None:
    """What is missing is a dash; whatever went wrong is told in words, at most 80 columns wide."""
    report = Report(
        settings=Comparison(quick=True, shards=1_000, workers=10_000),
        machine=Machine(cores=2, system="Linux", python="CPython 3.11.7", trio="0.31", localdelay="1"),
        redis="7.0.15",
        seconds=1.0,
        found=[
            found(Plan.REDIS_LITERAL, carried=False, sent=90, p99=2.0),
            found(Plan.REDIS),
            found(Plan.MEMORY_LITERAL, carried=False, early=3),
            found(Plan.MEMORY, carried=False, sent=0, p50=None, p99=None, longest=None),
        ],
    )
    printed = list(laid_out(told(report)))
    assert max(map(len, printed)) <= 80
    text = " ".join(printed)
    assert "Not carried at 1,000/s: Redis, polled (p99 2 s, 10 of 100 not sent in time)." in text
    assert (
        "Not carried at 1,000/s: memory, sleepers (p99 200 ms, 3 sent too early: please report it)." in text
    )
    assert "Not carried at 1,000/s: memory, localdelay (p99 unknown, 100 of 100 not sent in time)." in text
    assert "Redis, localdelay: not all was sent again after the kill." in text
    rows = {line[:18].strip(): line[18:].split() for line in printed[3:]}
    assert rows["messages/s carried"] == ["-"] * 4
    assert rows["commands/s idle"] == ["1.6", "1.6", "-", "-"]
    assert rows["cpu busy, process"] == ["-"] * 4
    assert rows["a message, Redis"] == ["740", "B", "740", "B", "-", "-"]
    formulas = [line.split()[3:] for line in printed if line.startswith("  by the formula")]
    assert formulas == [["12,000", "118", "-", "-"], ["10,000", "1.6", "-", "-"]]
    assert [line for line in printed if getattr(line, "style", None) == "yellow"] == [
        next(line for line in printed if line.startswith("lost by kill -9"))
    ]
    assert json.loads(json.dumps(report.as_json()))["plans"][3]["crash"]["lost"] == 6
