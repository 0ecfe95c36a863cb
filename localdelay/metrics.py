"""What `statistics()` says, for Prometheus, at every scrape. Needs `pip install 'localdelay[prometheus]'`.

Nothing is counted here: the queue counts anyway, and a scrape asks it. A queue belongs to the thread of its
Trio loop, and a scrape may come from any other: it asks over there and waits, for a limited time. A queue
that does not answer is reported as one that does not answer, and not with figures of the past.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

import attrs
import trio

from . import arguments
from .breaker import BreakerState
from .errors import QueueClosed
from .fallback.publishing import BaseFallback
from .fallback.router import FallbackStatistics
from .fallback.routing import MODES
from .lateness import LatencySummary
from .portal.portal import Remote
from .queue.queue import DelayQueue
from .statistics import Statistics

try:
    from prometheus_client import CollectorRegistry, Metric, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "localdelay.metrics needs prometheus-client: pip install 'localdelay[prometheus]'", name=error.name
    ) from error

__all__ = ["Collector", "serve"]

if TYPE_CHECKING:
    from . import aio, threads

    AnyQueue: TypeAlias = DelayQueue | threads.DelayQueue | aio.DelayQueue
    AnyFallback: TypeAlias = BaseFallback[Any, Any]

_Values: TypeAlias = Mapping[str, Any]
"""Values by the names of their fields."""
_Answer: TypeAlias = Mapping[str, _Values | None]
"""What a scrape was told: the values of each group of families; None where nobody answered."""
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

# A family for each field of the statistics: its name, its help, and the label by which it is told apart where
# a field has several values. Counters end in `_total`; a summary of latencies is a histogram; None is +Inf.
# Always: accepted = sent + dead + cancelled + handed back + spooled + pending, and
# pending = waiting + sending + retrying: the values of one scrape are of one instant.
_OF_QUEUES = {
    "accepted": ("accepted_messages_total", "Messages that a put took in."),
    "recovered": ("recovered_messages_total", "Those from a journal."),
    "sent": ("sent_messages_total", "Messages that the real queue confirmed."),
    "dead": ("dead_messages_total", "Messages that were given up on."),
    "cancelled": ("cancelled_messages_total", "Messages taken out by cancel."),
    "handed_back": ("handed_back_messages_total", "Messages given back early."),
    "spooled": ("spooled_messages_total", "Messages left in a journal."),
    "pending": ("pending_messages", "Messages accepted and not finished."),
    "waiting": ("waiting_messages", "Pending messages that wait to be sent."),
    "sending": ("sending_messages", "Pending messages that are being sent."),
    "retrying": ("retrying_messages", "Pending messages that wait for a retry."),
    "pending_bytes": ("pending_bytes", "Payload and headers of what is pending."),
    "at_risk": ("at_risk_messages", "Messages that a crash now would lose."),
    "at_risk_bytes": ("at_risk_bytes", "Payload and headers of these."),
    "capacity": ("capacity_messages", "The most messages that may be pending."),
    "capacity_bytes": ("capacity_bytes", "The most bytes that may be pending; +Inf: no limit."),
    "workers": ("workers", "Workers that the queue was told to keep."),
    "workers_busy": ("workers_busy", "Workers in a send or a dead-letter hook."),
    "puts_waiting": ("puts_waiting", "Calls of put that wait for room."),
    "committing": ("puts_committing", "Calls of put that wait for the journal."),
    "paused": ("paused", "Whether sending is paused."),
    "closed": ("closed", "Whether puts are refused."),
    "next_due_in": ("next_due_seconds", "Until the next waiting message is to be sent; +Inf: none waits."),
    "oldest_overdue": ("oldest_overdue_seconds", "How late the latest of the pending messages is by now."),
    "failures": ("failures_total", "Failed tries, counted for each message."),
    "throttled": ("throttled_total", "Failed tries that the broker throttled."),
    "dead_letter_errors": ("dead_letter_errors_total", "Dead-letter hooks that raised or took too long."),
    "journal_failures": ("journal_failures_total", "Commits that failed."),
    "lateness": ("lateness_seconds", "Start of the first send minus the time when the message was due."),
    "send_time": ("send_duration_seconds", "Time in send, failed sends included; a batch counts once."),
    "total": (
        "confirmation_lateness_seconds",
        "Confirmation minus the time when the message was due, retries included.",
    ),
    "commit_time": ("commit_duration_seconds", "Time in a commit of the journal."),
}
_OF_FALLBACKS = {
    "published": ("fallback_published_messages_total", "Published messages, by where they went.", "route"),
    "refused": ("fallback_refused_messages_total", "Published messages that neither route took."),
    "degraded": (
        "fallback_degraded_messages_total",
        "Published messages held in memory, by the reason; in shadow mode, that would have been.",
        "reason",
    ),
    "calls": ("fallback_calls_total", "Calls of the primary by publishes."),
    "calls_saved": (
        "fallback_calls_saved_total",
        "Calls of the primary that were not made because they would have failed.",
    ),
    "handed_back": (
        "fallback_handed_back_messages_total",
        "Messages that the primary took back out of memory.",
    ),
    "limit_rate": (
        "fallback_limit_rate",
        "Calls of the primary a second that the limit lets through; +Inf: all.",
    ),
    "mode": ("fallback_mode", "1 for the mode that the fallback is in.", "mode"),
    "breaker": ("breaker_state", "1 for the state that the breaker is in.", "state"),
    "breaker_for": ("breaker_state_seconds", "How long it has been in it."),
    "retry_in": (
        "breaker_retry_after_seconds",
        "Until an open breaker lets a call through; 0: calls go through, +Inf: it was forced open.",
    ),
}

_JOINED = {"primary": "published", "local": "published"}
"""Fields that are shown as one, told apart by their own names."""


def _values_of(statistics: FallbackStatistics) -> _Values:
    """Its fields; those that have a label as a mapping from its values."""
    return attrs.asdict(statistics, recurse=False) | {
        "published": {route: getattr(statistics, route) for route in _JOINED},
        "degraded": {reason.value: count for reason, count in statistics.degraded.items()},
        "mode": {mode: mode == statistics.mode for mode in MODES},
        "breaker": {state.value: state is statistics.breaker for state in BreakerState},
    }


@attrs.frozen
class _Family:
    """Metrics of one name: what one field says of every queue."""

    field: str
    name: str
    help: str
    by: str = ""

    def metric(self, label_names: Sequence[str]) -> Metric:
        """Without any values yet."""
        kind: Callable[..., Metric] = GaugeMetricFamily
        if self.name.endswith("_total"):
            kind = CounterMetricFamily
        elif self.field in _HISTOGRAMS:
            kind = HistogramMetricFamily
        unit = next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")
        names = [*label_names, self.by] if self.by else [*label_names]
        return kind(f"localdelay_{self.name}", self.help, labels=names, unit=unit)

    def add(self, metric: Metric, labels: Sequence[str], values: _Values) -> None:
        """Add the values of one queue."""
        value = values[self.field]
        if isinstance(metric, HistogramMetricFamily):
            buckets = [(str(boundary), count) for boundary, count in value.buckets]
            metric.add_metric(labels, [*buckets, ("+Inf", value.count)], value.sum)
        elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily):
            for by, number in value.items() if self.by else [(None, value)]:
                its_labels = labels if by is None else [*labels, by]
                metric.add_metric(its_labels, math.inf if number is None else number)


_HISTOGRAMS = {name for name, kind in get_type_hints(Statistics).items() if kind is LatencySummary}
# A field that is added to either statistics is missed here at once: it has no name yet.
_FAMILIES = {
    "": (_Family("up", "up", "Whether the queue answered this scrape."),),
    "queue": tuple(_Family(field.name, *_OF_QUEUES[field.name]) for field in attrs.fields(Statistics)),
    "fallback": tuple(
        _Family(field, *_OF_FALLBACKS[field])
        for field in dict.fromkeys(
            _JOINED.get(field.name, field.name) for field in attrs.fields(FallbackStatistics)
        )
    ),
}
_TAKEN = {"le", *(family.by for family in _FAMILIES["fallback"] if family.by)}


class _Source:
    """One queue and its fallback, as any thread may ask them."""

    def __init__(self, queue: AnyQueue, fallback: AnyFallback | None, labels: Sequence[str]) -> None:
        self.queue = queue
        self.labels = labels
        self._fallback = fallback
        self._lock = Lock()
        self._unanswered: Future[_Answer] | None = None
        self._thread: int | None = None  # the loop's
        remote = getattr(queue, "remote", None)
        if isinstance(queue, DelayQueue):
            self._inner = queue
            self._begin = _over_to(_token_here())
            self._thread = get_ident()
        elif isinstance(remote, Remote):
            self._inner = remote.queue
            self._begin = lambda act: remote.begin(act).done
            self._begin(self._read_on_loop)  # so that `_thread` is known
        else:
            raise TypeError(f"queue must be a DelayQueue, not {type(queue).__name__}")

    def ask(self) -> Future[_Answer]:
        """Have the queue's thread answer; as long as one that did not is asked already, it is not again."""
        with self._lock:
            if get_ident() == self._thread:
                here: Future[_Answer] = Future()
                here.set_result(self._read())
                return here
            if self._unanswered is not None and not self._unanswered.done():
                return self._unanswered
            return self._begin(self._read_on_loop)

    def answer(self, asked: Future[_Answer], timeout: float) -> _Answer:
        """What was answered, after this many seconds at most."""
        try:
            return asked.result(timeout)
        except TimeoutError:
            self._unanswered = asked
            return {"": {"up": False}, "fallback": self._read_fallback()}
        except QueueClosed:
            with self._lock:  # its loop is gone, and nobody else is at the queue
                return self._read()

    def _read_on_loop(self) -> _Answer:
        self._thread = get_ident()
        return self._read()

    def _read(self) -> _Answer:
        try:
            queue = attrs.asdict(self._inner.statistics(), recurse=False)
        except RuntimeError:  # the loop is gone, but its queue was not left: there is no clock
            queue = None
        return {"": {"up": queue is not None}, "queue": queue, "fallback": self._read_fallback()}

    def _read_fallback(self) -> _Values | None:
        try:
            return None if self._fallback is None else _values_of(self._fallback.statistics())
        except RuntimeError:  # one of Trio's has its loop's clock, which is read on the loop
            return None


