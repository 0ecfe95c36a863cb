"""`localdelay plan`: what to reserve for a given traffic."""

from __future__ import annotations

import json
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
from localdelay.cli.options import DURATION, SIZE, naming_options, option
from localdelay.cli.output import Output, Styled
from localdelay.units import counted, format_duration, format_number, format_size, three_digits

_EXAMPLE = """\b
Example:
  localdelay plan --qps 100000 --delay 2m --instances 500 \\
    --message-bytes 500 --worker-qps 10
"""


@click.command(epilog=_EXAMPLE)
@option("--qps", float, "Delayed messages per second, in the whole cluster.", required=True)
@option("--delay", DURATION, "How long a message waits: 120, 120s, 2m, 1.5h, 1d.", required=True)
@option("--instances", int, "Instances that share the traffic evenly.", required=True)
@option("--message-bytes", SIZE, "Payload and headers of a message: 500, 500B, 2kB, 1MiB.", required=True)
@option("--worker-qps", float, "Sends per second that one worker manages.")
@option("--send-time", DURATION, "How long one send takes, in place of --worker-qps: 100ms.")
@option(
    "--target-p99",
    DURATION,
    "Lateness by queueing that 99 % of the messages stay within: 0.1, 100ms.",
    DEFAULT_TARGET_P99,
)
@option(
    "--degraded-share",
    float,
    "Part of the traffic, over 0 and up to 1, that the queue refuses and that is held here.",
    1.0,
)
@option("--outage", DURATION, "How long sending may fail without filling up.", 0.0)
@option("--quota", float, "Calls per second that the queue takes of all instances: what is over it is held.")
@option("--delayed-cost", float, "Calls that a delayed publish counts as; a plain send counts as 1.", 1.0)
@option("--json as_json", bool, "Print one JSON object.")
def plan(*, as_json: bool, send_time: float | None, **figures: Any) -> None:
    """Work out what each instance must reserve.

    That is messages, bytes and workers: on average, and for a target of lateness. Beside it, what the
    same traffic would ask of Redis.
    """
    if send_time is None and figures["worker_qps"] is None:
        raise click.UsageError("Missing option '--worker-qps'.")
    if send_time is not None and figures["worker_qps"] is not None:
        raise click.UsageError("Only one of '--worker-qps' and '--send-time' can be given.")
    with naming_options():
        if send_time is not None:
            figures["worker_qps"] = 1 / arguments.at_least("send_time", send_time, 1e-9)
        result = plan_capacity(**figures)
    given = attrs.asdict(result, filter=lambda _, value: value is not None)  # no quota, nothing said of one
    shown = json.dumps(given, indent=2)
    Output().text([shown] if as_json else _lines(result, SimpleNamespace(**figures)))


def _lines(result: CapacityPlan, asked: SimpleNamespace) -> Iterator[str]:
    held = result.rate_per_instance * asked.instances
    if result.native_rate is not None:
        yield from _quota_lines(result.native_rate, asked, held)
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
        f"  cluster backlog  {result.cluster_backlog:,} messages,"
        f" {result.cluster_bytes:,} bytes ({format_size(result.cluster_bytes)})"
    )
    target, outage = map(format_duration, (asked.target_p99, asked.outage))
    yield Styled(
        f"Each instance, at {format_number(result.rate_per_instance)} messages/s"
        f" (target: p99 lateness {target}, outage {outage})",
        "bold",
    )
    yield from _table(_instance_rows(result, asked.message_bytes, asked.worker_qps))
    for line in _advice(result, asked.worker_qps):
        yield Styled(line, "yellow")
    yield ""
    yield Styled("The same in Redis sorted sets, polled every 200 ms by every instance", "bold")
    yield from _table(_redis_rows(result.redis, result.redis_queue))


