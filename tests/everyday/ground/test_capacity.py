"""The sizing formulas: the worked example to the last digit, and queueing theory against its sources."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdelay.capacity import (
    BYTES_HEADER,
    LARGEST,
    MOST_WORKERS,
    QUEUE_OVERHEAD,
    REDIS_OVERHEAD,
    REDIS_OVERHEAD_POLLED,
    CapacityPlan,
    RedisPlan,
    RedisQueuePlan,
    erlang_c,
    plan_capacity,
    queueing_p99,
    redis_queue_commands,
)

EXAMPLE: dict[str, Any] = {
    "qps": 100_000,
    "delay": 120,
    "instances": 500,
    "message_bytes": 500,
    "worker_qps": 10,
}


def example(**changes: Any) -> CapacityPlan:
    return plan_capacity(**{**EXAMPLE, **changes})


def test_the_worked_example_comes_out_to_the_last_digit() -> None:
    """Every figure of the write-up, for both plans, and every figure that is added to it."""
    assert example() == CapacityPlan(
        cluster_backlog=12_000_000,
        cluster_bytes=6_000_000_000,
        rate_per_instance=200,
        capacity=24_000,
        payload_bytes=12_000_000,
        resident_bytes=24_000 * (500 + BYTES_HEADER + QUEUE_OVERHEAD),
        workers=20,
        utilisation=1.0,
        target_p99=0.1,
        workers_for_target=24,
        capacity_for_target=24_795,
        redis=RedisPlan(
            keys=3_000,
            elements_per_key=4_000,
            zadd_per_s=100_000,
            zrange_per_s=15_000,
            setnx_per_s=7_500_000,
            reads_per_s=7_515_000,
            writes_per_s=200_000,
            memory_bytes=12_000_000 * (500 + REDIS_OVERHEAD_POLLED),
        ),
        redis_queue=RedisQueuePlan(
            shards=3_000,
            commands_per_s=41_305 + 5 / 24,
            idle_commands_per_s=800,
            memory_bytes=12_000_000 * (500 + REDIS_OVERHEAD),
        ),
    )
    assert sys.getsizeof(b"") == BYTES_HEADER


def test_commands_without_polls_are_those_that_were_measured() -> None:
    """200, 1,000 and 5,000 messages/s of one instance took 82, 112 and 176 commands/s; and idle 1.6."""
    for rate, measured in ((0, 1.6), (200, 82), (1000, 112), (5000, 176)):
        assert redis_queue_commands(rate, 1) == pytest.approx(measured, rel=0.07)
    # Hardly any message: a put, a claim and a confirmation each.
    assert redis_queue_commands(0.01, 1) == pytest.approx(1.6 + 0.03, abs=0.001)
    assert redis_queue_commands(400, 2) == 2 * redis_queue_commands(200, 1)


@pytest.mark.parametrize(
    ("rate", "seconds", "capacity"),
    [
        (1, 99.9, 150),  # mean 100, 5 standard deviations 50: whole, and not rounded up
        (1, 1.9, 10),  # mean 2, 5 · 1.414 = 7.07
        (0.5, 0.9, 5),  # mean 0.5, 5 · 0.707 = 3.54
        (200, 120, 24_795),  # mean 24,020, 5 · 154.98 = 774.92
    ],
)
def test_capacity_for_target_is_the_mean_and_five_sigma(rate: float, seconds: float, capacity: int) -> None:
    """The room is (delay + target) · rate and 5 standard deviations of a Poisson count, rounded up."""
    plan = plan_capacity(qps=rate, delay=seconds, instances=1, message_bytes=1, worker_qps=10, target_p99=0.1)
    assert plan.capacity_for_target == capacity


def test_binary_fractions_do_not_round_up_one_too_many() -> None:
    """1.1 · 50 and 2.1 / 0.3 are 55 and 7, which binary floating point misses by a little."""
    assert math.ceil(1.1 * 50) == 56
    assert math.ceil(2.1 / 0.3) == 8
    plan = plan_capacity(qps=1.1, delay=50, instances=1, message_bytes=1, worker_qps=1)
    assert (plan.capacity, plan.cluster_backlog) == (55, 55)
    plan = plan_capacity(qps=2.1, delay=1, instances=1, message_bytes=1, worker_qps=0.3)
    assert (plan.workers, plan.utilisation) == (7, 1)


@given(tenths=st.integers(1, 10**6), hundredths=st.integers(1, 10**5), instances=st.integers(1, 2_000))
def test_capacity_is_the_decimal_product_rounded_up(tenths: int, hundredths: int, instances: int) -> None:
    """The capacity is ⌈qps · delay / instances⌉ in decimal arithmetic."""
    plan = plan_capacity(
        qps=tenths / 10, delay=hundredths / 100, instances=instances, message_bytes=10, worker_qps=1_000
    )
    assert plan.capacity == -(-tenths * hundredths // (1_000 * instances))
    assert plan.cluster_backlog == -(-tenths * hundredths // 1_000)
    assert plan.capacity <= plan.capacity_for_target
    assert plan.payload_bytes == 10 * plan.capacity
    assert 0 < plan.utilisation <= 1
    assert plan.redis.keys * plan.redis.elements_per_key >= plan.cluster_backlog


@pytest.mark.parametrize(
    ("message_bytes", "elements"),
    [(1, 4_000), (500, 4_000), (2_000, 4_000), (2_001, 3_998), (1_000_000, 8), (9_000_000, 1)],
)
def test_large_messages_make_smaller_keys(message_bytes: int, elements: int) -> None:
    """A key keeps under 4,000 elements and 8 MB, but always has room for one message."""
    redis = example(message_bytes=message_bytes).redis
    assert redis.elements_per_key == elements
    assert redis.keys == math.ceil(12_000_000 / elements)


def direct_erlang_c(servers: int, load: Fraction) -> Fraction:
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / Fraction(math.factorial(k)) for k in range(servers)) + last)


@settings(deadline=None)
@given(servers=st.integers(1, 60), thousandths=st.integers(1, 999))
def test_erlang_c_agrees_with_the_sum_that_defines_it(servers: int, thousandths: int) -> None:
    """The textbook sum in exact fractions, for every utilisation up to 99.9 %."""
    load = servers * Fraction(thousandths, 1000)
    assert erlang_c(servers, load) == pytest.approx(float(direct_erlang_c(servers, load)), rel=1e-12)


@pytest.mark.parametrize("servers", [10**4, 10**6, 10**8])
@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_erlang_c_meets_its_limit_for_many_servers(servers: int, beta: float) -> None:
    """Halfin and Whitt 1981: with c = a + β·√a, C tends to 1 / (1 + β·Φ(β)/φ(β))."""
    load = (math.sqrt(servers + beta * beta / 4) - beta / 2) ** 2
    density = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
    limit = 1 / (1 + beta * (1 + math.erf(beta / math.sqrt(2))) / 2 / density)
    assert erlang_c(servers, load) == pytest.approx(limit, rel=4 / math.sqrt(servers))


@pytest.mark.parametrize(
    ("servers", "load", "waiting"),
    [
        (20, 20, 1.0),
        (3, 4.5, 1.0),
        (1, 0, 0.0),
        (10**6, 1e-3, 0.0),
        (1, 1e-308, 1e-308),
        (1, Fraction(1, 10**400), 0.0),
    ],
)
def test_erlang_c_at_its_edges(servers: int, load: float, waiting: float) -> None:
    """Certain once the load reaches the servers, and no overflow where it is next to nothing."""
    assert erlang_c(servers, load) == pytest.approx(waiting)


def test_queueing_p99_without_a_bound_and_without_a_wait() -> None:
    """Infinite where the workers are busy all the time, 0 where fewer than one in a hundred waits."""
    assert queueing_p99(20, rate=200, worker_qps=10) == math.inf
    assert queueing_p99(19, rate=200, worker_qps=10) == math.inf
    assert queueing_p99(1, rate=0.01, worker_qps=10) == 0


@settings(deadline=None)
@given(rate=st.floats(0.01, 50_000), worker_qps=st.floats(0.5, 1_000), target=st.floats(1e-6, 10))
def test_workers_for_target_is_the_fewest(rate: float, worker_qps: float, target: float) -> None:
    """So many keep to the target, one less would not, and they are never fewer than the average asks."""
    plan = plan_capacity(
        qps=rate, delay=1, instances=1, message_bytes=1, worker_qps=worker_qps, target_p99=target
    )
    fewest = plan.workers_for_target
    assert queueing_p99(fewest, rate=rate, worker_qps=worker_qps) <= target
    assert fewest == 1 or queueing_p99(fewest - 1, rate=rate, worker_qps=worker_qps) > target
    assert fewest >= plan.workers


def test_a_million_workers_are_planned_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search probes a few dozen pool sizes, not every one up to a million."""
    probes = 0

    def counting(servers: int, load: float | Fraction) -> float:
        nonlocal probes
        probes += 1
        return erlang_c(servers, load)

    monkeypatch.setattr("localdelay.capacity.erlang_c", counting)
    plan = plan_capacity(qps=1_000_000, delay=1, instances=1, message_bytes=1, worker_qps=1)
    assert plan.workers_for_target == 1_000_046
    assert probes < 30


