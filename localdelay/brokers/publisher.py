"""What all brokers share: sends that wait for their connection and their answers, on a driver.

A connection that was lost is made again for as long as the block is open. What was under way then raises
`ConnectionLost`, for who knows whether it was taken; what was not written yet goes to the next connection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from trio.lowlevel import enable_ki_protection

from localdelay import arguments
from localdelay.backoff import Backoff
from localdelay.brokers.broker import ConnectionClosed, ConnectionLost, in_a_line
from localdelay.brokers.driver import Connection, Driver
from localdelay.brokers.outbox import Gauges, Outbox, Parcel, Sending
from localdelay.errors import DelayNotSupported, PermanentSendError, Throttled
from localdelay.limit import Limit
from localdelay.message import Message
from localdelay.nurseries import bare_nursery
from localdelay.settling import caused_by, raise_failures

logger = logging.getLogger("localdelay.brokers")

_SHORTEST = 0.001
"""Seconds: the shortest time limit that there may be."""
_STUCK = 0.005
"""Seconds: in a turn of the loop that took longer a connection may have been lost, and nobody has looked."""
_TURNS = 3
"""Of the loop, which a client may take to notice that there is none."""
_SETTLED = 1.0
"""Seconds: the next attempt after a connection that held so long is made almost at once."""


class Publisher(trio.abc.Instrument):
    """A broker, on a driver; `open_publisher` makes it."""

    def __init__(self, driver: Driver, connect_timeout: float) -> None:
        self._driver = driver
        self._confirm_timeout = driver.confirm_timeout
        self._connect_timeout = connect_timeout
        self._outbox = Outbox(self._verdict, driver.most_under_way, driver.most_bytes_under_way)
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()
        self._dropped: Exception | None = None
        self._trouble: Exception | None = None
        self._closed = False
        self._awake_since = -math.inf
        self._lone = False
        """Whether one message was all that was written last: the next one need not wait for company then."""
        self._turns = 0
        """Of the loop in which nothing is written yet: a connection that was lost is to say so first."""
        self._token = trio.lowlevel.current_trio_token()

    @property
    def native_delay(self) -> bool:
        """Whether `publish_delayed` works: the broker has a delay of its own."""
        return self._driver.native_delay

    @enable_ki_protection
    async def send(self, message: Message) -> None:
        """Publish a message now, as `Broker.send` does."""
        sending = self._begin(message, None)
        await sending.settled()
        if sending.failed is not None:
            raise sending.failed.pop(0)

    @enable_ki_protection
    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now, in their order, as `Broker.send_batch` does. Each is taken or not."""
        messages = tuple(messages)
        self._check_open()
        sending = Sending(self._outbox, len(messages))
        for message in messages:
            _check_payload(message)
        parcels: list[Parcel] = []
        outbox, encode, now = self._outbox, self._driver.encode, trio.current_time()
        for position, message in enumerate(messages):
            try:
                content = encode(message, None, now)
            except Exception as error:  # noqa: BLE001 (whatever it is: it is this message's alone)
                sending.fail(position, error)
                sending.unsettled -= 1
            else:
                parcel = outbox.parcel(message, content, sending, position, now)
                parcels.append(parcel)
                outbox.put(parcel)
        sending.parcels = parcels
        await sending.settled()
        if sending.failed is not None:
            raise_failures(messages, sending.failed)

    @enable_ki_protection
    async def publish_delayed(self, message: Message, delay: float) -> object:
        """Have the broker publish a message in `delay` seconds, as `Broker.publish_delayed` does.

        Where there is no connection it fails at once: who calls it may have another way.
        """
        delay = arguments.at_least("delay", delay, 0, "a number of seconds")
        self._check_open()
        if not self._driver.native_delay:
            raise DelayNotSupported(f"{self._driver.where}: {self._driver.no_delay}")
        if self._connection is None:
            raise self._verdict(self._not_connected())
        sending = self._begin(message, delay)
        (parcel,) = sending.parcels
        await sending.settled()
        if sending.failed is not None:
            raise sending.failed.pop(0)
        return parcel.handle

    async def cancel_delayed(self, id: str, handle: object) -> None:
        """Ask the broker not to publish a message, as `Broker.cancel_delayed` does."""
        self._check_open()
        if self._connection is None:
            raise self._verdict(self._not_connected())
        try:
            with trio.fail_after(self._confirm_timeout):
                await self._driver.cancel_delayed(self._connection, id, handle)
        except trio.TooSlowError as error:
            raise self._unanswered() from error
        except Exception as error:
            raise self._verdict(error) from error

    def gauges(self) -> Gauges:
        """How much is on its way."""
        return self._outbox.gauges()

    def _begin(self, message: Message, delay: float | None) -> Sending:
        """Put a message; it is written at the end of this turn of the loop, or where it is alone at once."""
        self._check_open()
        _check_payload(message)
        outbox, now = self._outbox, trio.current_time()
        try:
            content = self._driver.encode(message, delay, now)
        except Exception as error:  # noqa: BLE001 (raised again, as what it means)
            verdict = self._verdict(error)
            raise verdict from verdict.__cause__
        sending = Sending(outbox)
        parcel = outbox.parcel(message, content, sending, 0, now)
        parcel.only_now = delay is not None
        sending.parcels = (parcel,)
        lone = self._lone and outbox.is_idle()
        outbox.put(parcel)
        if lone and self._connection is not None and now - self._awake_since < _STUCK:
            self._write(self._connection, now)
        return sending

    def after_io_wait(self, timeout: float) -> None:
        """Trio calls it when a turn of the loop begins. Must not raise."""
        self._awake_since = trio.current_time()

    @enable_ki_protection
    def before_io_wait(self, timeout: float) -> None:
        """Write what the tasks of this turn of the loop have put; Trio calls it, and then waits for so long.

        So no task of ours has to run for it, and what comes in one turn goes in one write. Must not raise.
        """
        if self._connection is None or not self._outbox.has_work():
            return
        now = trio.current_time()
        if self._turns == 0 and now - self._awake_since >= _STUCK:
            self._turns = _TURNS
        if self._turns > 1:
            self._turns -= 1
            self._token.run_sync_soon(_nothing)
            return
        self._turns = 0
        self._write(self._connection, now)
        # Trio has decided already for how long it waits, and does not look again what has become runnable.
        if timeout and (trio.lowlevel.current_statistics().tasks_runnable or self._outbox.has_work()):
            self._token.run_sync_soon(_nothing)

    def _write(self, connection: Connection, now: float) -> None:
        parcels = self._outbox.take(now)
        self._lone = len(parcels) == 1
        try:
            connection.write(parcels)
        except ConnectionError as error:
            self._outbox.again(parcels)
            self._drop(error)
        except Exception as error:  # noqa: BLE001 (what the client raises: the connection may be out of step)
            for parcel in parcels:
                parcel.settle(error)
            self._drop(error)

    def _drop(self, reason: Exception) -> None:
        """Give the connection up, and have another made."""
        self._connection = None
        self._dropped = reason
        self._scope.cancel()

    @enable_ki_protection
    async def expire(self) -> None:
        """Fail what has taken too long: one timer for all. To be run as a task."""
        limit, driver, outbox = self._confirm_timeout, self._driver, self._outbox
        patience = limit + driver.patience
        while True:
            now = trio.current_time()
            while (first := outbox.oldest_waiting()) is not None and first.begun + limit <= now:
                first.settle(self._not_written())
            while (first := outbox.oldest_under_way()) is not None and first.written + patience <= now:
                if not driver.in_order:
                    first.settle(self._unanswered())
                elif self._heard() + patience <= now:
                    self._drop(self._unanswered())
                    outbox.fail_under_way(self._unanswered)
                else:
                    break  # it answers, one after the other: who is slow is not asked again for the same
            await trio.sleep_until(self._next_expiry(now))

    def _next_expiry(self, now: float) -> float:
        limit, patience = self._confirm_timeout, self._confirm_timeout + self._driver.patience
        waiting, under_way = self._outbox.oldest_waiting(), self._outbox.oldest_under_way()
        ends = [now + limit]  # what comes in meanwhile is not due before that
        if waiting is not None:
            ends.append(waiting.begun + limit)
        if under_way is not None:
            ends.append(max(under_way.written, self._heard()) + patience)
        return min(ends)

    def _heard(self) -> float:
        return getattr(self._connection, "heard", -math.inf)

    @enable_ki_protection
    async def keep_connected(self, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and whenever the connection is lost connect again: for ever. To be run as a task.

        Raises where the first connection does not come about.
        """
        backoff = Backoff()
        opened = False

        def connected() -> None:
            nonlocal opened
            if not opened:
                task_status.started()
                opened = True

        while True:
            begun = trio.current_time()
            try:
                reason = await self._live(connected)
            except Exception as error:  # noqa: BLE001 (raised, or the next connection's business)
                if not opened:
                    refusal = self._no_connection(error)
                    raise refusal from (None if refusal is error else error)
                self._trouble = error
                logger.debug("%s: %s", self._driver.where, error)
                if isinstance(self._not_connected(), Throttled) and not isinstance(error, TimeoutError):
                    self._outbox.refuse(self._not_connected)
            else:
                logger.debug("%s: lost: %s", self._driver.where, in_a_line(reason))
                self._trouble = reason
                lost = self._lost_for(reason)
                self._outbox.fail_under_way(lost)
                self._outbox.refuse(self._not_connected, only_now=True)
                if trio.current_time() - begun >= _SETTLED:
                    backoff.reset()
            await trio.sleep(backoff.next())

    async def _live(self, connected: Callable[[], None]) -> Exception:
        """Connect, and publish until the connection is lost; why it was. Raises where there is none."""
        self._dropped = reason = None
        stood = False
        try:
            with trio.move_on_after(self._connect_timeout) as self._scope:
                async with self._driver.connect(self._outbox) as connection:
                    self._scope.deadline = math.inf
                    stood = True
                    self._connection = connection
                    self._trouble = None
                    connected()
                    try:
                        reason = await connection.lost()
                    except Exception as error:  # noqa: BLE001 (whatever it raises ends the connection, no more)
                        reason = error
                    finally:
                        self._connection = None
        except Exception:
            if stood or not self._scope.cancel_called:
                raise  # or it is what a client made of being cut off
        if not stood:
            raise TimeoutError(f"no answer within {self._connect_timeout:g} s")
        if isinstance(self._dropped, Exception):
            return self._dropped
        return reason if isinstance(reason, Exception) else ConnectionError("it was given up")

    @enable_ki_protection
    def close(self) -> None:
        """Fail whatever is not confirmed, and take nothing more."""
        self._closed = True
        self._connection = None
        self._outbox.fail_under_way(self._closed_error)
        self._outbox.refuse(self._closed_error)

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _verdict(self, error: Exception) -> Exception:
        if isinstance(error, Throttled | PermanentSendError | ConnectionLost | ConnectionClosed):
            return error
        if isinstance(error, UnicodeEncodeError):
            # Without a cause: that would show a header.
            return PermanentSendError("an id or header that is no valid Unicode can't be sent")
        return caused_by(self._driver.verdict(error), error)

    # What is raised.

    def _no_connection(self, error: Exception) -> Exception:
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError | OSError):
            return error  # of the options; a certificate's is both
        text = "that is no host's name" if isinstance(error, UnicodeError) else in_a_line(error)
        return ConnectionError(f"no connection to {self._driver.where}: {text}")

    def _not_connected(self) -> Exception:
        trouble = self._trouble or ConnectionError("it is not connected yet")
        error = self._no_connection(trouble)
        verdict = self._verdict(trouble)
        if isinstance(verdict, Throttled):
            error = Throttled(str(error), retry_after=verdict.retry_after)
        return caused_by(error, trouble)

    def _lost_for(self, reason: Exception) -> Callable[[], Exception]:
        text = f"the connection to {self._driver.where} was lost: {in_a_line(reason)}"
        return lambda: caused_by(ConnectionLost(text), reason)

    def _not_written(self) -> Exception:
        if self._connection is None:
            return self._not_connected()
        return TimeoutError(f"{self._driver.where} took no more within {self._confirm_timeout:g} s")

    def _unanswered(self) -> Exception:
        return TimeoutError(f"{self._driver.where} did not answer within {self._confirm_timeout:g} s")

    def _closed_error(self) -> Exception:
        return ConnectionClosed(f"the connection to {self._driver.where} is closed")


@asynccontextmanager
async def open_publisher(
    driver: Driver,
    *,
    confirm_timeout: float | None = None,
    connect_timeout: float = 5.0,
    limit: Limit | None = None,
) -> AsyncIterator[Publisher]:
    """Connect, and publish for the length of an `async with` block.

    What has found no connection, or is not confirmed, within `confirm_timeout` seconds has failed; None is
    what the driver has. Raises `ConnectionError` in one line where there is no connection within
    `connect_timeout` seconds.
    """
    if confirm_timeout is not None:
        arguments.at_least("confirm_timeout", confirm_timeout, _SHORTEST, "a number of seconds")
        driver.confirm_timeout = confirm_timeout
    arguments.at_least("connect_timeout", connect_timeout, _SHORTEST, "a number of seconds")
    if limit is not None:
        driver.slow_down = limit.slow_down
    publisher = Publisher(driver, connect_timeout)
    trio.lowlevel.add_instrument(publisher)
    try:
        async with bare_nursery() as nursery:
            try:
                await nursery.start(publisher.keep_connected)
                nursery.start_soon(publisher.expire)
                yield publisher
            finally:
                publisher.close()
                nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(publisher)


def _nothing() -> None:
    """What is called so that the loop goes round once more."""


def _check_payload(message: Message) -> None:
    if not isinstance(message.payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(message.payload).__name__}")
