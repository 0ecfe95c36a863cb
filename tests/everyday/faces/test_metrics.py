"""What Prometheus reads: parsed back from the exposition, and held against `statistics()`."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

import localdelay
import localdelay.metrics
from localdelay import BreakerPolicy, FallbackStatistics, Message, Reason, Statistics, Throttled, threads
from localdelay.metrics import Collector
from tests.kit.programs import python
from tests.kit.scraping import (
    HISTOGRAMS,
    OF_FALLBACKS,
    OF_QUEUES,
    QUEUE_LABELS,
    Primary,
    Samples,
    conserved,
    expected_of_fallback,
    expected_of_queue,
    on_trio,
    registry_of,
    scrape,
    scrape_openmetrics,
    send,
    value,
)


async def test_every_value_is_that_of_the_statistics(autojump_clock: trio.testing.MockClock) -> None:
    """Both formats say what `statistics()` says, each sample under the queue's label, and nothing else."""

    async def send_some(message: Message) -> None:
        await trio.sleep(0.3)
        if message.payload == b"bad":
            raise Throttled

    primary = Primary()
    async with localdelay.open_delay_queue(
        send_some, capacity=7, capacity_bytes=1000, workers=2, retry=localdelay.RetryPolicy(wait_jitter=0)
    ) as queue:
        fallback = localdelay.Fallback(
            primary, queue, breaker=BreakerPolicy(consecutive=2), ambiguous="degrade"
        )
        registry = registry_of(Collector(queue, fallback, labels=QUEUE_LABELS))
        queue.put_nowait(b"good", delay=0.1)
        queue.put_nowait(b"bad", delay=0.1, headers={"a": "b"})
        queue.put_nowait(b"later", delay=100.0)
        queue.cancel(queue.put_nowait(b"never", delay=100.0).id)
        await fallback.publish(b"1", delay=50.0)
        primary.error = ConnectionResetError
        for _ in range(3):
            await fallback.publish(b"2", delay=60.0)
        for wait in (0.0, 0.05, 0.15, 0.2, 0.3, 1.0, 60.0):
            await trio.sleep(wait)
            expected = expected_of_queue(queue.statistics(), QUEUE_LABELS)
            expected |= expected_of_fallback(fallback.statistics(), QUEUE_LABELS)
            samples = scrape(registry)
            assert samples == expected
            assert scrape_openmetrics(registry) == expected
            conserved(samples, **QUEUE_LABELS)
        statistics = fallback.statistics()
        assert (statistics.primary, statistics.degraded[Reason.AMBIGUOUS]) == (1, 2)
        assert statistics.degraded[Reason.BREAKER_OPEN] == 1
        assert queue.statistics().throttled >= 3
        await queue.drain(grace=1.0, hand_back=primary.take_back)


async def test_what_is_never_or_without_limit_is_infinite(autojump_clock: trio.testing.MockClock) -> None:
    """No byte limit, nothing that waits, and a breaker forced open: `+Inf`, and not a missing series."""
    async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:
        fallback = localdelay.Fallback(Primary(), queue)
        fallback.force_open()
        samples = scrape(registry_of(Collector(queue, fallback)))
    for name in ("capacity_bytes", "next_due_seconds", "breaker_retry_after_seconds"):
        assert value(samples, f"localdelay_{name}") == math.inf
    assert value(samples, "localdelay_breaker_state", state="forced_open") == 1