NUMBERS = ["qps", "delay", "worker_qps", "degraded_share", "target_p99", "outage", "quota", "delayed_cost"]
WHOLE = ["instances", "message_bytes"]


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_or_out_of_range_is_refused_by_name(name: str) -> None:
    """Negative, NaN, infinite, absurdly large or foreign: the error starts with the argument's name."""
    for value in (-1, -0.5, math.nan, math.inf, -math.inf, Fraction(-1, 3), 10**400, 1e16):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            example(**{name: value})
    for foreign in ("10", True, 1j, Decimal(1), b"1", [1]):
        with pytest.raises(TypeError, match=f"^{name} must be a number, not "):
            example(**{name: foreign})
    if name != "outage":
        with pytest.raises(ValueError, match=f"^{name} must be more than 0, not 0$"):
            example(**{name: 0})


@pytest.mark.parametrize("name", WHOLE)
def test_a_count_is_whole_and_in_range_or_refused_by_name(name: str) -> None:
    """There is at least one instance, and one byte; half of one is none, nor is a float that is whole."""
    for value in (0, -1, LARGEST + 1):
        with pytest.raises(ValueError, match=f"^{name} must be at (least 1, not {value}|most 1,000,)"):
            example(**{name: value})
    for foreign in (500.0, 0.5, math.nan, math.inf, "500", None, True):
        with pytest.raises(TypeError, match=f"^{name} must be a whole number, not "):
            example(**{name: foreign})


