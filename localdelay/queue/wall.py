"""`at=` means the wall clock: what was put with it moves when that and the monotonic clock move apart.

Messages wait on the monotonic clock, which nobody sets, and which stands still while a machine is suspended.
A `delay` is meant so. But a time of day that was made into one at the put is late by as long as the machine
has slept, and early or late by as much as somebody has set its clock. So the two are compared now and then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from time import time as wall_clock
from typing import Final

import trio

from localdelay.entry import Entry, at_of, execute_at_of, failures_of, moved_to
from localdelay.logs import log
from localdelay.timer import is_trios_own

from .pending import Pending

LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the clocks."""
_AT_ONCE: Final = 1024
_LINE: Final = "the wall clock has moved by %.3g s, and %d messages that were put with at= have moved with it"
APART: Final = 1.0
"""Seconds: what they have moved apart by less is the business of whoever keeps the clock right."""


def moved_apart(before: float, wall: float, now: float) -> float:
    """By how much the wall clock is ahead of where it was `before` (wall less monotonic); 0 for little."""
    by = wall - now - before
    return by if abs(by) > APART else 0.0


def moved_entry(entry: Entry, wall: float, now: float, before: float) -> Entry:
    """The message, due when it was put for, where it was to be so by a wall clock that was ahead by `before`.

    Itself where it was put with a delay, or with what was past already, which meant now; and where it waits
    for a retry. What is overdue by now is so since its time: it may have expired.
    """
    due, _, body = entry
    at, execute_at = at_of(body), execute_at_of(due, body)
    waits_for_retry = failures_of(body) and due != execute_at  # or it has failed, and was rescheduled
    if at is None or waits_for_retry or abs(execute_at + before - at) > APART:
        return entry
    return moved_to(entry, now + at - wall)


def away(pending: Pending) -> set[object]:
    """What is not in the order now and may come there, due by the clocks as they were when it was put."""
    at_work = (number for _, number, _ in pending.at_work())
    return {*pending.ledger.waiters, *pending.lent, *at_work}


def move_all(pending: Pending, to: Callable[[Entry], Entry]) -> int:
    """Put what this makes of each waiting message in its place; return how many it has changed.

    It takes some microseconds for each message, in which nothing else happens.
    """
    schedule = pending.schedule
    schedule.mix()
    entries: list[Entry] = []
    while due := list(schedule.due(math.inf, _AT_ONCE)):
        schedule.take(due)
        entries += due
    count = 0
    stays: list[Entry] = []
    for entry in entries:
        moved = to(entry)
        count += moved is not entry
        if moved is entry and entry[0] == execute_at_of(entry[0], entry[2]) and not failures_of(entry[2]):
            stays.append(entry)
        else:
            pending.again(moved)
    schedule.taken -= len(stays)
    schedule.put_all(stays)  # which are in due order still
    return count


async def watch(pending: Pending) -> None:
    """Compare the clocks for as long as this runs, and move what was put with `at`. Only on real clocks."""
    if not is_trios_own(trio.lowlevel.current_clock()):
        return
    ahead_before = ahead = wall_clock() - trio.current_time()
    away_then: set[object] = set()
    looks_again = False
    while True:
        await trio.sleep(LOOK_EVERY)
        wall = wall_clock()  # before the other one: nothing may be early
        now = trio.current_time()
        by = moved_apart(ahead, wall, now)
        if by:
            ahead_before, ahead, away_then = ahead, wall - now, away(pending)
        back = away_then - away(pending)
        if not (by or back or looks_again):
            continue
        # Once more next time: what has found its room may still be on its way through the journal.
        looks_again = bool(by or back)
        away_then -= back
        move = partial(moved_entry, wall=wall, now=now, before=ahead_before)
        count = move_all(pending, move) if pending.has_at else 0
        if by or count:
            log(logging.WARNING if count else logging.INFO, _LINE, ahead - ahead_before, count)
