"""A scrape of Prometheus's: what is exported, parsed back; and what should be."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import trio
import trio.testing
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import localdelay
from localdelay import BreakerState, FallbackStatistics, LatencySummary, Message, Statistics
from localdelay.metrics import Collector

Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]

QUEUE_LABELS = {"queue": "orders"}
OF_QUEUES = {
    "localdelay_accepted_messages_total": "accepted",
    "localdelay_recovered_messages_total": "recovered",
    "localdelay_sent_messages_total": "sent",
    "localdelay_dead_messages_total": "dead",
    "localdelay_expired_messages_total": "expired",
    "localdelay_cancelled_messages_total": "cancelled",
    "localdelay_handed_back_messages_total": "handed_back",
    "localdelay_spooled_messages_total": "spooled",
    "localdelay_pending_messages": "pending",
    "localdelay_waiting_messages": "waiting",
    "localdelay_sending_messages": "sending",
    "localdelay_retrying_messages": "retrying",
    "localdelay_pending_bytes": "pending_bytes",
    "localdelay_at_risk_messages": "at_risk",
    "localdelay_at_risk_bytes": "at_risk_bytes",
    "localdelay_capacity_messages": "capacity",
    "localdelay_capacity_bytes": "capacity_bytes",
    "localdelay_workers": "workers",
    "localdelay_workers_busy": "workers_busy",
    "localdelay_puts_waiting": "puts_waiting",
    "localdelay_puts_committing": "committing",
    "localdelay_paused": "paused",
    "localdelay_closed": "closed",
    "localdelay_failures_total": "failures",
    "localdelay_throttled_total": "throttled",
    "localdelay_dead_letter_errors_total": "dead_letter_errors",
    "localdelay_journal_failures_total": "journal_failures",
    "localdelay_oldest_overdue_seconds": "oldest_overdue",
    "localdelay_limit_rate": "limit_rate",
    "localdelay_next_due_seconds": "next_due_in",
}
HISTOGRAMS = {
    "localdelay_lateness_seconds": "lateness",
    "localdelay_send_duration_seconds": "send_time",
    "localdelay_confirmation_lateness_seconds": "total",
    "localdelay_commit_duration_seconds": "commit_time",
}
OF_FALLBACKS = {
    "localdelay_fallback_refused_messages_total": "refused",
    "localdelay_fallback_calls_total": "calls",
    "localdelay_fallback_calls_saved_total": "calls_saved",
    "localdelay_fallback_handed_back_messages_total": "handed_back",
    "localdelay_fallback_limit_rate": "limit_rate",
    "localdelay_breaker_state_seconds": "breaker_for",
    "localdelay_breaker_retry_after_seconds": "retry_in",
}


def registry_of(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return registry


def samples_of(families: Iterable[Metric]) -> Samples:
    samples: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def scrape(registry: CollectorRegistry) -> Samples:
    return samples_of(parse_text(generate_latest(registry).decode()))


def scrape_openmetrics(registry: CollectorRegistry) -> Samples:
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    return samples_of(parse_openmetrics(text))  # type: ignore[no-untyped-call]


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def expected_histogram(name: str, summary: LatencySummary, labels: dict[str, str]) -> Samples:
    fixed = frozenset(labels.items())
    buckets = [*summary.buckets, (math.inf, summary.count)]
    samples: Samples = {
        (f"{name}_bucket", fixed | {("le", "+Inf" if le == math.inf else str(le))}): n for le, n in buckets
    }
    return samples | {(f"{name}_count", fixed): summary.count, (f"{name}_sum", fixed): summary.sum}


def expected_of_queue(s: Statistics, labels: dict[str, str]) -> Samples:
    fixed = frozenset(labels.items())
    samples: Samples = {("localdelay_up", fixed): 1.0}
    for name, field in OF_QUEUES.items():
        found = getattr(s, field)
        samples[name, fixed] = math.inf if found is None else float(found)
    for name, field in HISTOGRAMS.items():
        samples |= expected_histogram(name, getattr(s, field), labels)
    return samples


def expected_of_fallback(f: FallbackStatistics, labels: dict[str, str]) -> Samples:
    fixed = frozenset(labels.items())
    samples: Samples = {}
    for name, field in OF_FALLBACKS.items():
        found = getattr(f, field)
        samples[name, fixed] = math.inf if found is None else float(found)
    for route, count in (("primary", f.primary), ("local", f.local)):
        samples["localdelay_fallback_published_messages_total", fixed | {("route", route)}] = count
    for reason, count in f.degraded.items():
        samples["localdelay_fallback_degraded_messages_total", fixed | {("reason", reason.value)}] = count
    for mode in ("active", "shadow", "forced"):
        samples["localdelay_fallback_mode", fixed | {("mode", mode)}] = float(mode == f.mode)
    for state in BreakerState:
        samples["localdelay_breaker_state", fixed | {("state", state.value)}] = float(state is f.breaker)
    return samples


def conserved(samples: Samples, **labels: str) -> None:
    def of(term: str) -> float:
        return value(samples, f"localdelay_{term}", **labels)

    finished = sum(
        of(f"{term}_messages_total") for term in ("sent", "dead", "cancelled", "handed_back", "spooled")
    )
    assert of("accepted_messages_total") == finished + of("pending_messages")
    assert of("pending_messages") == sum(
        of(f"{term}_messages") for term in ("waiting", "sending", "retrying")
    )


class Primary:
    """Takes a message, or refuses it as often as it is told."""

    def __init__(self) -> None:
        self.error: type[Exception] | None = None

    async def __call__(self, message: Message, delay: float) -> None:
        if self.error is not None:
            raise self.error

    async def take_back(self, message: Message, delay: float) -> None:
        pass

    def blocking(self, message: Message, delay: float) -> None:
        if self.error is not None:
            raise self.error


async def send(message: Message) -> None:
    """Take a message."""


@contextlib.contextmanager
def on_trio(hold: threading.Event | None = None) -> Iterator[tuple[Collector, Callable[[], Any]]]:
    """A queue of Trio's with a fallback, in a thread; and what stops it."""
    ready = threading.Event()
    made: list[Any] = []

    async def main() -> None:
        async with localdelay.open_delay_queue(send, capacity=10, workers=1) as queue:
            fallback = localdelay.Fallback(Primary(), queue)
            await fallback.publish(b"taken", delay=1.0)
            queue.put_nowait(b"message", delay=0.0)
            stopped = trio.Event()
            token = trio.lowlevel.current_trio_token()
            made.append(Collector(queue, fallback, labels=QUEUE_LABELS, timeout=20.0))
            made.append(lambda: token.run_sync_soon(stopped.set))
            if hold is not None:
                token.run_sync_soon(hold.wait, 20)
            ready.set()
            await stopped.wait()

    thread = threading.Thread(target=trio.run, args=[main], daemon=True)
    thread.start()
    assert ready.wait(20)
    collector, stop = made

    def stop_and_wait() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            stop()
        thread.join(20)
        assert not thread.is_alive()

    try:
        yield collector, stop_and_wait
    finally:
        stop_and_wait()
