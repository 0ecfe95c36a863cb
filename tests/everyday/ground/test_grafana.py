"""The dashboard for Grafana and the alert rules ask for nothing that the collector does not export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

import localdelay
from localdelay import BreakerState, Message, Throttled
from localdelay.metrics import Collector

PACKAGE = Path(localdelay.__file__).parent
DASHBOARD = PACKAGE / "grafana.json"
RULES = re.findall(r"^ +expr: (.*)$", (PACKAGE / "alerts.yml").read_text(encoding="utf-8"), re.MULTILINE)
OF_PROMETHEUS = {"instance"}
"""Labels that Prometheus adds to what it has scraped."""
SELECTOR = re.compile(r"\b(localdelay_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
VARIABLES = {"queue", "instance", "datasource", "__rate_interval"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def panel_named(title: str) -> dict[str, Any]:
    (panel,) = (panel for panel in panels() if panel["title"] == title)
    return panel


async def send(message: Message) -> None:
    await trio.lowlevel.checkpoint()
    if message.payload == b"bad":
        raise Throttled


async def take(message: Message, delay: float) -> None:
    await trio.lowlevel.checkpoint()


Sample = tuple[dict[str, str], float]


def scraped(registry: CollectorRegistry) -> dict[str, list[Sample]]:
    """All samples by their names, as Prometheus would store them."""
    found: dict[str, list[Sample]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            labels = {**sample.labels, "instance": "here"}
            found.setdefault(sample.name, []).append((labels, sample.value))
    return found


def evaluate(expr: str, samples: dict[str, list[Sample]]) -> float:
    """The value of sums and differences of series, where each selector has one."""

    def look_up(selector: re.Match[str]) -> str:
        fixed = {name: value for name, how, value in MATCHER.findall(selector[2]) if how == "="}
        (value,) = (v for labels, v in samples[selector[1]] if fixed.items() <= labels.items())
        return repr(float(value))

    arithmetic = SELECTOR.sub(look_up, expr).replace("sum by (queue, instance)", "")
    assert re.fullmatch(r"[-+*() 0-9.]+", arithmetic), arithmetic
    return float(eval(arithmetic))


def test_it_can_be_imported() -> None:
    """Grafana's classic model: no id, so that it makes a new one; and every panel in a place of its own."""
    found = dashboard()
    assert (found["id"], found["uid"], found["title"]) == (None, "localdelay", "localdelay")
    assert found["schemaVersion"] >= 41
    assert {variable["name"] for variable in found["templating"]["list"]} == {
        "datasource",
        "queue",
        "instance",
    }
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_panel_says_what_it_shows() -> None:
    """A title, a sentence, a unit or a mapping, and queries of the chosen data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == source
        assert panel["targets"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["legendFormat"]


@pytest.mark.parametrize("expr", sorted(set(expressions())))
def test_the_variables_are_there(expr: str) -> None:
    """Every series is chosen by the variables, and there is no variable that nobody has defined."""
    assert set(re.findall(r"\$(\w+)", expr)) <= VARIABLES
    assert expr.count("(") == expr.count(")")
    if not expr.startswith("label_values"):
        for _, matchers in SELECTOR.findall(expr):
            chosen = {(name, how, value) for name, how, value in MATCHER.findall(matchers)}
            assert {("queue", "=~", "$queue"), ("instance", "=~", "$instance")} <= chosen


async def test_every_metric_and_label_is_exported(autojump_clock: trio.testing.MockClock) -> None:
    """Names, labels and fixed values of labels in each expression are those of a scrape."""
    async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:
        registry = CollectorRegistry()
        registry.register(Collector(queue, localdelay.Fallback(take, queue), labels={"queue": "orders"}))
        samples = scraped(registry)
    used: set[str] = set()
    for expr in (*expressions(), *RULES):
        labels_there = {*OF_PROMETHEUS}
        for name, matchers in SELECTOR.findall(expr):
            assert name in samples, expr
            used.add(name)
            labels_there |= {label for labels, _ in samples[name] for label in labels}
            for label, how, value in MATCHER.findall(matchers):
                values = {labels[label] for labels, _ in samples[name]}
                assert how == "=~" or value in values, expr
        for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
            assert {label.strip() for label in grouping.split(",")} <= labels_there, expr
    assert len(used) >= 30
    for legend in (target["legendFormat"] for panel in panels() for target in panel["targets"]):
        assert set(re.findall(r"{{(\w+)}}", legend)) <= {"queue", "instance", "route", "reason", "le"}


async def test_the_conservation_panel_stays_at_zero(autojump_clock: trio.testing.MockClock) -> None:
    """Its expressions, worked out on what is scraped during a run; a lost message would show."""
    checks = [target["expr"] for target in panel_named("Conservation")["targets"]]
    registry = CollectorRegistry()
    async with localdelay.open_delay_queue(
        send, capacity=50, workers=3, retry=localdelay.RetryPolicy(wait_jitter=0), limit=None
    ) as queue:
        registry.register(Collector(queue))
        for number in range(40):
            queue.put_nowait(b"bad" if number % 3 == 0 else b"good", delay=number / 10)
            queue.cancel(queue.put_nowait(b"cancelled", delay=90.0).id)
            await trio.sleep(0.05)
            assert [evaluate(expr, scraped(registry)) for expr in checks] == [0.0, 0.0]
        await queue.drain(1.0, take)
        assert [evaluate(expr, scraped(registry)) for expr in checks] == [0.0, 0.0]
        statistics = queue.statistics()
        assert min(statistics.sent, statistics.cancelled, statistics.handed_back) > 0
        queue.core.pending.ledger.accepted += 1
        assert [evaluate(expr, scraped(registry)) for expr in checks] == [1.0, 0.0]
        queue.core.pending.ledger.accepted -= 1


@pytest.mark.parametrize("state", list(BreakerState))
async def test_the_breaker_panel_names_the_state(
    state: BreakerState, autojump_clock: trio.testing.MockClock
) -> None:
    """The number that it draws is mapped to the state that the breaker is in."""
    panel = panel_named("Breaker")
    async with localdelay.open_delay_queue(send, capacity=1, workers=1) as queue:
        fallback = localdelay.Fallback(take, queue)
        registry = CollectorRegistry()
        registry.register(Collector(queue, fallback))
        fallback._router.gates.only._breaker.state = state
        number = evaluate(panel["targets"][0]["expr"], scraped(registry))
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    shown = mapping["options"][str(int(number))]["text"]
    assert shown == state.value.replace("half_open", "half-open").replace("_", " ")
