"""What `statistics()` says, for Prometheus, at every scrape. Needs `pip install 'localdelay[prometheus]'`.

Nothing is counted here: the queue counts anyway, and a scrape asks it. A queue belongs to the thread of its
Trio loop, and a scrape may come from any other: it asks over there and waits, for a limited time. A queue
that does not answer is reported as one that does not answer, and not with figures of the past.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

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

_S = TypeVar("_S")
_Kind: TypeAlias = type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@attrs.frozen
class _Family(Generic[_S]):
    """Metrics of one name, and how their values are read off what `_S` says."""

    kind: _Kind
    name: str
    help: str
    read: Callable[[_S], float | Mapping[str, float] | LatencySummary]
    """A mapping is from values of the label `by`."""
    by: str = ""

    def metric(self, label_names: Sequence[str]) -> Metric:
        """Without any values yet."""
        unit = next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")
        names = [*label_names, self.by] if self.by else [*label_names]
        return self.kind(f"localdelay_{self.name}", self.help, labels=names, unit=unit)

    def add(self, metric: Metric, labels: Sequence[str], statistics: _S) -> None:
        """Add the values of one queue."""
        value = self.read(statistics)
        if isinstance(metric, HistogramMetricFamily) and isinstance(value, LatencySummary):
            buckets = [(str(boundary), count) for boundary, count in value.buckets]
            metric.add_metric(labels, [*buckets, ("+Inf", value.count)], value.sum)
        elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily):
            if isinstance(value, Mapping):
                for by, number in value.items():
                    metric.add_metric([*labels, by], number)
            elif isinstance(value, int | float):
                metric.add_metric(labels, value)


_COUNTER, _GAUGE, _HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

_UP: _Family[bool] = _Family(_GAUGE, "up", "Whether the queue answered this scrape.", float)

# Always: accepted = sent + dead + cancelled + handed back + spooled + pending, and
# pending = waiting + sending + retrying: the values of one scrape are of one instant.
_OF_QUEUES: tuple[_Family[Statistics], ...] = (
    _Family(_COUNTER, "accepted_messages_total", "Messages that a put took in.", lambda s: s.accepted),
    _Family(_COUNTER, "recovered_messages_total", "Those from a journal.", lambda s: s.recovered),
    _Family(_COUNTER, "sent_messages_total", "Messages that the real queue confirmed.", lambda s: s.sent),
    _Family(_COUNTER, "dead_messages_total", "Messages that were given up on.", lambda s: s.dead),
    _Family(_COUNTER, "cancelled_messages_total", "Messages taken out by cancel.", lambda s: s.cancelled),
    _Family(_COUNTER, "handed_back_messages_total", "Messages given back early.", lambda s: s.handed_back),
    _Family(_COUNTER, "spooled_messages_total", "Messages left in a journal.", lambda s: s.spooled),
    _Family(_GAUGE, "pending_messages", "Messages accepted and not finished.", lambda s: s.pending),
    _Family(_GAUGE, "waiting_messages", "Pending messages that wait to be sent.", lambda s: s.waiting),
    _Family(_GAUGE, "sending_messages", "Pending messages that are being sent.", lambda s: s.sending),
    _Family(_GAUGE, "retrying_messages", "Pending messages that wait for a retry.", lambda s: s.retrying),
    _Family(_GAUGE, "pending_bytes", "Payload and headers of what is pending.", lambda s: s.pending_bytes),
    _Family(_GAUGE, "at_risk_messages", "Messages that a crash now would lose.", lambda s: s.at_risk),
    _Family(_GAUGE, "at_risk_bytes", "Payload and headers of these.", lambda s: s.at_risk_bytes),
    _Family(_GAUGE, "capacity_messages", "The most messages that may be pending.", lambda s: s.capacity),
    _Family(
        _GAUGE,
        "capacity_bytes",
        "The most bytes that may be pending; +Inf: no limit.",
        lambda s: math.inf if s.capacity_bytes is None else s.capacity_bytes,
    ),
    _Family(_GAUGE, "workers", "Workers that the queue was told to keep.", lambda s: s.workers),
    _Family(_GAUGE, "workers_busy", "Workers in a send or a dead-letter hook.", lambda s: s.workers_busy),
    _Family(_GAUGE, "puts_waiting", "Calls of put that wait for room.", lambda s: s.puts_waiting),
    _Family(_GAUGE, "puts_committing", "Calls of put that wait for the journal.", lambda s: s.committing),
    _Family(_GAUGE, "paused", "Whether sending is paused.", lambda s: s.paused),
    _Family(_GAUGE, "closed", "Whether puts are refused.", lambda s: s.closed),
    _Family(_COUNTER, "failures_total", "Failed tries, counted for each message.", lambda s: s.failures),
    _Family(_COUNTER, "throttled_total", "Failed tries that the broker throttled.", lambda s: s.throttled),
    _Family(
        _COUNTER,
        "dead_letter_errors_total",
        "Dead-letter hooks that raised or took too long.",
        lambda s: s.dead_letter_errors,
    ),
    _Family(_COUNTER, "journal_failures_total", "Commits that failed.", lambda s: s.journal_failures),
    _Family(
        _GAUGE,
        "oldest_overdue_seconds",
        "How late the latest of the pending messages is by now.",
        lambda s: s.oldest_overdue,
    ),
    _Family(
        _GAUGE,
        "next_due_seconds",
        "Until the next waiting message is to be sent; +Inf: none waits.",
        lambda s: math.inf if s.next_due_in is None else s.next_due_in,
    ),
    _Family(
        _HISTOGRAM,
        "lateness_seconds",
        "Start of the first send minus the time when the message was due.",
        lambda s: s.lateness,
    ),
    _Family(
        _HISTOGRAM,
        "send_duration_seconds",
        "Time in send, failed sends included; a batch counts once.",
        lambda s: s.send_time,
    ),
    _Family(
        _HISTOGRAM,
        "confirmation_lateness_seconds",
        "Confirmation minus the time when the message was due, retries included.",
        lambda s: s.total,
    ),
    _Family(
        _HISTOGRAM, "commit_duration_seconds", "Time in a commit of the journal.", lambda s: s.commit_time
    ),
)
_OF_FALLBACKS: tuple[_Family[FallbackStatistics], ...] = (
    _Family(
        _COUNTER,
        "fallback_published_messages_total",
        "Published messages, by where they went.",
        lambda f: {"primary": f.primary, "local": f.local},
        by="route",
    ),
    _Family(
        _COUNTER,
        "fallback_refused_messages_total",
        "Published messages that neither route took.",
        lambda f: f.refused,
    ),
    _Family(
        _COUNTER,
        "fallback_degraded_messages_total",
        "Published messages held in memory, by the reason; in shadow mode, that would have been.",
        lambda f: {reason.value: count for reason, count in f.degraded.items()},
        by="reason",
    ),
    _Family(_COUNTER, "fallback_calls_total", "Calls of the primary by publishes.", lambda f: f.calls),
    _Family(
        _COUNTER,
        "fallback_calls_saved_total",
        "Calls of the primary that were not made because they would have failed.",
        lambda f: f.calls_saved,
    ),
    _Family(
        _COUNTER,
        "fallback_handed_back_messages_total",
        "Messages that the primary took back out of memory.",
        lambda f: f.handed_back,
    ),
    _Family(
        _GAUGE,
        "fallback_mode",
        "1 for the mode that the fallback is in.",
        lambda f: {mode: mode == f.mode for mode in MODES},
        by="mode",
    ),
    _Family(
        _GAUGE,
        "breaker_state",
        "1 for the state that the breaker is in.",
        lambda f: {state.value: state is f.breaker for state in BreakerState},
        by="state",
    ),
    _Family(_GAUGE, "breaker_state_seconds", "How long it has been in it.", lambda f: f.breaker_for),
    _Family(
        _GAUGE,
        "breaker_retry_after_seconds",
        "Until an open breaker lets a call through; 0: calls go through, +Inf: it was forced open.",
        lambda f: math.inf if f.retry_in is None else f.retry_in,
    ),
)
_TAKEN = {"le", *(family.by for family in _OF_FALLBACKS if family.by)}


@attrs.frozen
class _Answer:
    """What a scrape was told; None where nobody answered."""

    queue: Statistics | None
    fallback: FallbackStatistics | None


class _Source:
    """One queue and its fallback, as any thread may ask them."""

    def __init__(self, queue: AnyQueue, fallback: AnyFallback | None, labels: Sequence[str]) -> None:
        self.queue = queue
        self.labels = labels
        self._fallback = fallback
        self._lock = Lock()
        self._unanswered: Future[_Answer] | None = None
        self._thread: int | None = None
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
                here.set_result(self._read_here())
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
            return _Answer(None, self._read_fallback())
        except QueueClosed:
            with self._lock:  # its loop is gone, and nobody else is at the queue
                return self._read_here()

    def _read_on_loop(self) -> _Answer:
        self._thread = get_ident()
        return _Answer(self._inner.statistics(), self._read_fallback())

    def _read_here(self) -> _Answer:
        try:
            statistics = self._inner.statistics()
        except RuntimeError:  # the loop is gone, but its queue was not left: there is no clock
            statistics = None
        return _Answer(statistics, self._read_fallback())

    def _read_fallback(self) -> FallbackStatistics | None:
        try:
            return None if self._fallback is None else self._fallback.statistics()
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
        yield _UP.metric(())
        yield from (family.metric(()) for family in _OF_QUEUES)
        yield from (family.metric(()) for family in _OF_FALLBACKS)

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
        yield from _metrics(names, (_UP,), [(labels, a.queue is not None) for labels, a in answers])
        yield from _metrics(names, _OF_QUEUES, [(labels, a.queue) for labels, a in answers])
        yield from _metrics(names, _OF_FALLBACKS, [(labels, a.fallback) for labels, a in answers])


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


def _metrics(
    names: Sequence[str],
    families: Iterable[_Family[_S]],
    answers: Sequence[tuple[Sequence[str], _S | None]],
) -> Iterator[Metric]:
    known = [(labels, statistics) for labels, statistics in answers if statistics is not None]
    for family in families if known else ():
        metric = family.metric(names)
        for labels, statistics in known:
            family.add(metric, labels, statistics)
        yield metric


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


def _over_to(token: trio.lowlevel.TrioToken) -> Callable[[Callable[[], _S]], Future[_S]]:
    """As `Remote.begin`: to have something done on a Trio loop, from another thread."""

    def begin(act: Callable[[], _S]) -> Future[_S]:
        done: Future[_S] = Future()

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