async def test_counters_never_decrease(autojump_clock: trio.testing.MockClock) -> None:
    """Over a run with failures, cancellations and a drain, what is a counter only rises."""

    async def fail_at_first(message: Message) -> None:
        await trio.sleep(0.02)
        if message.attempt == 1:
            raise ConnectionError

    last: Samples = {}
    rising = re.compile(r".*(_total|_bucket|_count|_sum)$")
    async with localdelay.open_delay_queue(fail_at_first, capacity=50, workers=3) as queue:
        fallback = localdelay.Fallback(Primary(), queue, mode="forced")
        registry = registry_of(Collector(queue, fallback))
        for number in range(40):
            await fallback.publish(b"x", delay=number / 10)
            if number % 5 == 0:
                queue.cancel(queue.put_nowait(b"y", delay=90.0).id)
            await trio.sleep(0.05)
            samples = scrape(registry)
            conserved(samples)
            for key in last:
                assert not rising.match(key[0]) or samples[key] >= last[key], key
            last = samples
        await queue.drain()
    assert value(scrape(registry), "localdelay_sent_messages_total") == 40
    assert len([key for key in last if rising.match(key[0])]) > 80


def families() -> list[Metric]:
    return list(Collector().describe())


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_names_and_units_are_prometheus_s(family: Metric) -> None:
    """As `promtool check metrics` wants them: prefix, base units last, `_total` for counters alone."""
    assert re.fullmatch(r"localdelay(_[a-z]+)+", family.name)
    assert family.documentation.endswith(".") or ";" in family.documentation
    assert family.type in ("counter", "gauge", "histogram")
    words = family.name.split("_")
    units = {"seconds", "bytes", "messages"}
    others = {"milliseconds", "ms", "minutes", "hours", "kilobytes", "kb", "mb", "percent", "time"}
    assert not others & set(words)
    assert not {"counter", "gauge", "histogram", "total", "count", "sum", "bucket"} & set(words)
    assert not units & set(words[:-1])
    assert family.unit == (words[-1] if words[-1] in ("seconds", "bytes") else "")
    assert family.type != "histogram" or family.unit == "seconds"


def test_every_term_of_the_statistics_is_exported() -> None:
    """A field that is added is not forgotten here; of keys there may be too many for a label each."""
    ours = {*OF_QUEUES.values(), *HISTOGRAMS.values(), "keys"}
    assert ours == {field.name for field in Statistics.__attrs_attrs__}
    fallback = {*OF_FALLBACKS.values(), "primary", "local", "degraded", "breaker", "mode", "keys"}
    assert fallback == {field.name for field in FallbackStatistics.__attrs_attrs__}


