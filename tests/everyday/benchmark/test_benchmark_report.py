"""What `localdelay bench` says about a run: its table, its verdict, and the words over a picture."""

from __future__ import annotations

from typing import Any

from localdelay.benchmark.load import Delays
from localdelay.benchmark.process import machine
from localdelay.benchmark.result import Distribution, Result, Settings
from localdelay.cli.bench_report import headline, in_words, legend, lines


def distribution(scale: float = 0.001) -> Distribution:
    return Distribution(1_000, *(scale * step for step in (1, 2, 3, 4, 5, 6)))


def measured(**changes: Any) -> Result:
    figures: dict[str, Any] = {
        "settings": Settings(),
        "machine": machine(),
        "began_at": 0.0,
        "seconds": 12.0,
        "stopped_by": None,
        "offered": 1_000,
        "put": 1_000,
        "refused": 0,
        "sent": 1_000,
        "unsent": 0,
        "dead": 0,
        "early": 0,
        "failures": 0,
        "throttled": 0,
        "failure": None,
        "latency": distribution(),
        "queue_lateness": distribution(),
        "put_lateness": distribution(),
        "send_time": Distribution(),
        "cpu_us_per_message": 4.25,
        "cpu_share": 0.425,
        "peak_pending": 20_000,
        "resident_bytes_per_pending": 612.4,
        "held": True,
        "held_up_to": None,
        "intervals": [],
    }
    return Result(**(figures | changes))


def said(**changes: Any) -> str:
    return " ".join(lines(measured(**changes), []))


def test_the_report_says_why_a_rate_was_not_held() -> None:
    """Too late, not sent, early: each has its words, and so has a load that was late by itself."""
    assert "Held: p99 is under 10 ms, and all was put and sent in time." in said()
    late = said(held=False, latency=distribution(0.1), put_lateness=distribution(0.1))
    assert "Not held: p99 is not under 10 ms." in late
    assert "The puts were late themselves" in late
    unsent = said(held=False, sent=900, unsent=60, refused=40, put=960, failures=7, throttled=3)
    assert "960 of 1,000 put, 900 sent, 60 unsent, 0 early, 40 refused by a full queue" in unsent
    assert "7 failed sends (3 throttled)" in unsent
    assert "Not held: 100 messages were not sent in time." in unsent
    assert "sends began early, which must not happen" in said(held=False, early=1)
    assert "Held up to about 63,000 messages/s." in said(held=False, sent=1, held_up_to=63_210.0)
    assert "eld" not in said(held=None).replace("held by", "")


def test_the_report_says_what_is_known() -> None:
    """Given-up messages, errors and send times where there are any; memory where it can be told."""
    assert "memory 612 bytes a pending message, payload included" in said()
    assert "too few pending, or too many in the warm-up, to tell their memory" in said(
        resident_bytes_per_pending=None
    )
    assert "5 given up" in said(dead=5)
    assert "The last failed send: ConnectionError: lost" in said(failure="ConnectionError: lost")
    assert "send time" in said(send_time=distribution())
    nothing = said(latency=Distribution(), cpu_us_per_message=None, sent=0, held=False)
    assert "Cpu 4.25 us a message, 42% of a core, load and recording included; memory" in said()
    assert "Memory 612 bytes" in nothing


def test_the_report_fits_80_columns() -> None:
    """Whatever the figures are."""
    settings = Settings(
        to="nats://user:hunter2@a-rather-long-host-name.example.org:4222/orders.due",
        rate=(1_234.5, 100_000.0),
        delays=Delays((0.1, 1.0, 5.0, 30.0, 3_600.0, 86_400.0)),
        batch=1_000,
    )
    huge = dict.fromkeys(("put", "sent", "unsent", "refused", "dead", "failures", "offered"), 10**9)
    text = list(
        lines(
            measured(settings=settings, failure="x" * 999, held=False, send_time=distribution(2e3), **huge),
            [("a name that is far too long for its column", distribution())],
        )
    )
    assert max(map(len, text)) <= 80
    assert "hunter2" not in str(text)
    assert max(map(len, headline(measured(settings=settings)))) <= 140
    assert "hunter2" not in str(headline(measured(settings=settings)))


def test_other_runs_are_named_by_what_they_were() -> None:
    """The same run has its name alone; another one says how it differs."""
    own = in_words(Settings())
    assert legend("old", own, own) == "old"
    other = in_words(Settings(rate=(5e3, 5e3), batch=50, timer="trio", cancellable=False))
    assert legend("old", other, own) == "old (5,000 messages/s, batches of up to 50, ..."
    assert legend("old", in_words(Settings(timer="trio")), own) == "old (timer=trio)"
    assert len(legend("old", "5k " * 99, own)) <= 60
