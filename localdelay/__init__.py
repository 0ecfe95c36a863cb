"""Hold the delayed messages that a throttled queue refuses, and send each when it is due.

A service publishes delayed messages through a queue that is throttled at the peak. What the queue refuses
waits here, in the service's own memory, and leaves as an ordinary message when it is due:

    async def send(message):                        # gives one due message to the real queue
        await client.publish(message.payload, id=message.id)

    async def publish_delayed(message, delay):      # that queue's own delayed publish, the throttled one
        await client.publish(message.payload, id=message.id, delay=delay)

    async with localdelay.open_delay_queue(send, capacity=24_000, workers=24) as queue:
        fallback = localdelay.Fallback(publish_delayed, queue, degrade_on=(localdelay.Throttled,))
        receipt = await fallback.publish(b"close order 7", delay=120.0)
        print(receipt.route, queue.statistics().pending)

`localdelay.threads` and `localdelay.aio` are the same for threaded programs and for asyncio,
`localdelay.brokers` has a `send` for each common broker, `localdelay.costs` what calls take of a quota,
`localdelay.events` what a `Listener` is told,
`localdelay.redis_plan` keeps what waits in Redis, `localdelay.metrics` exports `queue.statistics()`, and
`localdelay.testing` has senders and a clock for tests.

What is in no `__all__` of these modules is private.
"""

from importlib import import_module
from typing import Any

from . import brokers, costs, events, threads
from .adaptive import AdaptiveLimit
from .breaker import BreakerPolicy, BreakerState
from .capacity import CapacityPlan, RedisPlan, RedisQueuePlan, plan_capacity
from .drain_plan import DrainPlan, plan_drain
from .errors import (
    BreakerOpen,
    DelayNotSupported,
    Expired,
    JournalError,
    LocalDelayError,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimited,
    Throttled,
)
from .fallback.fallback import Fallback
from .fallback.handles import Cancelled
from .fallback.router import FallbackStatistics, Receipt
from .fallback.routing import Route
from .journal.record import Journal
from .journal.sqlite import SqliteJournal
from .lateness import LatencySummary
from .limit import RateLimit
from .listening import Listener, Reason
from .message import Message
from .portal.blocking import blocking
from .probe import ProbePolicy
from .queue.batch import BatchPolicy
from .queue.opening import open_delay_queue
from .queue.queue import DelayQueue
from .queue.retry import RetryPolicy
from .queue.sending import DeadLetterHook, HandBack, Send, SendBatch
from .queue.stopping import run_until_signal
from .statistics import DrainReport, Statistics

__all__ = [
    "AdaptiveLimit",
    "BatchPolicy",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "Cancelled",
    "CapacityPlan",
    "DeadLetterHook",
    "DelayNotSupported",
    "DelayQueue",
    "DrainPlan",
    "DrainReport",
    "Expired",
    "Fallback",
    "FallbackStatistics",
    "HandBack",
    "Journal",
    "JournalError",
    "LatencySummary",
    "Listener",
    "LocalDelayError",
    "Message",
    "PartialSendError",
    "PermanentSendError",
    "ProbePolicy",
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
    "costs",
    "events",
    "open_delay_queue",
    "plan_capacity",
    "plan_drain",
    "run_until_signal",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up in the installed package, which takes a while
        from importlib.metadata import version

        return version("localdelay")
    if name == "aio":  # it imports asyncio, which a service on Trio can do without
        return import_module(".aio", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