@pytest.mark.parametrize("statistics", ["fallback.router.FallbackStatistics", "statistics.Statistics"])
def test_a_figure_that_is_added_is_exported(statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named after its field: none is left out unseen."""
    spec = importlib.util.spec_from_file_location("localdelay.metrics_again", localdelay.metrics.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    holder, name = f"localdelay.{statistics}".rsplit(".", 1)
    of_before = getattr(sys.modules[holder], name)
    added = attrs.make_class(name, {"added": attrs.field(type=int)}, bases=(of_before,), kw_only=True)
    monkeypatch.setattr(sys.modules[holder], name, added)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prefix = "fallback_" if "Fallback" in name else ""
    assert f"localdelay_{prefix}added" in {family.name for family in module.Collector().describe()}


def test_each_family_has_one_help_and_one_type() -> None:
    """With two queues there is still one `# HELP` and one `# TYPE` line a name, as the format demands."""
    with on_trio() as (collector, _), threads.open_delay_queue(print, capacity=1, workers=1) as other:
        collector.add(other, labels={"queue": "other"})
        text = generate_latest(registry_of(collector)).decode()
    for kind in ("HELP", "TYPE"):
        names = re.findall(rf"^# {kind} (\S+) \S", text, re.MULTILINE)
        assert len(names) == len(set(names))
        assert len(names) == len(families())
    assert "# TYPE localdelay_accepted_messages_total counter\n" in text
    assert "# TYPE localdelay_lateness_seconds histogram\n" in text
    assert "# TYPE localdelay_breaker_state gauge\n" in text


async def test_queues_are_told_apart_by_labels() -> None:
    """Several of them in one registry, and removed from it one by one."""
    async with (
        localdelay.open_delay_queue(send, capacity=1, workers=1) as one,
        localdelay.open_delay_queue(send, capacity=2, workers=1) as two,
    ):
        collector = Collector()
        registry = registry_of(collector)
        assert scrape(registry) == {}
        collector.add(one, labels={"queue": "one", "zone": "a"})
        collector.add(two, labels={"zone": "a", "queue": 'two "\\\n'})
        for samples in (scrape(registry), scrape_openmetrics(registry)):
            assert value(samples, "localdelay_capacity_messages", queue="one", zone="a") == 1
            assert value(samples, "localdelay_capacity_messages", queue='two "\\\n', zone="a") == 2
        collector.remove(one)
        assert {dict(labels)["queue"] for _, labels in scrape(registry)} == {'two "\\\n'}
        collector.remove(two)
        assert scrape(registry) == {}
        collector.add(one)
        assert value(scrape(registry), "localdelay_up") == 1


async def test_duplicates_are_refused() -> None:
    """A queue or its labels twice in a collector, or two collectors in a registry: never a double series."""
    async with (
        localdelay.open_delay_queue(send, capacity=1, workers=1) as one,
        localdelay.open_delay_queue(send, capacity=1, workers=1) as two,
    ):
        collector = Collector(one, labels=QUEUE_LABELS)
        with pytest.raises(ValueError, match="exported already"):
            collector.add(one, labels={"queue": "again"})
        with pytest.raises(ValueError, match="differ"):
            collector.add(two, labels=QUEUE_LABELS)
        with pytest.raises(ValueError, match="named"):
            collector.add(two)
        with pytest.raises(ValueError, match="named"):
            collector.add(two, labels={"queue": "two", "zone": "a"})
        registry = registry_of(collector)
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(Collector(two, labels={"queue": "two"}))
        with pytest.raises(ValueError, match="not exported"):
            collector.remove(two)
        assert len({labels for name, labels in scrape(registry) if name == "localdelay_up"}) == 1


async def test_bad_arguments_are_refused() -> None:
    """By their names, at the call."""
    async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:
        for bad in ("le", "route", "reason", "state", "mode", "__x", "a-b", "1a", ""):
            with pytest.raises(ValueError, match=f"labels must not have one named {bad!r}"):
                Collector(queue, labels={bad: "x"})
        for labels in ({"queue": 1}, {1: "queue"}, ["queue"], "queue"):
            with pytest.raises(TypeError, match="labels"):
                Collector(queue, labels=labels)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="fallback"):
            Collector(queue, Primary())  # type: ignore[arg-type]
        for timeout in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match="timeout"):
                Collector(queue, timeout=timeout)
        with pytest.raises(TypeError, match="timeout"):
            Collector(queue, timeout=None)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="loop that runs it"):
            await trio.to_thread.run_sync(Collector, queue)
    with pytest.raises(TypeError, match="queue"):
        Collector(object())  # type: ignore[arg-type]
    for given in ({"labels": QUEUE_LABELS}, {"fallback": Primary()}):
        with pytest.raises(TypeError, match="belong to a queue"):
            Collector(**given)


def test_a_missing_package_is_named() -> None:
    """Without the extra, the import says in one line what to install."""
    code = "import sys; sys.modules['prometheus_client'] = None; import localdelay.metrics"
    run = python("-c", code)
    last = run.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: localdelay.metrics needs prometheus-client: "
        "pip install 'localdelay[prometheus]'"
    )


def test_only_one_module_knows_prometheus() -> None:
    """`prometheus_client` is imported by the module that says what is missing without it."""
    package = Path(localdelay.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) prometheus_client", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert users == {"metrics.py"}


def test_metrics_load_no_asyncio() -> None:
    """A threaded program that exports metrics does not load the face for asyncio programs."""
    code = "import sys, localdelay.metrics; print('localdelay.aio' in sys.modules)"
    run = python("-c", code, check=True)
    assert run.stdout.strip() == "False"
