"""Hold the delayed messages that a throttled queue refuses, and send each when it is due.

The layers; each module imports only from those above it (a test checks it):

    checks      numbers, refused by their argument's name. Pure
    errors      what can go wrong
    units       durations and sizes as people write them, and numbers as people read them. Pure
    message     the message and its id
    capacity    the sizing formulas. Pure
    lateness    latencies in an HDR histogram
    journal     what is kept of a message on disk. Pure
    sqlite_journal  a journal in a file
    retry       when to try again and when to give up. Pure
    entry       what waits, as plain tuples
    batch       which messages are sent together, and which a failed batch blames. Pure
    groups      exceptions that come out of nurseries
    intake      checking and stamping what a caller puts. Pure
    ids         the ids of pending messages
    timer       waiting until an instant
    index       what waits, by number
    piles       what waits, in due order: FIFO lanes and a heap
    schedule    what waits, and what is known of it
    drain_plan  what a drain is going to do. Pure
    recovery    what a journal held, as messages of this process. Pure
    committer   group commits to the journal
    statistics  what the queue says about itself
    ledger      what was accepted, what became of it, and who waits for room
    workers     the pool that takes turns to wait for the next due message
    breaker     whether to call a primary that may well refuse. Pure
    routing     where a message goes. Pure
    events      what happens, for a listener
    limit       a token bucket
    delivery    one send, and what came of it
    gate        the breaker and the limit before the primary
    router      the degrade decision, with all that it needs to know
    returning   handing back while the queue runs
    drain       stopping within a grace
    admission   taking a message in
    life        from the opening of a queue to its end
    confirming  waiting for what other threads settle
    blocking    a send made of a blocking function
    queue       `open_delay_queue`, `DelayQueue`: all of this together
    stopping    a drain when a signal comes
    fallback    the degrade path: primary or local
    exits       queues that still run when the interpreter exits, or forks
    remote      a queue in a thread of its own
    threads     the queue and the fallback for threaded programs
    aio         the same for asyncio programs
    testing     senders for tests
    brokers     one module a broker
    redis_plan  plan 1: the same queue in the sorted sets of a Redis
    benchmark   how late messages are under a load
    metrics     what `statistics()` says, for Prometheus
    guarded     programs of this process's own, ended whatever happens to it
    compare     both plans, as written and as built, under the same load
    demo        a real broker at its limit, without and with the degrade path
    relay       lines from standard input, held until they are due, and sent
    orphan      what a journal holds that no queue uses, as lines for the relay. Pure
    cli         parsing and printing only
"""

from importlib import import_module
from types import ModuleType

from . import brokers, threads
from .batch import BatchPolicy
from .blocking import blocking
from .breaker import BreakerPolicy, BreakerState
from .capacity import CapacityPlan, RedisPlan, RedisQueuePlan, plan_capacity
from .delivery import DeadLetterHook, HandBack, Send, SendBatch
from .drain_plan import DrainPlan, plan_drain
from .errors import (
    BreakerOpen,
    DelayNotSupported,
    JournalError,
    LocalDelayError,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimited,
    Throttled,
)
from .fallback import Fallback
from .journal import Journal
from .lateness import LatencySummary
from .limit import RateLimit
from .listening import Reason
from .message import Message
from .queue import DelayQueue, open_delay_queue
from .retry import RetryPolicy
from .router import FallbackStatistics, Receipt
from .routing import Route
from .sqlite_journal import SqliteJournal
from .statistics import DrainReport, Statistics
from .stopping import run_until_signal

__all__ = [
    "BatchPolicy",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "CapacityPlan",
    "DeadLetterHook",
    "DelayNotSupported",
    "DelayQueue",
    "DrainPlan",
    "DrainReport",
    "Fallback",
    "FallbackStatistics",
    "HandBack",
    "Journal",
    "JournalError",
    "LatencySummary",
    "LocalDelayError",
    "Message",
    "PartialSendError",
    "PermanentSendError",
    "QueueClosed",
    "QueueFull",
    "RateLimit",
    "RateLimited",
    "Reason",
    "Receipt",
    "RedisPlan",
    "RedisQueuePlan",
    "RetryPolicy",
    "Route",
    "Send",
    "SendBatch",
    "SqliteJournal",
    "Statistics",
    "Throttled",
    "blocking",
    "brokers",
    "open_delay_queue",
    "plan_capacity",
    "plan_drain",
    "run_until_signal",
    "threads",
]


def __getattr__(name: str) -> ModuleType:
    if name == "aio":  # it imports asyncio, which a service on Trio can do without
        return import_module(".aio", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
