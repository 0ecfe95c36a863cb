"""The messages of a running queue, as far as they can go back to the primary."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from localdelay.entry import Body, Entry, chosen_id, with_chosen_id
from localdelay.errors import PermanentSendError
from localdelay.message import Message, render_id

from .ids import Ids
from .lanes import Slot
from .schedule import Schedule
from .sending import Delivery, HandBack


class HandBacks:
    """The messages of a running queue, as far as they can go back to the primary."""

    def __init__(
        self,
        schedule: Schedule,
        delivery: Delivery,
        ids: Ids,
        new_numbers: Iterator[int],
    ) -> None:
        self._schedule = schedule
        self._delivery = delivery
        self._ids = ids
        self._new_numbers = new_numbers
        self._refused: set[int] = set()  # the primary can never take these

    def far(self, horizon: float) -> list[Slot]:
        """(due, number) of what is due at `horizon` or later, on Trio's clock; the latest first."""
        slots = self._schedule.far(horizon)
        if self._refused:
            self._refused.intersection_update(slot[1] for slot in slots)
            slots = [slot for slot in slots if slot[1] not in self._refused]
        return slots

    def take_out(self, slot: Slot) -> Entry | None:
        """Take out one of these, if it is still here."""
        return self._schedule.take_out(*slot[:2])

    async def give(self, entry: Entry, hand_back: HandBack) -> Exception | None:
        """Give it to the primary. Where that fails it is back in the queue, and the error is returned.

        One that takes longer than a send may, or until the message is due, has failed, too.
        """

        async def in_time(message: Message, remaining: float) -> None:
            with trio.fail_after(min(remaining, self._delivery.send_timeout)):
                await hand_back(message, remaining)

        error = await self._delivery.hand_back(entry, in_time, take_back=self._take_back)
        if error is not None:
            number = self._take_back(*entry)
            if isinstance(error, PermanentSendError):
                self._refused.add(number)
        return error

    def _take_back(self, due: float, number: int, body: Body) -> int:
        # Under another number, and its id as one that was chosen: its old place in the order is still
        # there, dead, and would come to life again.
        again = next(self._new_numbers)
        chosen = chosen_id(body)  # a recovered message has one always: no id is made of its number
        renamed = with_chosen_id(body, due, render_id(number) if chosen is None else chosen)
        self._ids.take(again, renamed)
        self._schedule.put_back(due, again, renamed)
        if self._delivery.committer is not None:
            self._delivery.committer.rename(number, (due, again, renamed))
        return again
