"""`localdelay plan`: what to reserve for a given traffic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import click

from localdelay import arguments
from localdelay.capacity import (
    DEFAULT_TARGET_P99,
    CapacityPlan,
    RedisPlan,
    RedisQueuePlan,
    plan_capacity,
    queueing_p99,
    resident_bytes,
)
from localdelay.cli.options import DURATION, SHARE, SIZE, naming_options, option, report_options
from localdelay.cli.output import Block, Output, Row, Styled, Table
from localdelay.units import counted, format_duration, format_number, format_size, three_digits

_EXAMPLE = """\b
Example:
  localdelay plan --qps 100k --delay 2m --instances 500 \\
    --message-bytes 500 --send-time 100ms
"""
_PLAIN_COST = 1.0


@click.command(epilog=_EXAMPLE)
@option("--qps", float, "Delayed messages per second, in the whole cluster: 500, 100k.", required=True)
@option("--delay", DURATION, "How long a message waits: 120, 120s, 2m, 1.5h, 1d.", required=True)
@option("--instances", int, "Instances that share the traffic evenly.", required=True)
@option("--message-bytes", SIZE, "Payload and headers of a message: 500, 500B, 2kB, 1MiB.", required=True)
@option("--worker-qps", float, "Sends per second that one worker manages; or give --send-time.")
@option("--send-time", DURATION, "How long one send takes, in place of --worker-qps: 100ms.")
@option(
    "--target-p99",
    DURATION,
    "Lateness by queueing that 99 % of the messages stay within: 0.1, 100ms.",
    DEFAULT_TARGET_P99,
)
@option(
    "--degraded-share", SHARE, "Part of the traffic that the queue refuses and that is held here: 30%.", 1.0
)
@option("--outage", DURATION, "How long sending may fail without filling up.", 0.0)
@option("--quota", float, "Calls per second that the queue takes of all instances: what is over it is held.")
@option(
    "--delayed-cost", float, "Calls that a delayed publish counts as; a plain send counts as 1.", _PLAIN_COST
)
@report_options
def plan(*, form: str | None, send_time: float | None, **figures: Any) -> None:
    """Work out what each instance must reserve.

    That is messages, bytes and workers: on average, and for a target of lateness. Beside it, what the
    same traffic would ask of Redis.
    """
    if (send_time is None) == (figures["worker_qps"] is None):
        raise click.UsageError("exactly one of --worker-qps and --send-time must be given")
    if figures["quota"] is None and figures["delayed_cost"] != _PLAIN_COST:
        raise click.UsageError("--delayed-cost is for --quota")
    with naming_options():
        if send_time is not None:
            figures["worker_qps"] = 1 / arguments.at_least("send_time", send_time, 1e-9)
        result = plan_capacity(**figures)
    report = list(_report(result, SimpleNamespace(**figures)))
    # No quota, nothing said of one.
    Output().report(form, report, attrs.asdict(result, filter=lambda _, value: value is not None))


def _report(result: CapacityPlan, asked: SimpleNamespace) -> Iterator[Block]:
    held = result.rate_per_instance * asked.instances
    if result.native_rate is not None:
        yield from _quota(result.native_rate, asked, held)
        if not held:
            return
    share = "" if held == asked.qps else f"{_percent(held / asked.qps)} of "
    yield Styled(
        f"Held here: {share}{format_number(asked.qps)} messages/s of"
        f" {format_number(asked.message_bytes)} bytes for {format_number(asked.delay)} s,"
        f" by {counted(asked.instances, 'instance')}",
        "bold",
    )
    yield (
        f"In all {result.cluster_backlog:,} messages,"
        f" {result.cluster_bytes:,} bytes ({format_size(result.cluster_bytes)})"
    )
    target, outage = map(format_duration, (asked.target_p99, asked.outage))
    yield Styled(
        f"Each instance, at {format_number(result.rate_per_instance)} messages/s"
        f" (target: p99 lateness {target}, outage {outage})",
        "bold",
    )
    yield _instance(result, asked)
    for line in _advice(result, asked):
        yield Styled(line, "yellow")
    yield ""
    yield Styled("The same in Redis sorted sets, polled every 200 ms by every instance", "bold")
    yield _redis(result.redis, result.redis_queue)


def _quota(native: float, asked: SimpleNamespace, held: float) -> Iterator[str]:
    """What passes natively at the beginning of a peak, and when what is held is due and takes its share."""
    natives = native, asked.qps - held
    first, later = (_per_second(three_digits(rate)) for rate in natives)
    held_first, held_later = (_per_second(three_digits(asked.qps - rate)) for rate in natives)
    cost, quota = format_number(asked.delayed_cost), format_number(asked.quota)
    yield Styled(f"Of a quota of {quota} calls/s, of which a delayed publish counts as {cost}", "bold")
    yield f"  natively {first}, held {held_first}; {later} and {held_later} once that comes due"
    times = "" if asked.delayed_cost == 1 else f": {cost} times as much"
    yield f"  held and sent when due, the quota carries {quota}/s{times}"
    if asked.qps > asked.quota:
        yield Styled("  the traffic is over the quota: what is held leaves when the peak is over", "yellow")


def _instance(result: CapacityPlan, asked: SimpleNamespace) -> Table:
    counts = result.capacity, result.capacity_for_target
    pools = result.workers, result.workers_for_target
    size, speed = asked.message_bytes, format_number(asked.worker_qps)
    memory = [resident_bytes(count, size) for count in counts]
    busy = [result.utilisation * result.workers / pool for pool in pools]
    rows = [
        Row("  capacity", counts, format_number, "messages"),
        Row("  payload", [count * size for count in counts], format_number, "bytes"),
        Row("  memory", memory, format_number, "bytes, besides the interpreter"),
        Row("  workers", pools, format_number, f"at {speed} sends/s each"),
        Row("  utilisation", busy, _percent, "of the workers' time"),
        Row("  lateness p99", [_late(result, pool, asked) for pool in pools], _lateness, "by queueing"),
    ]
    return Table(("on average", "for the target"), rows)


def _redis(redis: RedisPlan, queue: RedisQueuePlan) -> Table:
    zadd, zrange, setnx = map(format_number, (redis.zadd_per_s, redis.zrange_per_s, redis.setnx_per_s))
    idle, memory = format_number(queue.idle_commands_per_s), format_size(queue.memory_bytes)
    rows = [
        Row("  keys", [redis.keys], format_number, f"of up to {redis.elements_per_key:,} elements"),
        Row("  reads", [redis.reads_per_s], _per_second, f"zrange {zrange}/s + setnx {setnx}/s"),
        Row("  writes", [redis.writes_per_s], _per_second, f"zadd {zadd}/s + zrem {zadd}/s"),
        Row("  memory", [redis.memory_bytes], format_size, "in Redis"),
        Row(
            "  without polls",
            [three_digits(queue.commands_per_s)],
            _per_second,
            f"localdelay.redis_plan, idle {idle}/s; {memory}",
        ),
    ]
    return Table([""], rows)


def _late(result: CapacityPlan, workers: int, asked: SimpleNamespace) -> float:
    return queueing_p99(workers, rate=result.rate_per_instance, worker_qps=asked.worker_qps)


def _lateness(lateness: float) -> str:
    return "without bound" if math.isinf(lateness) else format_duration(lateness)


def _per_second(rate: float) -> str:
    return f"{format_number(rate)}/s"


def _advice(result: CapacityPlan, asked: SimpleNamespace) -> Iterator[str]:
    yield (
        f"{result.capacity:,} is what waits on average, and full at the first late send: give it a capacity "
        f"of {result.capacity_for_target:,}."
    )
    workers = counted(result.workers, "worker")
    give = f"give it {counted(result.workers_for_target, 'worker')}."
    if result.utilisation >= 1:
        yield f"{workers} at 100 %: lateness grows without bound; {give}"
    elif result.workers < result.workers_for_target:
        lateness = _lateness(_late(result, result.workers, asked))
        yield f"With {workers} p99 lateness is {lateness}, over the target; {give}"


def _percent(share: float) -> str:
    if share < 0.01:
        return f"{format_number(share * 100)} %"
    # 100 % is said of nothing less: it is the one figure with a meaning of its own.
    percent = 100.0 if share >= 1 else min(round(share * 100, 1), 99.9)
    return f"{format_number(percent)} %"
