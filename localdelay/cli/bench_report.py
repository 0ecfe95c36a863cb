"""What `localdelay bench` says about a run: a table for people, and the words over a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from localdelay.benchmark.held import HELD_P99
from localdelay.benchmark.result import Distribution, Result, Settings
from localdelay.brokers import without_secrets
from localdelay.cli.loads import delays_in_words
from localdelay.cli.output import Styled, filled, known, row
from localdelay.units import counted, format_duration, format_number

_row = partial(row, label_width=18, cell_width=10)
_COLUMNS = ("p50", "p90", "p99", "p999", "p9999", "max")
_TITLES = ("p50", "p90", "p99", "p99.9", "p99.99", "max")


def lines(result: Result, others: Sequence[tuple[str, Distribution]]) -> Iterator[str]:
    """The report; `others` are the names and the latencies of runs to compare with."""
    settings = result.settings
    seconds = format_duration(settings.seconds)
    yield from filled(
        f"{_rate(settings)} for {seconds}, each due after {delays_in_words(settings.delays)}", "bold"
    )
    yield from filled(_how(settings))
    yield ""
    yield Styled(_row("", _TITLES), "bold")
    yield Styled(_row("latency", _durations(result.latency)), "bold")
    yield _row("  puts late", _durations(result.put_lateness))
    yield _row("  queue late", _durations(result.queue_lateness))
    if result.send_time.count:
        yield _row("send time", _durations(result.send_time))
    for name, other in others:
        yield _row(textwrap.shorten(name, 17, placeholder="..."), _durations(other))
    yield ""
    yield from filled(
        "Latency: from when a message was to be put, plus its delay, to when its send began. It holds "
        "what the puts were late (this benchmark's own error) and what the queue was."
    )
    yield ""
    yield from filled(_counts(result))
    yield from filled(_costs(result))
    yield from _verdict(result)


def headline(result: Result) -> tuple[str, str]:
    """The two lines over the picture."""
    settings, machine = result.settings, result.machine
    facts = [
        _how(settings),
        counted(machine.cores, "core"),
        machine.system,
        machine.python,
        f"Trio {machine.trio}",
        f"localdelay {machine.localdelay}",
    ]
    title = f"How late sends begin: {_rate(settings)}, each due after {delays_in_words(settings.delays)}"
    return title, textwrap.shorten(", ".join(facts), 135, placeholder=" ...")


def in_words(settings: Settings) -> str:
    """The run, in one line."""
    return f"{_rate(settings)}, each due after {delays_in_words(settings.delays)}, {_how(settings)}"


def legend(name: str, facts: str, own_facts: str) -> str:
    """What another run is called in the picture: its name, and in what it differs from this one."""
    own = own_facts.split(", ")
    others = [fact for fact in facts.split(", ") if fact not in own]
    return textwrap.shorten(f"{name} ({', '.join(others)})" if others else name, 60, placeholder=" ...")


def _rate(settings: Settings) -> str:
    first, last = settings.rate
    ramp = "" if first == last else f" to {format_number(last)}"
    return f"{format_number(first)}{ramp} messages/s"


def _how(settings: Settings) -> str:
    batches = "one message a send" if settings.batch is None else f"batches of up to {settings.batch:,}"
    parts = [f"{settings.size:,} bytes", counted(settings.workers, "worker"), batches]
    if not settings.cancellable:
        parts.append("cancellable=False")
    if settings.timer != "auto":
        parts.append(f"timer={settings.timer}")
    if settings.to is not None:
        parts.append(f"to {without_secrets(settings.to)}")
    return ", ".join(parts)


def _counts(result: Result) -> str:
    parts = [
        f"{result.put:,} of {result.offered:,} put",
        f"{result.sent:,} sent",
        f"{result.unsent:,} unsent",
        f"{result.early:,} early",
    ]
    if result.refused:
        parts.append(f"{result.refused:,} refused by a full queue")
    if result.dead:
        parts.append(f"{result.dead:,} given up")
    if result.failures:
        parts.append(f"{result.failures:,} failed sends ({result.throttled:,} throttled)")
    return f"{', '.join(parts)}; at most {result.peak_pending:,} pending."


def _costs(result: Result) -> str:
    cpu, share = result.cpu_us_per_message, result.cpu_share
    memory = result.resident_bytes_per_pending
    parts = []
    if cpu is not None and share is not None:
        parts.append(f"Cpu {cpu:.3g} us a message, {share:.0%} of a core, load and recording included; ")
    if memory is None:
        parts.append("too few pending, or too many in the warm-up, to tell their memory.")
    else:
        parts.append(f"memory {memory:,.0f} bytes a pending message, payload included.")
    text = "".join(parts)
    return text[0].upper() + text[1:]


def _verdict(result: Result) -> Iterator[str]:
    if result.failure is not None:
        yield from filled(
            f"The last failed send: {textwrap.shorten(result.failure, 200, placeholder=' ...')}"
        )
    most = format_duration(HELD_P99)
    if result.held is None:
        return
    if result.held:
        yield from filled(f"Held: p99 is under {most}, and all was put and sent in time.", "green")
        return
    reasons = []
    if result.latency.p99 is None or result.latency.p99 >= HELD_P99:
        reasons.append(f"p99 is not under {most}")
    if result.sent < result.offered:
        reasons.append(f"{result.offered - result.sent:,} messages were not sent in time")
    if result.early:
        reasons.append("sends began early, which must not happen: please report it")
    yield from filled(f"Not held: {', and '.join(reasons)}.", "yellow")
    if result.held_up_to:
        yield f"Held up to about {format_number(float(f'{result.held_up_to:.2g}'))} messages/s."
    if (result.put_lateness.p99 or 0) >= HELD_P99:
        yield "The puts were late themselves: this process can't put and send at this rate."


def _durations(found: Distribution) -> list[str]:
    return [known(getattr(found, name), format_duration) for name in _COLUMNS]
