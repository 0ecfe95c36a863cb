"""How much to reserve: the sizing formulas, and what queueing theory adds to them.

Every instance holds its share of the messages in memory and sends them with a pool of workers. What it is
compared against is Redis: sorted sets that every instance polls behind locks. A number is taken as it is
written in decimal (0.1 is one tenth): binary floating point never adds a message or a worker.
"""

from __future__ import annotations

import bisect
import math
import numbers
from fractions import Fraction

import attrs

from . import arguments

DEFAULT_TARGET_P99 = 0.1
"""Seconds: nothing against delays of minutes, and cheap to reach."""

BYTES_HEADER = 33
"""Bytes that a `bytes` object takes besides its content: `sys.getsizeof(b"")` on 64-bit CPython."""

QUEUE_OVERHEAD = 60
"""Bytes that the queue takes for each waiting message besides its payload object.

Measured: the resident memory of a process grew by 54 a message over 400,000 with payloads of 500 bytes, less
the payload objects (`bench/` prints it). Headers, or an id of the caller's choice, take 300 more.
"""

LARGEST = 10**15
"""No argument may be larger: beyond it a float no longer holds every whole number."""

MOST_WORKERS = 10**8
"""No instance is planned with more workers: that is a slip in the figures."""

# The big-key rule is under 5,000 elements and under 10 MB for each set. Both keep a margin of a fifth.
REDIS_ELEMENTS_PER_KEY = 4_000
REDIS_BYTES_PER_KEY = 8_000_000
REDIS_POLLS_PER_S = 5  # every 200 ms

REDIS_OVERHEAD_POLLED = 250
"""Bytes that a message takes besides its payload, as a member of a sorted set that is polled.

Measured, like the next: `used_memory` of Redis 7.0 with 18,000 messages in 64 shards (`localdelay compare`).
"""
REDIS_OVERHEAD = 340
"""The same for `localdelay.redis_plan`: a member of a sorted set, and a field of a hash, each with its id."""

# How `localdelay.redis_plan` gathers, with its default arguments (a test holds them against it).
REDIS_LINGER = 0.01
REDIS_MOST_PUT = 250
REDIS_MOST_CLAIMED = 200
REDIS_CLAIM_AHEAD = 1.0
REDIS_CONFIRM_WITHIN = 0.1
REDIS_RUN = 256
REDIS_HEARTBEAT = 5.0
REDIS_HEARTBEAT_COMMANDS = 8


@attrs.frozen(kw_only=True)
class RedisPlan:
    """The same messages in Redis sorted sets that are polled, with the due time as score.

    Every instance polls every key every 200 ms behind a lock. Rates are operations/s of the whole cluster.
    """

    keys: int
    """Sorted sets, enough for the whole backlog."""
    elements_per_key: int
    """Messages, at most, in one sorted set: 4,000, and fewer where that many would be over 8 MB."""
    zadd_per_s: float
    """One for each message that comes in."""
    zrange_per_s: float
    """For each key and poll, by the instance that got the lock."""
    setnx_per_s: float
    """Every instance tries for the lock of every key at every poll."""
    reads_per_s: float
    """zrange and setnx together, as the write-up counts them."""
    writes_per_s: float
    """A zadd and, once it is due, a zrem for each message."""
    memory_bytes: int
    """Bytes of Redis's memory for the whole backlog (see `REDIS_OVERHEAD_POLLED`)."""


@attrs.frozen(kw_only=True)
class RedisQueuePlan:
    """The same messages in `localdelay.redis_plan`: sorted sets that are not polled, over the whole cluster.

    An estimate, for one delay and several tasks of an instance that put: `redis_queue_commands` says of what.
    """

    shards: int
    """As many as there are keys where they are polled; each is bounded by the same rule."""
    commands_per_s: float
    """Commands/s that the instances send to Redis."""
    idle_commands_per_s: float
    """The same while messages wait and none comes due, whatever the number of shards."""
    memory_bytes: int
    """Bytes of Redis's memory for the whole backlog (see `REDIS_OVERHEAD`)."""