class Collector:
    """Queues, and fallbacks before them, for a registry of `prometheus_client`'s.

    Several queues of a process share one collector, and are told apart by their labels: what Prometheus
    reads has each name once. A second collector in one registry is refused by the registry. A scrape may
    come from any thread. It shows `localdelay_up` 0, and nothing else of a queue, where that does not
    answer; a queue that was left goes on to show its last values, until it is removed.
    """

    def __init__(
        self,
        queue: AnyQueue | None = None,
        fallback: AnyFallback | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        timeout: float = 2.0,
    ) -> None:
        """Begin with one queue, or with none. `timeout` is how many seconds a scrape waits for answers."""
        self._timeout = arguments.at_least("timeout", timeout, 0, "a number of seconds")
        self._lock = Lock()
        self._label_names: tuple[str, ...] = ()
        self._sources: list[_Source] = []
        if queue is not None:
            self.add(queue, fallback, labels=labels)
        elif fallback is not None or labels is not None:
            raise TypeError("fallback and labels belong to a queue, which is not given")

    def add(
        self,
        queue: AnyQueue,
        fallback: AnyFallback | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Export a queue, and the fallback before it if there is one, under these labels.

        The names of the labels are the same for all queues of a collector, their values are not: else it
        is a `ValueError`. A queue of Trio's is to be added on the loop that runs it, or it is a
        `RuntimeError`; one of `localdelay.threads` or `localdelay.aio` anywhere.
        """
        if fallback is not None and not isinstance(fallback, BaseFallback):
            raise TypeError(f"fallback must be a Fallback, not {type(fallback).__name__}")
        given = _check_labels({} if labels is None else labels)
        names = tuple(sorted(given))
        source = _Source(queue, fallback, [given[name] for name in names])
        with self._lock:
            if any(other.queue is queue for other in self._sources):
                raise ValueError("queue is exported already")
            if self._sources and names != self._label_names:
                raise ValueError(f"labels must be named {self._label_names}, as of the others, not {names}")
            if any(other.labels == source.labels for other in self._sources):
                raise ValueError(f"labels must differ from those of every other queue, unlike {given}")
            self._label_names = names
            self._sources = [*self._sources, source]

    def remove(self, queue: AnyQueue) -> None:
        """Export a queue no more; a `ValueError` if it is not exported."""
        with self._lock:
            left = [source for source in self._sources if source.queue is not queue]
            if len(left) == len(self._sources):
                raise ValueError("queue is not exported")
            self._sources = left

    def describe(self) -> Iterator[Metric]:
        """The families by name, for a registry to see what would come twice."""
        for families in _FAMILIES.values():
            yield from (family.metric(()) for family in families)

    def collect(self) -> Iterator[Metric]:
        """Ask all queues at once, and yield what they have answered until the time-out."""
        with self._lock:
            sources, names = self._sources, self._label_names
        deadline = time.monotonic() + self._timeout
        asked = [(source, source.ask()) for source in sources]
        answers = [
            (source.labels, source.answer(future, max(0.0, deadline - time.monotonic())))
            for source, future in asked
        ]
        for group, families in _FAMILIES.items():
            known = [(labels, values) for labels, answer in answers if (values := answer.get(group))]
            for family in families if known else ():
                metric = family.metric(names)
                for labels, values in known:
                    family.add(metric, labels, values)
                yield metric


@contextmanager
def serve(collector: Collector, *, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve what a collector says, alone, for the length of a `with` block: HTTP, at `/metrics`.

    Gives the port, which is chosen where 0 is given; one that is taken is an `OSError`. To end takes up to
    half a second. A service that serves metrics already registers the collector in its own registry.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels must be a mapping, not {type(labels).__name__}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels must be strings, not {name!r}: {value!r}")
        if not _LABEL.fullmatch(name) or name in _TAKEN:
            raise ValueError(f"labels must not have one named {name!r}")
    return dict(labels)


def _token_here() -> trio.lowlevel.TrioToken:
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        raise RuntimeError("a queue of Trio's is to be exported from the loop that runs it") from None


def _over_to(token: trio.lowlevel.TrioToken) -> Callable[[Callable[[], _Answer]], Future[_Answer]]:
    """As `Remote.begin`: to have something done on a Trio loop, from another thread."""

    def begin(act: Callable[[], _Answer]) -> Future[_Answer]:
        done: Future[_Answer] = Future()

        def run() -> None:
            try:
                done.set_result(act())
            except Exception as error:  # noqa: BLE001 (raised where it is waited for)
                done.set_exception(error)

        try:
            token.run_sync_soon(run)
        except trio.RunFinishedError:
            done.set_exception(QueueClosed("the queue has ended"))
        return done

    return begin
