"""Handing back while the queue runs: when the primary takes messages again, what is far from due goes to it.

The latest goes first: it would be at risk for longest. A few go at a time, behind all others where a limit
is shared, and as trial calls where the breaker is half-open; so the breaker closes though nobody publishes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from localdelay.backoff import grown
from localdelay.breaker import BreakerState, Outcome
from localdelay.entry import Entry, message_of
from localdelay.errors import PermanentSendError
from localdelay.listening import Listener, tell
from localdelay.queue.lanes import Slot
from localdelay.queue.queue import DelayQueue
from localdelay.queue.sending import HandBack

from .events import HandedBack
from .router import Router

IN_FLIGHT = 10
_PASS_EVERY = 1.0
"""Seconds between two searches for what is far, at the least: each walks all that waits."""
_LONGEST_WAIT = 30.0


class Returning:
    """Gives messages of a running queue back to the primary, with the delay that is left."""

    _token: trio.lowlevel.TrioToken

    def __init__(
        self,
        queue: DelayQueue,
        router: Router,
        hand_back: HandBack,
        on_loop: Callable[[Callable[[], None]], object],
        *,
        after: float,
        listener: Listener | None,
    ) -> None:
        self._queue = queue
        self._router = router
        self._gate = router.gate
        self._hand_back = hand_back
        self._on_loop = on_loop
        self._after = after
        self._listener = listener
        self._failures = 0  # passes in a row that ended with an error that is no throttling
        self._failed = False
        self._news = trio.Event()
        self._told = False  # whether the loop is going to hear of what is held
        self._changed = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._pauses: set[trio.CancelScope] = set()

    def begin(self) -> None:
        """Begin, beside the queue's workers and on its loop, and go on until it takes no more messages."""
        self._token = trio.lowlevel.current_trio_token()
        self._queue.run_until_closed(self.run, self.stop)
        self._gate.on_change = self._note_change_from_anywhere
        self._router.on_held = self.wake
        # What another thread has held before `on_held` was there woke nobody.
        if self._router.statistics().local:
            self._news.set()

    def wake(self) -> None:
        """A message is held that may be given back. From any thread."""
        # Not `_news`: the message may still be on its way to the loop when the pass which that news began is
        # over. The flag is off before the post that brings the news, and that comes behind the message.
        if self._told:
            return
        try:
            self._told = True
            self._on_loop(self._note_held)
        except BaseException:  # Ctrl-C, in a thread that publishes: the next is to tell
            self._told = False
            raise

    async def run(self) -> None:
        """Give back what is more than `after` seconds from due, whenever the gate lets it, until `stop`."""
        while not self._stopping:
            with self._pause():
                await self._news.wait()
                await self._until_permitted()
            self._news = trio.Event()
            await self._one_pass()
            with self._pause():
                await trio.sleep(grown(max(1, self._failures), first=_PASS_EVERY, most=_LONGEST_WAIT))

    def stop(self) -> None:
        """Begin no more hand-backs: `run` returns when those under way have ended."""
        self._stopping = True
        for pause in self._pauses:
            pause.cancel()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """A block that `stop` ends: nothing is in hand there."""
        with trio.CancelScope() as pause:
            self._pauses.add(pause)
            if self._stopping:
                pause.cancel()
            try:
                yield
            finally:
                self._pauses.discard(pause)

    async def _until_permitted(self) -> None:
        """Return when a call might be let through: at once, or when an open breaker's wait is over."""
        while (wait := self._gate.retry_in) > 0:
            with trio.move_on_after(wait):
                await self._changed.park()

    def _note_change_from_anywhere(self) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._note_change)

    def _note_held(self) -> None:
        self._told = False
        self._on_loop(self._bring_news)  # once more, behind what was held while the flag was on

    def _bring_news(self) -> None:
        self._news.set()

    def _note_change(self) -> None:
        self._changed.unpark_all()
        self._news.set()

    async def _one_pass(self) -> None:
        slots = self._queue.hand_backs.far(trio.current_time() + self._after)
        remaining = iter(slots)
        self._failed = False
        async with trio.open_nursery() as nursery:
            for _ in range(min(IN_FLIGHT, len(slots))):
                nursery.start_soon(self._give, remaining)
        self._failures = self._failures + 1 if self._failed else 0
        if self._failed or next(remaining, None) is not None:
            self._news.set()  # there is more, for later

    async def _give(self, slots: Iterator[Slot]) -> None:
        while not self._failed and not self._stopping:
            ticket, wait = self._gate.ask_for_spare()
            if ticket is None and wait == math.inf:
                if self._gate.state is not BreakerState.HALF_OPEN:
                    self._news.set()
                    return
                with self._pause():
                    await self._changed.park()  # the trials that are under way will tell
                continue
            if ticket is None:
                with self._pause():
                    await trio.sleep(wait)
                continue
            entry = self._next(slots)
            if entry is None:
                self._gate.release(ticket)
                self._changed.unpark_all()
                return
            ticket = self._gate.charge(ticket, message_of(entry))
            error: Exception | None = None
            outcome = Outcome.OTHER
            try:
                error = await self._queue.hand_backs.give(entry, self._hand_back)
                outcome = self._router.outcome_of(error)
            finally:
                self._gate.record(ticket, outcome, error)
            self._settle(entry, error, outcome)
            self._changed.unpark_all()  # a trial that said nothing is there again, or all are to stop
            del error  # or its traceback, this frame and the payload hold each other

    def _next(self, slots: Iterator[Slot]) -> Entry | None:
        horizon = trio.current_time() + self._after
        for slot in slots:
            if slot[0] >= horizon:
                entry = self._queue.hand_backs.take_out(slot)
                if entry is not None:
                    return entry
        return None

    def _settle(self, entry: Entry, error: Exception | None, outcome: Outcome) -> None:
        if error is None:
            self._router.handed_back()
            message = message_of(entry)
            tell(self._listener, HandedBack(message, max(0.0, message.execute_at - trio.current_time())))
            return
        if outcome is Outcome.THROTTLED:
            self._news.set()
        elif not isinstance(error, PermanentSendError):
            self._failed = True