@attrs.frozen(kw_only=True)
class CapacityPlan:
    """What `plan_capacity` works out. A figure is an `int` wherever it is whole.

    `capacity` and `workers` are the plain averages, and too small to run with: the one is full at the
    first late send, and the other may be busy all the time. Run with the two `..._for_target`.
    """

    cluster_backlog: int
    """Messages that wait at any moment in all instances together, on average."""
    cluster_bytes: int
    """Bytes of those messages."""
    rate_per_instance: float
    """Messages/s that one instance takes in, and sends."""
    capacity: int
    """Messages that wait in one instance, on average."""
    payload_bytes: int
    """Bytes of those messages."""
    resident_bytes: int
    """Bytes of memory that `capacity` messages take in one process, besides the program itself."""
    workers: int
    """Workers in one instance, were every one of them busy whenever there is work."""
    utilisation: float
    """Part of their time, 0 to 1, that `workers` are busy; at 1 lateness grows without bound."""
    target_p99: float
    """Seconds: the 99th percentile of lateness by queueing that the next two figures are for."""
    workers_for_target: int
    """The fewest workers in one instance that keep to `target_p99`."""
    capacity_for_target: int
    """Messages: room in one instance for the late ones, an outage, and the unevenness of the traffic."""
    redis: RedisPlan
    """The same traffic in sorted sets that are polled."""
    redis_queue: RedisQueuePlan
    """The same traffic in `localdelay.redis_plan`."""
    native_rate: float | None = None
    """Messages/s that the `quota` takes as delayed publishes at the beginning of a peak; None without one."""
    held_rate: float | None = None
    """Messages/s that must be held then. All other figures are for later, when more has to be."""
    times_the_traffic: float | None = None
    """Of what the quota takes as delayed publishes, it takes so much where all is held and sent when due."""


