"""Handing back while the queue runs: when the primary takes messages again, what is far from due goes to it.

The latest goes first: it would be at risk for longest. A few go at a time, behind all others where a limit
is shared, and as trial calls where the breaker is half-open; so the breaker closes though nobody publishes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from localdelay.breaker import BreakerState, Outcome
from localdelay.entry import Entry, message_of
from localdelay.errors import PermanentSendError
from localdelay.gate import Gate
from localdelay.hops import Hop
from localdelay.listening import HandedBack, tell
from localdelay.queue.handing_back import OutOfTime
from localdelay.queue.lanes import Slot
from localdelay.queue.queue import DelayQueue

from .router import Router
from .routing import NO_ANSWER

IN_FLIGHT = 10
_PASS_EVERY = 1.0
"""Seconds between two searches for what is far, at the least: each walks all that waits."""
_IN_FLIGHT_A_KEY = 2


class Returning:
    """Gives messages of a running queue back to the primary, with the delay that is left."""

    _token: trio.lowlevel.TrioToken

    def __init__(self, queue: DelayQueue, router: Router, *, after: float, timeout: float) -> None:
        self._queue = queue
        self._router = router
        self._gates = router.gates
        self._on_loop = router.world.on_loop
        self._after = after
        self._timeout = timeout
        self._again_at = math.inf  # when something that has failed is to be tried again
        self._news = trio.Event()
        self._held: Hop[None] = Hop(self._on_loop, self._note_held)
        self._changed = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._pauses: set[trio.CancelScope] = set()

    def begin(self) -> None:
        """Begin, beside the queue's workers and on its loop, and go on until it takes no more messages."""
        self._token = trio.lowlevel.current_trio_token()
        self._queue.draining.run_beside(self.run, self.stop)
        self._gates.on_change = self._note_change_from_anywhere
        self._router.on_held = self.wake
        # What another thread has held before `on_held` was there woke nobody.
        if self._router.counts["local"]:
            self._news.set()

    def wake(self) -> None:
        """A message is held that may be given back. From any thread."""
        self._held.send(None)

    async def run(self) -> None:
        """Give back what is more than `after` seconds from due, whenever the gate lets it, until `stop`."""
        while not self._stopping:
            with self._pause():
                with trio.move_on_at(self._again_at):
                    await self._news.wait()
                await self._until_permitted()
            self._news = trio.Event()
            await self._one_pass()
            self._again_at = self._queue.hand_backs.next_try
            with self._pause():
                await trio.sleep(_PASS_EVERY)

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
        while (wait := self._gates.retry_in) > 0:
            with trio.move_on_after(wait):
                await self._changed.park()

    def _note_change_from_anywhere(self) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._note_change)

    def _note_held(self, _: list[None]) -> None:
        # Not at once: what was held since this was sent may still be on its way to the loop when the pass is
        # over that such news would begin. Once more through there is behind it.
        self._on_loop(self._bring_news)

    def _bring_news(self) -> None:
        self._news.set()

    def _note_change(self) -> None:
        self._changed.unpark_all()
        self._news.set()

    async def _one_pass(self) -> None:
        slots = self._queue.hand_backs.far(trio.current_time() + self._after)
        async with trio.open_nursery() as nursery:
            for gate, its_slots in self._by_gate(slots).items():
                one = _Pass(gate, iter(its_slots))
                for _ in range(min(IN_FLIGHT if self._gates.only else _IN_FLIGHT_A_KEY, len(its_slots))):
                    nursery.start_soon(self._give, one)

    def _by_gate(self, slots: list[Slot]) -> dict[Gate, list[Slot]]:
        if self._gates.only is not None:
            return {self._gates.only: slots}
        by_gate: dict[Gate, list[Slot]] = {}
        for slot in slots:
            message = self._queue.hand_backs.look_at(slot)
            with suppress(Exception):  # of `key`, a stranger's: the message stays here
                if message is not None:
                    by_gate.setdefault(self._gates.of(message), []).append(slot)
        return by_gate

    async def _give(self, one: _Pass) -> None:
        gate = one.gate
        while not self._stopping:
            if one.failed >= IN_FLIGHT:
                self._news.set()  # the others have their turn in the next pass
                return
            ticket, wait = gate.ask_for_spare()
            if ticket is None and wait == math.inf:
                if gate.state is not BreakerState.HALF_OPEN:
                    self._news.set()
                    return
                with self._pause(), trio.move_on_after(self._timeout):
                    await self._changed.park()  # the trials that are under way will tell, unless they hang
                continue
            if ticket is None:
                with self._pause():
                    await trio.sleep(wait)
                continue
            entry = self._next(one.slots)
            if entry is None:
                gate.release(ticket)
                self._changed.unpark_all()
                return
            ticket = gate.charge(ticket, message_of(entry))
            error: Exception | None = None
            outcome = Outcome.OTHER
            try:
                error = await self._queue.hand_backs.give(entry, self._router.world.hand_back, self._timeout)
                if not isinstance(error, OutOfTime):
                    outcome = self._router.outcome_of(error)
            finally:
                gate.record(ticket, outcome, error)
                if isinstance(error, NO_ANSWER) or (error is None and outcome is Outcome.OTHER):
                    # It may have it, as well as the queue: who cancels the message has to ask it, too.
                    self._router.remember(message_of(entry), None)
            self._settle(one, entry, error, outcome)
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

    def _settle(self, one: _Pass, entry: Entry, error: Exception | None, outcome: Outcome) -> None:
        if error is None:
            one.failed = 0
            self._router.count("handed_back")
            message = message_of(entry)
            remaining = max(0.0, message.execute_at - trio.current_time())
            tell(self._router.listener, HandedBack(message, remaining))
        elif outcome is Outcome.THROTTLED:
            self._news.set()
        elif not isinstance(error, PermanentSendError):
            one.failed += 1


class _Pass:
    """Once through all that may go back by one gate."""

    def __init__(self, gate: Gate, slots: Iterator[Slot]) -> None:
        self.gate = gate
        self.slots = slots
        self.failed = 0
        """In a row, of different messages."""
