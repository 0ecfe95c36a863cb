"""What happens to a due message: one send, and then the ledger, a retry or the dead letters."""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import trio

from .errors import PermanentSendError, Throttled
from .lateness import LatencyRecorder
from .ledger import Ledger
from .message import NO_HEADERS, Message, headers_size
from .retry import RetryPolicy, after_failure, wait_after
from .schedule import FAILURES, Body, Entry, Schedule, execute_at_of, is_retry
from .workers import Worker, Workers

Send: TypeAlias = Callable[[Message], Awaitable[object]]
DeadLetterHook: TypeAlias = Callable[[Message, Exception], Awaitable[object]]
HandBack: TypeAlias = Callable[[Message, float], Awaitable[object]]

logger = logging.getLogger("localdelay")

_FAILURES_LOGGED_EVERY = 60.0
_NOT_CALLED = object()


def size_of(body: Body) -> int:
    """Bytes of payload and headers."""
    if isinstance(body, bytes):
        return len(body)
    payload, headers = body[:2]
    return len(payload) + headers_size(headers or NO_HEADERS)


def message_of(entry: Entry) -> Message:
    """The message that an entry of the schedule stands for."""
    due, number, body = entry
    if isinstance(body, bytes):
        return Message(number, body, due)
    payload, headers, chosen_id, attempt, _, execute_at = body
    shown = NO_HEADERS if headers is None else MappingProxyType(headers)
    return Message(number if chosen_id is None else chosen_id, payload, execute_at, shown, attempt)


def failure_in(raised: BaseException, *, timed_out: bool) -> Exception | None:
    """The error that a send failed with, or None where it was cut off and has not failed at all.

    A group with one exception in it stands for that exception: a send that opens a nursery raises such.
    """
    if isinstance(raised, BaseExceptionGroup):
        cancelled, _ = raised.split(trio.Cancelled)
        if cancelled is None:
            alone = raised.exceptions[0] if len(raised.exceptions) == 1 else None
            if alone is not None:
                return failure_in(alone, timed_out=timed_out)
            return raised if isinstance(raised, Exception) else None
    elif isinstance(raised, Exception):
        return raised
    elif not isinstance(raised, trio.Cancelled):
        return None
    return trio.TooSlowError("the send took longer than send_timeout") if timed_out else None


def reraise_without_errors(raised: BaseException) -> NoReturn:
    """Raise again what cut a send off: of a group the cancellation, and not the send's own errors."""
    if isinstance(raised, BaseExceptionGroup):
        _, rest = raised.split(Exception)
        if rest is not None:
            raise rest from None
    raise raised