def plan_capacity(
    *,
    qps: float,
    delay: float,
    instances: int,
    message_bytes: int,
    worker_qps: float,
    degraded_share: float = 1.0,
    target_p99: float = DEFAULT_TARGET_P99,
    outage: float = 0.0,
    quota: float | None = None,
    delayed_cost: float = 1,
) -> CapacityPlan:
    """The sizes for a cluster that takes `qps` delayed messages/s, spread evenly over `instances`.

    Each message waits `delay` seconds and has `message_bytes` bytes of payload and headers; one worker
    sends `worker_qps` messages/s. `degraded_share` is the part of the messages that the primary refuses
    and that must be held: over 0 and up to 1. It scales the traffic before anything else is worked out, plan
    1's included: what the primary takes waits there. `target_p99` is in seconds. `outage` is for how many
    seconds sending may fail altogether without filling the queue, however late the messages are after it.

    Where the `quota` in calls/s of all instances is known, of which a delayed publish takes `delayed_cost`
    and the send of a due message 1, it says how much must be held. At the beginning of a peak quota /
    delayed_cost messages/s pass. Later what was held is due, and its sends come first: n pass and qps - n are
    held with n · delayed_cost + qps - n = quota, and none pass where not even qps sends fit into it.

    `capacity_for_target` is (delay + target_p99 + outage) · rate, plus 5 standard deviations of a Poisson
    count of that mean, rounded up (Little's law; the count of an M/G/∞ queue is Poisson).

    Raises ValueError for a number that is negative, NaN, infinite, over 10^15 or 0 (only `outage` may be
    0), for a share over 1 or beside a quota, for a cost under 1, and for more than 10^8 workers an instance;
    TypeError for what is no number, and for `instances` or `message_bytes` that are not whole. The message
    starts with the argument's name.
    """
    total_rate = _number("qps", qps)
    wait = _number("delay", delay)
    spread = _whole("instances", instances)
    size = _whole("message_bytes", message_bytes)
    speed = _number("worker_qps", worker_qps)
    share = _number("degraded_share", degraded_share, most=1)
    cost = _number("delayed_cost", delayed_cost)
    if cost < 1:
        raise ValueError(f"delayed_cost must be at least 1, not {delayed_cost!r}")
    native: Fraction | None = None
    if quota is not None:
        if share != 1:
            raise ValueError("degraded_share must be left out beside a quota, which says how much is held")
        calls = _number("quota", quota)
        native = min(total_rate, calls / cost)
        if native == total_rate:
            share = Fraction(0)
        elif calls > total_rate:  # so the cost is over 1
            share = (cost * total_rate - calls) / ((cost - 1) * total_rate)
    target = _number("target_p99", target_p99)
    failing = _number("outage", outage, zero=True)

    cluster_rate = total_rate * share
    rate = cluster_rate / spread
    load = rate / speed
    if load > MOST_WORKERS:
        raise ValueError(
            f"worker_qps is too small: an instance would need more than {MOST_WORKERS:,} workers"
        )
    backlog = math.ceil(cluster_rate * wait)
    capacity = math.ceil(rate * wait)
    workers = math.ceil(load)
    redis = _redis(cluster_rate, backlog, spread, size)
    return CapacityPlan(
        cluster_backlog=backlog,
        cluster_bytes=backlog * size,
        rate_per_instance=_plain(rate),
        capacity=capacity,
        payload_bytes=capacity * size,
        resident_bytes=resident_bytes(capacity, size),
        workers=workers,
        utilisation=_plain(load / max(1, workers)),
        target_p99=_plain(target),
        workers_for_target=_workers_for(load, speed, target),
        capacity_for_target=_five_sigma(rate * (wait + target + failing)),
        redis=redis,
        redis_queue=RedisQueuePlan(
            shards=redis.keys,
            commands_per_s=redis_queue_commands(cluster_rate, spread),
            idle_commands_per_s=redis_queue_commands(0, spread),
            memory_bytes=backlog * (size + REDIS_OVERHEAD),
        ),
        native_rate=None if native is None else _plain(native),
        held_rate=None if native is None else _plain(total_rate - native),
        times_the_traffic=None if native is None else _plain(cost),
    )


def polling_rates(keys: int, instances: int) -> tuple[int, int]:
    """(zrange/s, setnx/s) of polling: at every poll each instance tries for a key's lock, and one reads."""
    zrange = keys * REDIS_POLLS_PER_S
    return zrange, instances * zrange


