"""What happens to a due message: one send, and then its end, a retry or the dead letters.

Until a message has ended or is back in the order it stands in its worker's `entries`, whatever is awaited:
who is cancelled meanwhile leaves it there, and the pool brings it back. A send is ended in three ways that
must not be mixed up. It returns or raises by itself: that decides. The pool is stopped: the send has not
failed, and its message is pending again. It takes longer than `send_timeout`: the watchdog ends it, and it
has failed like any other (`worker` has the whole way of it).
"""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter, sub
from typing import Any, Final, TypeAlias

import trio

from localdelay.entry import (
    Entry,
    after_failing,
    all_plain,
    attempt_of,
    execute_at_of,
    expires_of,
    failures_of,
    has_expired,
    is_suspect,
    message_of,
    plain_size,
    size_of,
)
from localdelay.errors import Expired, LocalDelayError, PermanentSendError, Throttled, asked_wait
from localdelay.keeping import End
from localdelay.lateness import LatencyRecorder
from localdelay.listening import DeadLetter, Listener, tell
from localdelay.logs import log, told
from localdelay.message import Message
from localdelay.nurseries import failure_in, reraise_without_errors
from localdelay.timer import clock_parts

from .batch import blame
from .failures import Failures, is_down
from .retry import RetryPolicy, after_failure
from .taking import Taking
from .worker import Watchdog, Worker

Send: TypeAlias = Callable[[Message], Awaitable[object]]
SendBatch: TypeAlias = Callable[[Sequence[Message]], Awaitable[object]]
DeadLetterHook: TypeAlias = Callable[[Message, Exception], Awaitable[object]]
HandBack: TypeAlias = Callable[[Message, float], Awaitable[object]]
Outcome: TypeAlias = tuple[Entry, float, float, Exception | None]
"""(message, when its send began and ended, what it failed with), for a send that did not run on the loop."""

# Found once, for to look a member up takes a tenth of a send; an exact int, which indexes a list faster.
_SENT: Final[End] = int(End.SENT)  # type: ignore[assignment]
_NOT_CALLED = object()
_DUE: Final = itemgetter(0)


