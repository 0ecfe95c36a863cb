"""Hold the delayed messages that a throttled queue refuses, and send each when it is due.

The layers; each module imports only from those above it (a test checks it):

    checks      numbers, refused by their argument's name. Pure
    errors      what can go wrong
    units       durations and sizes as people write them, and numbers as people read them. Pure
    message     the message and its id
    capacity    the sizing formulas. Pure
    lateness    latencies in an HDR histogram
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
    statistics  what the queue says about itself
    ledger      what was accepted, what became of it, and who waits for room
    workers     the pool that takes turns to wait for the next due message
    delivery    one send, and what came of it
    drain       stopping within a grace
    admission   taking a message in
    blocking    a send made of a blocking function
    queue       `open_delay_queue`, `DelayQueue`: all of this together
    fallback    the degrade path: primary or local
    testing     senders for tests
    brokers     one module a broker
    benchmark   how late messages are under a load
    demo        a real broker at its limit, without and with the degrade path
    relay       lines from standard input, held until they are due, and sent
    cli         parsing and printing only
"""

from . import brokers
from .batch import BatchPolicy
from .blocking import blocking
from .capacity import CapacityPlan, RedisPlan, plan_capacity
from .delivery import DeadLetterHook, HandBack, Send, SendBatch
from .errors import (
    DelayNotSupported,
    JournalError,
    LocalDelayError,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    Throttled,
)
from .fallback import Fallback, Receipt, Route
from .lateness import LatencySummary
from .message import Message
from .queue import DelayQueue, open_delay_queue
from .retry import RetryPolicy
from .statistics import DrainReport, Statistics

__all__ = [
    "BatchPolicy",
    "CapacityPlan",
    "DeadLetterHook",
    "DelayNotSupported",
    "DelayQueue",
    "DrainReport",
    "Fallback",
    "HandBack",
    "JournalError",
    "LatencySummary",
    "LocalDelayError",
    "Message",
    "PartialSendError",
    "PermanentSendError",
    "QueueClosed",
    "QueueFull",
    "Receipt",
    "RedisPlan",
    "RetryPolicy",
    "Route",
    "Send",
    "SendBatch",
    "Statistics",
    "Throttled",
    "blocking",
    "brokers",
    "open_delay_queue",
    "plan_capacity",
]
