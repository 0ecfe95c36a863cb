"""What `statistics()` says, for Prometheus, at every scrape. Needs `pip install 'localdelay[prometheus]'`.

Nothing is counted here: the queue counts anyway, and a scrape asks it. A queue belongs to the thread of its
Trio loop, and a scrape may come from any other: it asks over there and waits, for a limited time. A queue
that does not answer is reported as one that does not answer, and not with figures of the past.
"""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

import attrs
import trio

from . import arguments
from .breaker import BreakerState
from .errors import QueueClosed
from .fallback.publishing import BaseFallback
from .fallback.router import FallbackStatistics
from .fallback.routing import MODES
from .hops import for_a_thread
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
    AnyFallback: TypeAlias = BaseFallback[Any, Any, Any]

_Values: TypeAlias = Mapping[str, Any]
"""Values by the names of their fields."""
_Answer: TypeAlias = Mapping[str, _Values | None]
"""What a scrape was told: the values of each group of families; None where nobody answered."""
_SAID = re.compile(r'^ +(\w+): [^\n]*\n +"""(.*?)"""', re.MULTILINE | re.DOTALL)
"""A field, and its docstring."""
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

_ODD_NAMES = {
    "send_time_seconds": "send_duration_seconds",
    "commit_time_seconds": "commit_duration_seconds",
    "total_seconds": "confirmation_lateness_seconds",
    "next_due_in_seconds": "next_due_seconds",
    "committing": "puts_committing",
    "fallback_breaker": "breaker_state",
    "fallback_breaker_for_seconds": "breaker_state_seconds",
    "fallback_retry_in_seconds": "breaker_retry_after_seconds",
}
"""What would be called otherwise after its field."""
_BY = {"published": "route", "degraded": "reason", "mode": "mode", "breaker": "state"}
"""The labels of fields that have a value for each of several things."""
_ROUTES = ("primary", "local")
"""Fields that are shown as one, told apart by their own names."""


def _values_of(statistics: FallbackStatistics) -> _Values:
    """Its fields; those that have a label as a mapping from its values."""
    return attrs.asdict(statistics, recurse=False) | {
        "published": {route: getattr(statistics, route) for route in _ROUTES},
        "degraded": {reason.value: count for reason, count in statistics.degraded.items()},
        "mode": {mode: mode == statistics.mode for mode in MODES},
        "breaker": {state.value: state is statistics.breaker for state in BreakerState},
    }


@attrs.frozen
class _Family:
    """Metrics of one name: what one field says of every queue. None is +Inf."""

    field: str
    name: str
    help: str
    is_histogram: bool = False

    @property
    def by(self) -> str | None:
        """The label that tells apart the values of one field."""
        return _BY.get(self.field)

    def metric(self, label_names: Sequence[str]) -> Metric:
        """Without any values yet."""
        kind: Callable[..., Metric] = HistogramMetricFamily if self.is_histogram else GaugeMetricFamily
        if self.name.endswith("_total"):
            kind = CounterMetricFamily
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


def _families_of(statistics: type, prefix: str = "") -> Iterator[_Family]:
    """A family for each field, named after it and its unit; what is said under the field is its help."""
    said = _docstrings(statistics)
    for name, kind in get_type_hints(statistics, include_extras=True).items():
        plain = kind.__origin__ if (units := getattr(kind, "__metadata__", ())) else kind
        is_number = {*get_args(plain), plain} & {int, float, bool}
        if is_number or plain is LatencySummary or name in _BY:
            unit = units[0] if units else "seconds" if plain is LatencySummary or is_number == {float} else ""
            metric = f"{prefix}{name}_{unit}".rstrip("_")
            help_ = said.get(name, f"{name} of {statistics.__name__}.").replace("None", "+Inf")
            yield _Family(name, _ODD_NAMES.get(metric, metric), help_, plain is LatencySummary)


def _docstrings(described: type) -> dict[str, str]:
    """What is said under each field of a class; nothing where there is no source to read it from."""
    try:
        source = inspect.getsource(described)
    except (OSError, TypeError):
        return {}
    return {name: " ".join(said.split()) for name, said in _SAID.findall(source)}


_PUBLISHED = "Published messages, by where they went."
_FAMILIES = {
    "": (_Family("up", "up", "Whether the queue answered this scrape."),),
    "queue": tuple(_families_of(Statistics)),
    "fallback": (
        _Family("published", "fallback_published_messages_total", _PUBLISHED),
        *(one for one in _families_of(FallbackStatistics, "fallback_") if one.field not in _ROUTES),
    ),
}
_TAKEN = {"le", *_BY.values()}


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
            return asked.result(for_a_thread(timeout))
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
        arguments.check_kind("fallback", fallback, BaseFallback | None, "a Fallback")
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
    arguments.check_kind("labels", labels, Mapping, "a mapping")
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