def _quota_lines(native: float, asked: SimpleNamespace, held: float) -> Iterator[str]:
    """What passes natively at the beginning of a peak, and when what is held is due and takes its share."""
    natives = native, asked.qps - held
    first, later = (f"{format_number(three_digits(rate))}/s" for rate in natives)
    held_first, held_later = (f"{format_number(three_digits(asked.qps - rate))}/s" for rate in natives)
    cost = f"a delayed publish counts as {format_number(asked.delayed_cost)}"
    yield Styled(f"Of a quota of {format_number(asked.quota)} calls/s, of which {cost}", "bold")
    yield f"  natively {first}, held {held_first}; {later} and {held_later} once what is held comes due"
    times = f"{format_number(asked.delayed_cost)} times what passes natively"
    yield f"  held and sent when due, the same quota carries {format_number(asked.quota)}/s: {times}"
    if asked.qps > asked.quota:
        yield Styled("  the traffic is over the quota: what is held leaves when the peak is over", "yellow")


def _instance_rows(result: CapacityPlan, message_bytes: int, worker_qps: float) -> list[tuple[str, ...]]:
    counts = result.capacity, result.capacity_for_target
    pools = result.workers, result.workers_for_target
    payload = (f"{count * message_bytes:,}" for count in counts)
    memory = (f"{resident_bytes(count, message_bytes):,}" for count in counts)
    busy = (_percent(result.utilisation * result.workers / pool) for pool in pools)
    lateness = (_lateness(result, pool, worker_qps) for pool in pools)
    return [
        ("", "on average", "for the target", ""),
        ("capacity", *(f"{count:,}" for count in counts), "messages"),
        ("payload", *payload, "bytes"),
        ("memory", *memory, "bytes, besides the interpreter"),
        ("workers", *(f"{pool:,}" for pool in pools), f"at {format_number(worker_qps)} sends/s each"),
        ("utilisation", *busy, "of the workers' time"),
        ("lateness p99", *lateness, "by queueing"),
    ]


def _redis_rows(redis: RedisPlan, queue: RedisQueuePlan) -> list[tuple[str, ...]]:
    zadd, zrange, setnx = map(format_number, (redis.zadd_per_s, redis.zrange_per_s, redis.setnx_per_s))
    return [
        ("keys", f"{redis.keys:,}", f"of up to {redis.elements_per_key:,} elements"),
        ("reads", f"{format_number(redis.reads_per_s)}/s", f"zrange {zrange}/s + setnx {setnx}/s"),
        ("writes", f"{format_number(redis.writes_per_s)}/s", f"zadd {zadd}/s + zrem {zadd}/s"),
        ("memory", format_size(redis.memory_bytes), "in Redis"),
        (
            "without polls",
            f"{format_number(three_digits(queue.commands_per_s))}/s",
            f"localdelay.redis_plan, idle {format_number(queue.idle_commands_per_s)}/s;"
            f" {format_size(queue.memory_bytes)}",
        ),
    ]


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    # A table of rich's would pad every line to one width, and cut digits off where the terminal is narrow.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *figures, note in rows:
        cells = (f"{figure:>{width}}" for figure, width in zip(figures, widths[1:-1], strict=True))
        yield "  " + "  ".join([f"{label:<{widths[0]}}", *cells, note]).rstrip()


def _lateness(result: CapacityPlan, workers: int, worker_qps: float) -> str:
    lateness = queueing_p99(workers, rate=result.rate_per_instance, worker_qps=worker_qps)
    return "without bound" if math.isinf(lateness) else format_duration(lateness)


def _advice(result: CapacityPlan, worker_qps: float) -> list[str]:
    workers = counted(result.workers, "worker")
    better = f"  use workers_for_target, {result.workers_for_target:,}."
    lines = [
        f"{result.capacity:,} is what waits on average: full at the first late send;",
        f"  use capacity_for_target, {result.capacity_for_target:,}.",
    ]
    if result.utilisation >= 1:
        lines += [f"{workers} at 100 %: lateness grows without bound;", better]
    elif result.workers < result.workers_for_target:
        lateness = _lateness(result, result.workers, worker_qps)
        lines += [f"With {workers} p99 lateness is {lateness}, over the target;", better]
    return lines


def _percent(share: float) -> str:
    if share < 0.01:
        return f"{format_number(share * 100)} %"
    # 100 % is said of nothing less: it is the one figure with a meaning of its own.
    percent = 100.0 if share >= 1 else min(round(share * 100, 1), 99.9)
    return f"{format_number(percent)} %"