def test_too_many_workers_are_refused_at_once() -> None:
    """A pool past the bound is a slip in the figures; the bound itself is still planned."""
    with pytest.raises(ValueError, match=r"^worker_qps is too small: .* more than 100,000,000 workers$"):
        plan_capacity(qps=MOST_WORKERS + 1, delay=1, instances=1, message_bytes=1, worker_qps=1)
    plan = plan_capacity(qps=MOST_WORKERS, delay=1, instances=1, message_bytes=1, worker_qps=1)
    assert plan.workers == MOST_WORKERS


def test_the_smallest_figures_are_planned_without_overflow() -> None:
    """Next to no traffic on very fast workers still needs one worker and room for a message."""
    plan = plan_capacity(
        qps=5e-324, delay=5e-324, instances=LARGEST, message_bytes=1, worker_qps=1e15, target_p99=5e-324
    )
    assert (plan.capacity, plan.workers, plan.workers_for_target) == (1, 1, 1)


def test_the_largest_figures_are_planned_without_overflow() -> None:
    """All figures at their bound stay exact."""
    plan = plan_capacity(
        qps=1e15,
        delay=1e15,
        instances=1,
        message_bytes=LARGEST,
        worker_qps=1e15,
        target_p99=1e15,
        outage=1e15,
    )
    assert plan.cluster_bytes == LARGEST**3
    assert plan.redis.elements_per_key == 1


def test_positional_arguments_are_refused() -> None:
    """Eight numbers in a row would be mixed up."""
    with pytest.raises(TypeError):
        plan_capacity(100_000, 120, 500, 500, 10)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("qps", "cost", "native", "held", "sized"),
    [
        (500, 5, 200, 300, 375),  # later 125 pass: 125 · 5 + 375 = 1,000
        (1_000, 5, 200, 800, 1_000),  # all of the quota goes to what is due
        (4_000, 5, 200, 3_800, 4_000),
        (2_000, 1, 1_000, 1_000, 2_000),
        (200, 5, 200, 0, 0),
        (10, 5, 10, 0, 0),
        (600, 2.5, 400, 200, Fraction(1_000, 3)),
    ],
)
def test_a_quota_says_how_much_is_held(
    qps: float, cost: float, native: float, held: float, sized: Fraction | int
) -> None:
    """Of 1,000 calls/s, at the beginning of a peak and when what is held is due; sizes are for the latter."""
    plan = example(qps=qps, instances=1, quota=1_000, delayed_cost=cost)
    assert (plan.native_rate, plan.held_rate, plan.times_the_traffic) == (native, held, cost)
    assert plan.rate_per_instance == pytest.approx(float(sized))
    assert plan.capacity == math.ceil(sized * 120)


def test_a_quota_leaves_no_share_to_choose() -> None:
    """A share is at most all of the traffic, and a delayed publish costs no less than another."""
    for share in (1.0000001, 2):
        with pytest.raises(ValueError, match=r"^degraded_share must be at most 1$"):
            example(degraded_share=share)
    with pytest.raises(ValueError, match=r"^degraded_share must be left out beside a quota"):
        example(quota=1_000, degraded_share=0.5)
    with pytest.raises(ValueError, match=r"^delayed_cost must be at least 1, not 0\.5$"):
        example(quota=1_000, delayed_cost=0.5)
