"""How much to reserve: the sizing formulas of both plans, and what queueing theory adds to them.

Plan 2 is the one that this library builds: every instance holds its share of the delayed messages in
memory and sends them with a pool of workers. Plan 1 is the one compared against: Redis sorted sets.
All figures are exact: a number is taken as it is written in decimal (0.1 is one tenth), so rounding up
never adds a message or a worker because of binary floating point.
"""

from __future__ import annotations

import bisect
import math
import numbers
import operator
from fractions import Fraction

import attrs

DEFAULT_TARGET_P99 = 0.1
"""Seconds. A tenth of a second is nothing against delays of minutes, and is cheap to reach."""

BYTES_HEADER = 33
"""Bytes that a `bytes` object takes besides its content: `sys.getsizeof(b"")` on 64-bit CPython."""

QUEUE_OVERHEAD = 60
"""Bytes that the queue takes for each waiting message besides its payload object.

Measured, not derived: the growth of the process's resident memory over 400,000 messages with distinct
payloads of 500 bytes, less the payload objects, divided by their number, was 54 (`bench/` prints it), put
directly or through `Fallback`. It includes what the allocator rounds up. Headers, or an id of the caller's
choice, take 300 more.
"""

LARGEST = 10**15
"""No argument may be larger: beyond about this a float no longer holds every whole number."""

MOST_WORKERS = 10**8
"""No instance is planned with more workers: it is a slip in the figures, and would take long to work out."""

# The big-key rule of plan 1 is under 5,000 elements and under 10 MB a key. Both keep a margin of a fifth.
REDIS_ELEMENTS_PER_KEY = 4_000
REDIS_BYTES_PER_KEY = 8_000_000
REDIS_POLLS_PER_S = 5  # every 200 ms

REDIS_OVERHEAD_POLLED = 250
"""Bytes that a message takes in Redis under plan 1 besides its payload, as a member of a sorted set.

Measured, like the next one: the growth of `used_memory` of Redis 7.0 over 18,000 messages with payloads of
500 bytes in 64 shards, less the payloads, divided by their number (`localdelay compare` prints it).
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
    """Plan 1: the same messages in Redis sorted sets, with the due time as score.

    Every instance polls every key every 200 ms behind a lock. Rates are operations a second over the
    whole cluster.
    """

    keys: int
    """Sorted sets, enough for the whole backlog."""
    elements_per_key: int
    """Messages, at most, in one sorted set: 4,000, and fewer where that many would be over 8 MB."""
    zadd_per_s: float
    """Operations/s: one for each message that comes in."""
    zrange_per_s: float
    """Operations/s: for each key and poll, by the instance that got the lock."""
    setnx_per_s: float
    """Operations/s: every instance tries for the lock of every key at every poll."""
    reads_per_s: float
    """Operations/s: zrange and setnx together, as the write-up counts them."""
    writes_per_s: float
    """Operations/s: a zadd and, once it is due, a zrem for each message."""
    memory_bytes: int
    """Bytes of Redis's memory for the whole backlog (see `REDIS_OVERHEAD_POLLED`)."""


@attrs.frozen(kw_only=True)
class RedisQueuePlan:
    """The same messages in `localdelay.redis_plan`, which is plan 1 without its polling.

    Over the whole cluster, with one delay for all and several tasks of an instance that put. It is an
    estimate: `redis_queue_commands` says of what.
    """

    shards: int
    """As many as plan 1 has keys; each is bounded by the same rule."""
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
    """Bytes of memory that `capacity` messages take in one process, object headers and the queue's own
    bookkeeping included. Excluded: the interpreter, the imported modules and the program itself."""
    workers: int
    """Workers in one instance, were every one of them busy whenever there is work."""
    utilisation: float
    """Part of their time, 0 to 1, that `workers` are busy. At 1 lateness grows without bound."""
    target_p99: float
    """Seconds: the 99th percentile of lateness by queueing that the next two figures are for."""
    workers_for_target: int
    """The fewest workers in one instance that keep to `target_p99`."""
    capacity_for_target: int
    """Messages: room in one instance for the late ones, an outage, and the unevenness of the traffic."""
    redis: RedisPlan
    """The same traffic under plan 1."""
    redis_queue: RedisQueuePlan
    """The same traffic in `localdelay.redis_plan`."""


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
) -> CapacityPlan:
    """The sizes for a cluster that takes `qps` delayed messages/s, spread evenly over `instances`.

    Each message waits `delay` seconds and has `message_bytes` bytes of payload and headers; one worker
    sends `worker_qps` messages/s. `degraded_share` is the part of the messages that the primary refuses
    and that must be held locally: over 0, and 1 if it refuses all. It scales the traffic before anything
    else is worked out, and so every figure but `target_p99`, plan 1's included: what the primary takes
    waits there. `target_p99` is in seconds. `outage` is for how many seconds sending may fail altogether
    without filling the queue; how late the messages are after it is not part of `target_p99`.

    `capacity_for_target` is (delay + target_p99 + outage) · rate, plus 5 standard deviations of a Poisson
    count of that mean, rounded up (Little's law; the count of an M/G/∞ queue is Poisson).

    Raises ValueError for a number that is negative, NaN, infinite, over 10^15 or 0 (only `outage` may be
    0), for a share over 1, and for more than 10^8 workers an instance; TypeError for what is no number,
    and for `instances` or `message_bytes` that are not whole. The message starts with the argument's name.
    """
    total_rate = _number("qps", qps)
    wait = _number("delay", delay)
    spread = _whole("instances", instances)
    size = _whole("message_bytes", message_bytes)
    speed = _number("worker_qps", worker_qps)
    share = _number("degraded_share", degraded_share, most=1)
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
        utilisation=_plain(load / workers),
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
    )


def polling_rates(keys: int, instances: int) -> tuple[int, int]:
    """(zrange/s, setnx/s) of plan 1, over the whole cluster.

    At every poll of a key each instance tries for its lock, and the one that gets it reads.
    """
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
    Erlang's loss formula, C = c·B / (c - a·(1 - B)), and 1/B = 1 + c/a + c·(c-1)/a² + … (the recursion
    for 1/B, unrolled from its end). That sum has only positive terms and those that matter number a few
    times √a, so thousands of servers and millions are as stable as ten.
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
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    if number > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:,}")
    return number


def _exact(value: float | Fraction) -> Fraction:
    """The number as it is written: through `str`, 0.1 is one tenth and not the double next to it."""
    return Fraction(value) if isinstance(value, numbers.Rational) else Fraction(str(float(value)))


def _plain(value: Fraction) -> float:
    return value.numerator if value.denominator == 1 else float(value)