def redis_queue_commands(rate: float | Fraction, instances: int) -> float:
    """Commands/s that `localdelay.redis_plan` sends to Redis, for so many messages/s in all instances.

    One instance with the rate r: a put takes along what is put within `linger` after it, so there are
    r / (1 + r·linger) of them, and one more where a run of 256 messages ends and the next shard begins. A
    run is claimed in parts of up to 200 messages, or of half of the claim-ahead time, and confirmed every
    0.1 s; a claim may confirm, too, which spares a command. A heartbeat is 8 commands every 5 s. Measured:
    82 commands/s at 200 messages/s, 112 at 1,000 and 176 at 5,000, where this says 83, 118 and 188.
    """
    own = _exact(rate) / instances
    heartbeat = REDIS_HEARTBEAT_COMMANDS / _exact(REDIS_HEARTBEAT)
    runs = own / REDIS_RUN
    puts = own / min(Fraction(REDIS_MOST_PUT), 1 + own * _exact(REDIS_LINGER)) + runs
    parts = max(runs * -(-REDIS_RUN // REDIS_MOST_CLAIMED), runs + 2 / _exact(REDIS_CLAIM_AHEAD))
    confirms = 1 / _exact(REDIS_CONFIRM_WITHIN) + runs
    # Where little comes, no more than one of each a message.
    return _plain(instances * (heartbeat + puts + min(own, parts) + min(own, confirms)))


def resident_bytes(messages: int, message_bytes: int) -> int:
    """Bytes of memory that so many waiting messages of that size take, without the interpreter."""
    return messages * (message_bytes + BYTES_HEADER + QUEUE_OVERHEAD)


def erlang_c(servers: int, load: float | Fraction) -> float:
    """The probability that an arrival has to wait in an M/M/c queue: 1.0 once `load` reaches `servers`.

    `load` is the offered traffic in erlangs, arrival rate over the rate of one server. With B of
    Erlang's loss formula, C = c·B / (c - a·(1 - B)), and 1/B = 1 + c/a + c·(c-1)/a² + …: positive terms, of
    which a few times √a matter, so that millions of servers are as stable as ten.
    (A. K. Erlang 1917; R. B. Cooper, Introduction to Queueing Theory, 1981, ch. 3.)
    """
    if servers <= load:
        return 1.0
    erlangs = float(load)
    if erlangs == 0:
        return 0.0
    inverse_b = term = 1.0
    for busy in range(servers, 0, -1):
        term *= busy / erlangs
        inverse_b += term
        if term < inverse_b * 1e-18 or inverse_b == math.inf:
            break
    return servers / (float(servers - load) * inverse_b + erlangs)


def queueing_p99(workers: int, *, rate: float | Fraction, worker_qps: float | Fraction) -> float:
    """Seconds: the 99th percentile of the lateness that comes of all workers being busy; maybe infinite.

    M/M/c: random arrivals, `rate` a second, and send times that are exponential with mean
    1/`worker_qps`, so P(W > t) = C(c, a)·exp(-(c·worker_qps - rate)·t).
    """
    speed = _exact(worker_qps)
    load = _exact(rate) / speed
    if workers <= load:
        return math.inf
    waiting = erlang_c(workers, load)
    if waiting <= 0.01:
        return 0.0
    return math.log(100 * waiting) / float((workers - load) * speed)


def _workers_for(load: Fraction, speed: Fraction, target: Fraction) -> int:
    def enough(workers: int) -> bool:
        return queueing_p99(workers, rate=load * speed, worker_qps=speed) <= target

    too_few, step = math.floor(load), 1
    while not enough(too_few + step):
        too_few += step
        step *= 2
    candidates = range(too_few + 1, too_few + step + 1)
    return candidates[bisect.bisect_left(candidates, True, key=enough)]


def _five_sigma(mean: Fraction) -> int:
    # The smallest n with n >= mean + 5·√mean, in integers: n·q - p >= √(25·p·q) for mean = p/q.
    p, q = mean.as_integer_ratio()
    square = 25 * p * q
    root = math.isqrt(square)
    root += root * root < square
    return -((-p - root) // q)


def _redis(rate: Fraction, backlog: int, instances: int, message_bytes: int) -> RedisPlan:
    # A single message over the limit still needs a key of its own.
    elements = max(1, min(REDIS_ELEMENTS_PER_KEY, REDIS_BYTES_PER_KEY // message_bytes))
    keys = -(-backlog // elements)
    zrange, setnx = polling_rates(keys, instances)
    return RedisPlan(
        keys=keys,
        elements_per_key=elements,
        zadd_per_s=_plain(rate),
        zrange_per_s=zrange,
        setnx_per_s=setnx,
        reads_per_s=zrange + setnx,
        writes_per_s=_plain(2 * rate),
        memory_bytes=backlog * (message_bytes + REDIS_OVERHEAD_POLLED),
    )


def _number(name: str, value: float, *, most: int = LARGEST, zero: bool = False) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}")
    if value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least' if zero else 'more than'} 0, not {value!r}")
    return _exact(value)


def _whole(name: str, value: int) -> int:
    if arguments.count(name, value) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:,}")
    return value


def _exact(value: float | Fraction) -> Fraction:
    """The number as it is written: through `str`, 0.1 is one tenth and not the double next to it."""
    return Fraction(value) if isinstance(value, numbers.Rational) else Fraction(str(float(value)))


def _plain(value: Fraction) -> float:
    return value.numerator if value.denominator == 1 else float(value)
