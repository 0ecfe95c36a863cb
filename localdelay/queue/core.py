"""What every queue is made of, whoever else keeps its messages, and what it says about itself."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import attrs

from localdelay import arguments
from localdelay.adaptive import AdaptiveLimit
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.keeping import End
from localdelay.keys import Key, Keys
from localdelay.limit import Limit
from localdelay.listening import Listener, check_listener
from localdelay.probe import ProbePolicy
from localdelay.timer import TimerKind, clock_parts

from .batch import ONE, BatchPolicy
from .keyed import KeyedTaking
from .ledger import Ledger
from .pending import Pending
from .retry import RetryPolicy
from .schedule import Schedule
from .sending import DeadLetterHook, Delivery, Send, SendBatch
from .taking import Taking
from .valve import Pace, Valve
from .valves import Valves
from .workers import BringsWorkers, Workers


@attrs.frozen(eq=False)
class Core:
    """The order and the books, who takes from them, and what is done with what is taken."""

    pending: Pending
    workers: Workers
    delivery: Delivery
    limit: Limit | None
    """What paces the sends; a fallback shares it unless it was given another."""
    batch_most: int
    """The most messages of one send."""
    keys: Keys | None
    """What gives each message its key, and each key a limit like that; a fallback shares these, too."""

    def resize(
        self, capacity: int | None, workers: int | None, capacity_bytes: int | NotGiven | None
    ) -> None:
        """Change the room and the workers. `capacity_bytes` None: no limit."""
        ledger = self.pending.ledger
        messages = ledger.capacity if capacity is None else arguments.count("capacity", capacity)
        if workers is not None:
            arguments.count("workers", workers)
        if capacity_bytes is NOT_GIVEN:
            capacity_bytes = ledger.capacity_bytes
        elif capacity_bytes is not None:
            arguments.count("capacity_bytes", capacity_bytes)
        ledger.resize(messages, capacity_bytes)
        if workers is not None:
            self.workers.resize(workers)

    def figures(self, now: float, next_due: float) -> dict[str, Any]:
        """What `Statistics` says of any queue; but for what only the queue knows."""
        pending, workers, delivery = self.pending, self.workers, self.delivery
        ledger, schedule, keeper = pending.ledger, pending.schedule, pending.keeper
        at_risk, at_risk_bytes = keeper.at_risk
        return {
            "accepted": ledger.accepted,
            "recovered": ledger.recovered,
            **{how.name.lower(): ledger.ended[how] for how in End},
            "pending": ledger.pending,
            "waiting": schedule.waiting,
            "sending": schedule.taken,
            "retrying": schedule.retrying,
            "pending_bytes": ledger.pending_bytes,
            "at_risk": at_risk,
            "at_risk_bytes": at_risk_bytes,
            "capacity": ledger.capacity,
            "capacity_bytes": ledger.capacity_bytes,
            "workers": workers.count,
            "workers_busy": workers.busy,
            "committing": keeper.committing,
            "paused": workers.paused,
            "next_due_in": None if next_due == math.inf else max(0.0, next_due - now),
            "limit_rate": delivery.valve.limit_rate,
            "keys": dict(delivery.valve.keys(now)),
            "oldest_overdue": max(0.0, now - pending.oldest()),
            "expired": delivery.expired,
            "failures": delivery.failures.count,
            "throttled": delivery.failures.throttled,
            "dead_letter_errors": delivery.dead_letter_errors,
            "journal_failures": keeper.failures,
            "lateness": delivery.lateness.summary(),
            "send_time": delivery.send_time.summary(),
            "total": delivery.total.summary(),
            "commit_time": keeper.commit_time.summary(),
        }


class CoreOptions(TypedDict, total=False):
    """What any queue may be opened with, wherever it is."""

    batch: BatchPolicy
    capacity_bytes: int | None
    timer: TimerKind
    retry: RetryPolicy
    send_timeout: float | None
    limit: Limit | NotGiven | None
    probe: ProbePolicy | None
    listener: Listener | None


def make_core(
    send: Send | BringsWorkers | None,
    send_batch: SendBatch | None,
    batch: BatchPolicy = BatchPolicy(),  # noqa: B008 (it is frozen)
    *,
    capacity: int,
    workers: int,
    capacity_bytes: int | None = None,
    cancellable: bool = True,
    timer: TimerKind = "auto",
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
    send_timeout: float | None = 30.0,
    on_dead_letter: DeadLetterHook | None = None,
    limit: Limit | NotGiven | None = NOT_GIVEN,
    catch_up_rate: float | None = None,
    probe: ProbePolicy | None = ProbePolicy(),  # noqa: B008 (it is frozen)
    key: Key | None = None,
    listener: Listener | None = None,
) -> Core:
    """Check the options that queues have in common, and put the core of one together."""
    given = send_batch if send is None else send
    if given is None or (send is not None and send_batch is not None):
        raise TypeError("exactly one of send and send_batch must be given")
    arguments.check_kind("batch", batch, BatchPolicy, "a BatchPolicy")
    if send is not None:
        if batch != BatchPolicy():
            raise TypeError("batch is for send_batch: a send takes one message at a time")
        batch = ONE
    if not isinstance(given, BringsWorkers):
        arguments.check_async("send_batch" if send is None else "send", given)
    arguments.count("capacity", capacity)
    arguments.count("workers", workers)
    if capacity_bytes is not None:
        arguments.count("capacity_bytes", capacity_bytes)
    if timer not in ("auto", "trio"):
        raise ValueError(f'timer must be "auto" or "trio", not {timer!r}')
    arguments.check_kind("retry", retry, RetryPolicy, "a RetryPolicy")
    if on_dead_letter is not None:
        arguments.check_async("on_dead_letter", on_dead_letter)
    if limit is NOT_GIVEN:
        limit = AdaptiveLimit()
    arguments.check_kind("limit", limit, Limit | None, "a RateLimit, an AdaptiveLimit or None")
    if limit is not None:
        # Trio's time is that of the loop that asks: where two loops share a limit it would jump to and fro.
        read_clock, offset = clock_parts()
        limit.use_clock(lambda: read_clock() + offset)
    if catch_up_rate is not None and not 0 < arguments.number("catch_up_rate", catch_up_rate) < math.inf:
        raise ValueError(f"catch_up_rate must be over 0 and finite, not {catch_up_rate!r}")
    arguments.check_kind("probe", probe, ProbePolicy | None, "a ProbePolicy or None")
    check_listener(listener)
    keys = None if key is None else Keys(key, limit)
    pace, schedule = Pace(catch_up_rate), Schedule(indexed=bool(cancellable))
    ledger = Ledger(capacity, capacity_bytes)
    pending = Pending(schedule, ledger)
    if keys is None:
        valve = Valve(limit, probe, pace, listener, lambda: ledger.ended[End.SENT], schedule.alarm.ring)
        taking = Taking(pending, batch, valve)
    else:
        taking = KeyedTaking(pending, batch, Valves(keys, probe, pace, listener, schedule))
    delivery = Delivery(
        given,
        taking,
        one_by_one=send is not None,
        retry=retry,
        send_timeout=arguments.check_seconds("send_timeout", send_timeout, zero=False),
        on_dead_letter=on_dead_letter,
        listener=listener,
    )
    make = given.make_workers if isinstance(given, BringsWorkers) else Workers
    pool = make(taking, delivery, timer, workers)
    return Core(pending, pool, delivery, limit, batch.max_messages, keys)
