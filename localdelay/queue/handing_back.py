"""Handing back: giving messages that are not due yet to the primary, while the queue runs or drains.

A message that is handed back is lent: it counts as being sent, and nobody here sends it. One that the primary
does not take comes back under its number. While the queue runs it goes to where it was; in a drain it is put
off for another try, or stays where nobody takes it any more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import trio

from localdelay.backoff import grown
from localdelay.entry import Entry, after_failing, attempt_of, failures_of, message_of
from localdelay.errors import PermanentSendError, Throttled
from localdelay.keeping import End
from localdelay.message import Message
from localdelay.nurseries import failure_in, reraise_without_errors

from .lanes import Slot
from .pending import Pending
from .retry import wait_after
from .sending import Delivery, HandBack, awaitable

_NEVER = 0, 0.0
_AGAIN_AFTER = 1.0
"""Seconds until what could not be handed back is tried again, twice as many after each time ..."""
_LONGEST_WAIT = 30.0
"""... up to this."""


class OutOfTime(TimeoutError):
    """A hand-back had less time than a call of the primary may take: that says nothing about the primary."""


class HandBacks:
    """The messages of a queue, as far as they can go back to the primary."""

    def __init__(self, pending: Pending, delivery: Delivery) -> None:
        self._pending = pending
        self._schedule = pending.schedule
        self._delivery = delivery
        self._failed: dict[int, tuple[int, float]] = {}  # how often, by number, and when to try it again

    def far(self, horizon: float) -> list[Slot]:
        """(due, number) of what is due at `horizon` or later, on Trio's clock; the latest first.

        Without what has failed, and waits until it is tried again: nobody else is to wait for it.
        """
        slots = self._schedule.far(horizon)
        if self._failed:
            now, here = trio.current_time(), {slot[1] for slot in slots}
            self._failed = {number: tried for number, tried in self._failed.items() if number in here}
            slots = [slot for slot in slots if self._failed.get(slot[1], _NEVER)[1] <= now]
        return slots

    @property
    def next_try(self) -> float:
        """When the first of those that have failed is to be tried again."""
        return min((when for _, when in self._failed.values()), default=math.inf)

    def look_at(self, slot: Slot) -> Message | None:
        """The message of one of these, if it is still here."""
        body = self._schedule.find(slot[1])
        return None if body is None else message_of((slot[0], slot[1], body))

    def take_out(self, slot: Slot) -> Entry | None:
        """Take out one of these, if it is still here."""
        return self._pending.lend(slot[1], slot[0])

    async def give(self, entry: Entry, hand_back: HandBack, most: float = math.inf) -> Exception | None:
        """Give it to the primary. Where that fails it is back in the queue, and the error is returned.

        One that takes longer than `most` seconds, or until the message is due, has failed, too; where it had
        less than `most` the error is an `OutOfTime`. One that is throttled may be tried again at once; one
        that fails otherwise waits, longer each time.
        """

        async def in_time(message: Message, remaining: float) -> None:
            patience = min(remaining, most, self._delivery.send_timeout)
            with trio.move_on_after(patience):
                await awaitable("hand_back", hand_back(message, remaining))
                return
            late = TimeoutError if patience >= most else OutOfTime
            raise late(f"the primary took longer than {patience:.3g} s")

        error = await self._give(entry, in_time, cut_off=self._schedule.put_back)
        if error is not None:
            self._pending.again(entry)
            if not isinstance(error, Throttled):
                failures = self._failed.get(entry[1], _NEVER)[0] + 1
                wait = grown(failures, first=_AGAIN_AFTER, most=_LONGEST_WAIT)
                is_final = isinstance(error, PermanentSendError)
                self._failed[entry[1]] = failures, math.inf if is_final else trio.current_time() + wait
        else:
            self._failed.pop(entry[1], None)
        return error

    async def give_or_put_off(self, entry: Entry, hand_back: HandBack) -> None:
        """Give a message beyond the horizon to the primary; where that fails, put it off for another try.

        What can never be handed back (`PermanentSendError`), or not in time, is set aside: it stays pending.
        """
        # Where it is cut off the drain is over: nobody is to hand it back again.
        began = trio.current_time()
        error = await self._give(entry, hand_back, cut_off=self._schedule.set_aside)
        now = trio.current_time()
        self._delivery.valve.of([entry]).record(now, [entry], now - began, error, delayed=True)
        if error is None:
            return
        again = after_failing(entry, attempt_of(entry[2]), alone=False)
        wait = wait_after(self._delivery.retry, error, failures=failures_of(again), jitter=random.random())
        when = trio.current_time() + wait
        if isinstance(error, PermanentSendError) or when >= self._schedule.horizon:
            self._pending.again(entry, self._schedule.set_aside)
        else:
            self._pending.again((when, entry[1], again), self._schedule.put_off)
        del error  # or its traceback, this frame and the payload hold each other

    async def _give(
        self, entry: Entry, hand_back: HandBack, *, cut_off: Callable[[Entry], None]
    ) -> Exception | None:
        """Give a message to the primary; return what it failed with: then the caller brings it back."""
        message = message_of(entry)
        try:
            remaining = max(0.0, message.execute_at - trio.current_time())
            await awaitable("hand_back", hand_back(message, remaining))
        except BaseException as raised:  # noqa: BLE001 (raised again where it is no mere error)
            error = failure_in(raised, timed_out=False)
            if error is None:
                # Cut off: nobody knows whether the primary has it. It is pending, and sent twice at worst.
                self._pending.again(entry, cut_off)
                reraise_without_errors(raised)
            self._delivery.failures.add(trio.current_time(), error)
            try:
                return error
            finally:
                del error  # or its traceback, this frame and the payload hold each other
        # It has it: no cancellation may come before that is counted, or it would be sent as well.
        wait = self._pending.end([entry], End.HANDED_BACK)
        if wait is not None:
            await wait()
        return None