class Delivery:
    """Sends messages, and settles in the ledger and the schedule what came of it."""

    def __init__(
        self,
        send: Send,
        schedule: Schedule,
        ledger: Ledger,
        workers: Workers,
        *,
        retry: RetryPolicy,
        send_timeout: float,
        on_dead_letter: DeadLetterHook | None,
        forget_id: Callable[[str], None],
    ) -> None:
        self._send = send
        self._schedule = schedule
        self._ledger = ledger
        self._workers = workers
        self._retry = retry
        self._send_timeout = send_timeout
        self._on_dead_letter = on_dead_letter
        self._forget_id = forget_id
        self._next_failure_line = -math.inf
        self._failures_logged = 0
        self.in_flight: dict[int, Entry] = {}
        self.failures = 0
        self.throttled = 0
        self.dead_letter_errors = 0
        self.lateness = LatencyRecorder()
        self.send_time = LatencyRecorder()
        self.total = LatencyRecorder()

    async def deliver(self, worker: Worker, entry: Entry, now: float) -> float:
        """Send a message that is due, `now` being the time; return the time afterwards."""
        due, _, body = entry
        message = message_of(entry)
        self._depart(entry)
        if not is_retry(body):
            self.lateness.record(now - due)
        self._workers.expect(worker, now + self._send_timeout)
        sending: Any = _NOT_CALLED
        try:
            sending = self._send(message)
            await sending
        except BaseException as raised:  # noqa: BLE001 (raised again where it is no mere error)
            worker.expires = math.inf
            worker.failure = failure_in(raised, timed_out=worker.timed_out)
            if worker.failure is not None:
                self.send_time.record(trio.current_time() - now)
                if sending is not _NOT_CALLED and not inspect.isawaitable(sending):
                    worker.failure = _not_awaitable("send", sending)
            if not isinstance(raised, Exception):
                reraise_without_errors(raised)
            if not worker.scope.cancel_called:
                await self.settle(worker)
            return trio.current_time()
        worker.expires = math.inf
        worker.entry = None
        finished = trio.current_time()
        self.send_time.record(finished - now)
        self.total.record(finished - message.execute_at)
        self._ledger.sent += 1
        self._finish(entry)
        return finished

    async def settle(self, worker: Worker) -> None:
        """Retry the message that the worker failed to send, or give it to the dead letters."""
        entry, error = worker.entry, worker.failure
        assert entry is not None and error is not None  # noqa: PT018, S101 (the worker's own state)
        message = message_of(entry)
        _, number, body = entry
        failures = 1 + (0 if isinstance(body, bytes) else body[FAILURES])
        now = trio.current_time()
        self._count_failure(error, now)
        retry = after_failure(
            self._retry, error, attempt=message.attempt, failures=failures, jitter=random.random()
        )
        if retry is None:
            await self._give_up(message, error)
            self._ledger.dead += 1
            self._finish(entry)
        else:
            payload, headers, chosen_id = (body, None, None) if isinstance(body, bytes) else body[:3]
            again = (payload, headers, chosen_id, retry.attempt, failures, message.execute_at)
            self._arrive(entry)
            self._schedule.put_back(now + retry.wait, number, again)
            if now + retry.wait < self._workers.leader_due:
                self._workers.wake_leader()
        worker.entry = worker.failure = None

    async def hand_back(self, entry: Entry, hand_back: HandBack) -> None:
        """Give a message that is not due yet to the primary, and try again for as long as that fails.

        One that can never be handed back (`PermanentSendError`) is kept, and stays pending.
        """
        message = message_of(entry)
        self._depart(entry)
        failures = 0
        try:
            while True:
                left = max(0.0, message.execute_at - trio.current_time())
                try:
                    giving: Any = hand_back(message, left)
                    if not inspect.isawaitable(giving):
                        raise _not_awaitable("hand_back", giving)
                    await giving
                except Exception as raised:  # noqa: BLE001 (whatever it is, it harms this message only)
                    error = failure_in(raised, timed_out=False) or raised
                else:
                    break
                failures += 1
                self._count_failure(error, trio.current_time())
                if isinstance(error, PermanentSendError):
                    self._arrive(entry)
                    self._schedule.keep(*entry)
                    return
                await trio.sleep(wait_after(self._retry, error, failures=failures, jitter=random.random()))
        except BaseException as raised:  # noqa: BLE001 (raised again)
            self.put_back(entry)
            reraise_without_errors(raised)
        self._ledger.handed_back += 1
        self._finish(entry)

    def put_back(self, entry: Entry) -> None:
        """Make a message pending again whose send, hook or hand-back was cut off."""
        self._arrive(entry)
        self._schedule.put_back(*entry)

    def oldest(self) -> float:
        """The earliest execute-at of what is being sent; infinite if there is none."""
        return min((execute_at_of(due, body) for due, _, body in self.in_flight.values()), default=math.inf)

    def _depart(self, entry: Entry) -> None:
        self.in_flight[entry[1]] = entry
        self._ledger.sending += 1

    def _arrive(self, entry: Entry) -> None:
        del self.in_flight[entry[1]]
        self._ledger.sending -= 1

    def _finish(self, entry: Entry) -> None:
        body = entry[2]
        self._arrive(entry)
        self.forget(body)
        self._ledger.release(size_of(body))

    def forget(self, body: Body) -> None:
        """Free the id of a message that is finished."""
        if not isinstance(body, bytes) and body[2] is not None:
            self._forget_id(body[2])

    async def _give_up(self, message: Message, error: Exception) -> None:
        if self._on_dead_letter is None:
            logger.error("dead letter: message %s of %d bytes: %r", message.id, message.size, error)
            return
        try:
            with trio.fail_after(self._send_timeout):
                await self._on_dead_letter(message, error)
        except BaseException as raised:  # noqa: BLE001 (raised again where it is no mere error)
            failure = failure_in(raised, timed_out=False)
            if failure is None:
                reraise_without_errors(raised)
            self.dead_letter_errors += 1
            logger.error(
                "the dead-letter hook failed for message %s of %d bytes (%r): %r",
                message.id,
                message.size,
                error,
                failure,
            )

    def _count_failure(self, error: Exception, now: float) -> None:
        self.failures += 1
        self.throttled += isinstance(error, Throttled)
        if now >= self._next_failure_line:
            self._next_failure_line = now + _FAILURES_LOGGED_EVERY
            count = self.failures - self._failures_logged
            self._failures_logged = self.failures
            logger.info("%d sends failed since the last such line, the latest with %r", count, error)


def _not_awaitable(name: str, returned: object) -> PermanentSendError:
    """The error for a function that is not async: to call it again might well send again."""
    return PermanentSendError(
        f"{name} returned {type(returned).__name__}, which cannot be awaited; "
        "make a send of a blocking function with localdelay.blocking"
    )