class Delivery:
    """Sends messages, and settles in the ledger and the schedule what came of it."""

    def __init__(
        self,
        send: Any,
        taking: Taking,
        *,
        one_by_one: bool,
        retry: RetryPolicy,
        send_timeout: float,
        on_dead_letter: DeadLetterHook | None,
        listener: Listener | None,
    ) -> None:
        """`send` is as it was given; one that brings workers is not called."""
        self._send = send
        self._one_by_one = one_by_one
        self._taking = taking
        self._pending = taking.pending
        self.valve = taking.valve
        self.retry = retry
        self.send_timeout = send_timeout
        self._on_dead_letter = on_dead_letter
        self._listener = listener
        self.watchdog = Watchdog()
        self._read_clock, self._clock_offset = clock_parts()
        self.failures = Failures()
        self.dead_letter_errors = 0
        self.expired = 0
        self.lateness = LatencyRecorder()
        self.send_time = LatencyRecorder()
        self.total = LatencyRecorder()

    async def deliver(self, worker: Worker, now: float) -> float:
        """Send what the worker has taken, `now` being the time; return the time afterwards."""
        entries = worker.entries
        if self._pending.keeper.minds_sends:
            now = await self._begin(worker, now)
            if not entries:
                return now
        due, number, body = entries[0]
        given: Any
        instants: list[float] | None = None
        size: int | None = None
        if len(entries) == 1 and type(body) is bytes:  # each message, where there are no batches
            given = Message(number, body, due)
            if not self._one_by_one:
                given = [given]
            size = len(body)
            self.lateness.record(now - due)
        elif all_plain(entries):
            given = [Message(number, body, due) for due, number, body in entries]  # type: ignore[arg-type]
            instants = [entry[0] for entry in entries]
            size = worker.size
            self.lateness.record_run(now, instants)
        else:
            if doomed := self.doomed(entries, now):
                self._give_back(worker)
                await self.give_up(worker, doomed)
                return self._read_clock() + self._clock_offset
            given = message_of(entries[0]) if self._one_by_one else [message_of(entry) for entry in entries]
            instants = [execute_at_of(due, body) for due, _, body in entries]
            first_sends = [execute_at_of(due, body) for due, _, body in entries if not failures_of(body)]
            self.lateness.record_run(now, first_sends)
        worker.send_deadline = now + self.send_timeout
        if self.watchdog.asleep is not None:
            self.watchdog.wake()
        sending: Any = _NOT_CALLED
        try:
            sending = self._send(given)
            await sending  # cut off here: nobody knows whether the real queue has it; `entries` has it still
        except BaseException as raised:  # noqa: BLE001 (raised again where it is no mere error)
            worker.send_deadline = math.inf
            worker.began = now
            worker.failure = failure_in(raised, timed_out=worker.timed_out)
            if worker.failure is not None:
                self.send_time.record(self._read_clock() + self._clock_offset - now)
                if sending is not _NOT_CALLED and not inspect.isawaitable(sending):
                    worker.failure = not_awaitable("send", sending)
            if not isinstance(raised, Exception):
                reraise_without_errors(raised)
            # In a scope that is used up every wait would be cut off, the dead-letter hook's too.
            if not worker.timed_out:
                await self.settle(worker)
            return self._read_clock() + self._clock_offset
        # The real queue has it. Until it has ended here nothing may wait: cut off, it would be sent again.
        worker.send_deadline = math.inf
        finished = self._read_clock() + self._clock_offset
        self.send_time.record(finished - now)
        if instants is None:
            self.total.record(finished - due)
        else:
            self.total.record_run(finished, instants)
        valve = self.valve
        if valve.probe.row or (valve.limit is not None and valve.limit.limits):
            valve.of(entries).sent(finished, entries, finished - now)
        # Nobody waits until that is kept: the next send of this worker does, before it begins.
        self._pending.end(entries, _SENT, size)
        entries.clear()
        worker.size = 0
        return finished

    async def _begin(self, worker: Worker, now: float) -> float:
        """Let the keeper know of what is to be sent, without what has lapsed; return the time then."""
        keeper = self._pending.keeper
        if keeper.lapses and not self._let_go_of_lapsed(worker, now):
            return now
        wait = keeper.begins(worker.entries)
        if wait is None:
            return now
        worker.is_paid = worker.is_paid and self.valve.of(worker.entries).limits
        # This waits for the end of its last send, too: a crash is to repeat one send a worker, and not two.
        try:
            await wait()  # cut off here: it may be marked as being sent, until its next end or failure
        except BaseException:
            self._give_back(worker)
            raise
        if self._taking.is_paused:
            self._give_back(worker)
            self._taking.release(worker)
        return self._read_clock() + self._clock_offset

    def _give_back(self, worker: Worker) -> None:
        # Not to a limit that has begun since they were taken: it had nothing of them.
        if worker.is_paid:
            self.valve.give_back(worker.entries)

    def _let_go_of_lapsed(self, worker: Worker, now: float) -> bool:
        """Let go of messages that are somebody else's by now; whether there are others."""
        ours = self._pending.keeper.owns(worker.entries, now)
        numbers = {number for _, number, _ in ours}
        lapsed = [entry for entry in worker.entries if entry[1] not in numbers]
        worker.entries[:] = ours
        worker.size = sum(size_of(body) for _, _, body in ours)
        if lapsed:
            self._pending.end(lapsed, End.SPOOLED)
            self.valve.give_back(lapsed)  # or others would wait for sends that nobody makes
        return bool(ours)

    def sent(self, outcomes: Sequence[Outcome]) -> None:
        """Messages were sent, each on its own, elsewhere than on the loop."""
        entries, began_at, ended_at, _ = map(list, zip(*outcomes, strict=True))
        plain = all_plain(entries)
        if plain:
            dues = list(map(_DUE, entries))
            self.lateness.record_each(list(map(sub, began_at, dues)))
            self.total.record_each(list(map(sub, ended_at, dues)))
        else:
            for (due, _, body), began, ended, _ in outcomes:
                execute_at = execute_at_of(due, body)
                self.total.record(ended - execute_at)
                if not failures_of(body):
                    self.lateness.record(began - execute_at)
        self.send_time.record_each(list(map(sub, ended_at, began_at)))
        valve = self.valve
        if valve.probe.row or (valve.limit is not None and valve.limit.limits):
            for entry, began, ended, _ in outcomes:
                valve.of([entry]).sent(ended, [entry], ended - began)
        self._pending.end(entries, End.SENT, plain_size(entries) if plain else None)

    def failed(self, outcome: Outcome) -> Exception | None:
        """A send failed elsewhere than on the loop: have it tried again, or return what to give it up for."""
        entry, began, ended, error = outcome
        assert error is not None  # noqa: S101 (it is why this is called)
        due, _, body = entry
        if not failures_of(body):
            self.lateness.record(began - execute_at_of(due, body))
        self.send_time.record(ended - began)
        doomed = self._judge([entry], error, began, ended)
        return doomed[0][1] if doomed else None

    async def settle(self, worker: Worker) -> None:
        """Retry each message of the batch that failed, or give it to the dead letters."""
        assert worker.failure is not None  # noqa: S101 (it is why this is called)
        doomed = self._judge(worker.entries, worker.failure, worker.began, trio.current_time())
        worker.entries[:] = [entry for entry, _ in doomed]
        await self.give_up(worker, doomed)

    def _judge(
        self, entries: Sequence[Entry], error: Exception, began: float, now: float
    ) -> list[tuple[Entry, Exception]]:
        """A send of these has failed: have them tried again; return those to be given up, and for what.

        A batch that failed as a whole is tried again as a batch: an outage must not turn into single
        sends. Messages that failed on their own are tried again alone, and so are all of a batch that is
        permanently refused, without using up an attempt: it does not say which of them is to blame.
        """
        ids = [message_of(entry).id for entry in entries]
        blamed = blame(error, ids)
        # Of each message, for two may have one id: an outage must not look as if one of them had been sent.
        errors = [error if blamed is None else blamed.get(its_id) for its_id in ids]
        valve = self.valve.of(entries)
        sent = [entry for entry, its_error in zip(entries, errors, strict=True) if its_error is None]
        if sent:
            valve.sent(now, sent, now - began)
            for entry, its_error in zip(entries, errors, strict=True):
                if its_error is not None:
                    valve.record(now, [entry], now - began, its_error)
        else:
            # The one that says most. Not `error`: that says nothing where it names each message's own.
            most = max((each for each in errors if each is not None), key=_says)
            valve.failed(now, entries, most, now - began)
        refused = isinstance(error, PermanentSendError) and not isinstance(error, WrongKind)
        split = refused and blamed is None and len(entries) > 1
        alone = split or blamed is not None
        failures, jitter = 1 + max(failures_of(body) for _, _, body in entries), random.random()
        doomed: list[tuple[Entry, Exception]] = []
        for entry, its_error in zip(entries, errors, strict=True):
            if its_error is None:
                self.total.record(now - execute_at_of(entry[0], entry[2]))
                self._pending.end([entry], End.SENT)
                continue
            attempt = attempt_of(entry[2])
            retry = after_failure(self.retry, its_error, attempt=attempt, failures=failures, jitter=jitter)
            self.failures.add(now, its_error)
            if split:
                when, again = now, after_failing(entry, attempt, alone=True)
            elif is_down(its_error) and valve.probe.is_shut:
                # Not the message's fault: it goes on after what is due already, and has lost no attempt.
                when, again = now, after_failing(entry, attempt, alone=alone, counts=False)
            elif retry is None:
                doomed.append((entry, its_error))
                continue
            else:
                when, again = now + retry.wait, after_failing(entry, retry.attempt, alone=alone)
            self._pending.bring_back(entry, (when, entry[1], again))
        return doomed

    def doomed(self, entries: Sequence[Entry], now: float) -> list[tuple[Entry, Exception]]:
        """Those that are not to be sent any more, each with what it is given up for."""
        most = math.inf if self.retry.attempts is None else self.retry.attempts
        doomed: list[tuple[Entry, Exception]] = []
        for entry in entries:
            due, _, body = entry
            if has_expired(entry, now):
                late, worth = now - execute_at_of(due, body), expires_of(body)
                line = f"{late:.3g} s late, and worth sending for {worth:.3g} s only"
                doomed.append((entry, Expired(line)))
            elif is_suspect(entry) and attempt_of(body) > most:
                line = f"the process ended each time that it was sent, {attempt_of(body) - 1} times"
                doomed.append((entry, LocalDelayError(line)))
        return doomed

    async def give_up(self, worker: Worker, doomed: Sequence[tuple[Entry, Exception]]) -> None:
        """Give these, which the worker has, to the dead letters; what else it has is pending again."""
        # Nobody is to wait for the hook of another message. Cut off in a hook, its message and those after it
        # are still the worker's, and are brought back; each is taken off as it ends.
        entries, given_up = worker.entries, [entry for entry, _ in doomed]
        numbers = {number for _, number, _ in given_up}
        left = [entry for entry in entries if entry[1] not in numbers]
        entries[:] = given_up
        for entry in left:
            self._pending.bring_back(entry, entry)
        if given_up:
            self.valve.of(given_up).given_up(given_up)
        for entry, its_error in doomed:
            message = message_of(entry)
            is_taken = await self._bury(message, its_error)
            self.expired += isinstance(its_error, Expired)
            self._pending.end([entry], End.DEAD, why=None if is_taken else told(its_error))
            del entries[0]
            tell(self._listener, DeadLetter(message, its_error))
        worker.clear()
        await self._pending.keeper.written()

    async def _bury(self, message: Message, error: Exception) -> bool:
        """Give the message to the dead letters; whether the hook has taken it."""
        what = message.id, message.size, told(error)
        if self._on_dead_letter is None:
            log(logging.ERROR, "dead letter: message %s of %d bytes: %s", *what)
            return False
        try:
            with trio.fail_after(self.send_timeout):
                await awaitable("on_dead_letter", self._on_dead_letter(message, error))
            return True
        except BaseException as raised:  # noqa: BLE001 (raised again where it is no mere error)
            failure = failure_in(raised, timed_out=False)
            if failure is None:
                reraise_without_errors(raised)
            self.dead_letter_errors += 1
            line = "the dead-letter hook failed for message %s of %d bytes (%s): %s"
            log(logging.ERROR, line, *what, told(failure))
            del failure  # or its traceback, this frame and the payload hold each other
            return False


def _says(error: Exception) -> tuple[bool, bool, float]:
    """How much this says of the broker, to be compared: it may be down, refuses for a while, or neither."""
    return is_down(error), isinstance(error, Throttled), asked_wait(error) or 0.0


class WrongKind(PermanentSendError):
    """A function that was given as async is not, or the other way round: to call it again changes nothing."""


def not_awaitable(name: str, returned: object) -> PermanentSendError:
    """What to raise where a function that was given as async has returned this."""
    return WrongKind(
        f"{name} returned {type(returned).__name__}, which cannot be awaited; "
        "make a send of a blocking function with localdelay.blocking"
    )


def awaitable(name: str, returned: Awaitable[object]) -> Awaitable[object]:
    """What such a function has returned. Raises `PermanentSendError` where it can't be awaited."""
    if not inspect.isawaitable(returned):
        raise not_awaitable(name, returned)
    return returned
