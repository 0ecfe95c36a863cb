"""What is public, name by name: an export that is added or lost is to be seen."""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import Any

import pytest
import trio

import localdelay
from tests.kit.programs import python

PUBLIC = {
    "localdelay": """
        AdaptiveLimit BatchPolicy BreakerOpen BreakerPolicy BreakerState Cancelled CapacityPlan
        DeadLetterHook DelayNotSupported DelayQueue DrainPlan DrainReport Expired Fallback
        FallbackStatistics HandBack Journal JournalError LatencySummary Listener LocalDelayError Message
        PartialSendError PermanentSendError ProbePolicy QueueClosed QueueFull RateLimit RateLimited
        Reason Receipt RedisPlan RedisQueuePlan RetryPolicy Route Send SendBatch SqliteJournal
        Statistics Throttled blocking brokers costs events open_delay_queue plan_capacity plan_drain
        run_until_signal threads
    """,
    "localdelay.threads": "DelayQueue Fallback open_delay_queue start_delay_queue",
    "localdelay.aio": "DelayQueue Fallback open_delay_queue start_delay_queue",
    "localdelay.brokers": (
        "STDOUT Broker ConnectionClosed ConnectionLost check_url hide_secrets open_broker without_secrets"
    ),
    "localdelay.costs": "APSARA_ROCKETMQ ByParts Cost TDMQ_ROCKETMQ",
    "localdelay.events": """
        Closed DeadLetter Degraded Event Full HalfOpened HandedBack LimitBegan LimitEnded Opened SendingOpened
        SendingShut
    """,
    "localdelay.redis_plan": (
        "RedisDelayQueue RedisStatistics RedisTuning RedisUnreachable check_url open_redis_delay_queue"
    ),
    "localdelay.metrics": "Collector serve",
    "localdelay.testing": "FailingSender MovableClock RecordingSender ThrottledPrimary",
}

EXAMPLE = (localdelay.__doc__ or "").partition(":\n\n")[2].partition("\n\n`")[0]
"""The lines of the docstring's example, indented as they stand there."""


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public(name: str) -> None:
    """Exactly these names stand in `__all__`, each is there, and what can be called says what it does."""
    module = import_module(name)
    assert sorted(module.__all__) == sorted(PUBLIC[name].split())
    for public in module.__all__:
        found = getattr(module, public)
        if isinstance(found, FunctionType | type):
            assert found.__doc__, public


def test_the_package_names_its_public_modules() -> None:
    """Its docstring names each of these modules, and says that all else is private."""
    told = localdelay.__doc__ or ""
    assert all(f"`{name}`" in told for name in PUBLIC if name != "localdelay")
    assert told.rstrip().endswith("What is in no `__all__` of these modules is private.")


def _stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_help_begins_with_what_it_is() -> None:
    """`help(localdelay)` begins with a sentence and an example, and has no table for developers."""
    code = "import pydoc, localdelay; print(pydoc.plain(pydoc.render_doc(localdelay)))"
    run = python("-c", code, check=True)
    first = run.stdout.partition("PACKAGE CONTENTS")[0]
    assert "Hold the delayed messages that a throttled queue refuses, and send each when it is due." in first
    assert _stripped(EXAMPLE) in _stripped(first)
    assert len(EXAMPLE.splitlines()) in range(8, 13)
    assert len(first.splitlines()) < 40


async def test_the_example_runs(autojump_clock: trio.testing.MockClock) -> None:
    """What the refusing queue of the example does not take is held, and sent when it is due."""
    published: list[tuple[float, bytes, float]] = []
    began = trio.current_time()

    class Client:
        async def publish(self, payload: bytes, *, id: str, delay: float = 0.0) -> None:
            if delay:
                raise localdelay.Throttled
            published.append((trio.current_time() - began, payload, delay))

    printed: list[tuple[object, ...]] = []
    names: dict[str, Any] = {
        "localdelay": localdelay,
        "client": Client(),
        "print": lambda *told: printed.append(told),
    }
    exec(f"async def main():\n{EXAMPLE}", names)
    await names["main"]()
    assert printed == [(localdelay.Route.LOCAL, 1)]
    assert published == [(120.0, b"close order 7", 0.0)]
