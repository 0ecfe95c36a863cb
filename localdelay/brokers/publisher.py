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
from localdelay.brokers.broker import ConnectionClosed, ConnectionLost
from localdelay.brokers.driver import Connection, Driver
from localdelay.brokers.outbox import Gauges, Outbox, Parcel, Sending
from localdelay.errors import DelayNotSupported, PermanentSendError, Throttled
from localdelay.limit import Limit
from localdelay.message import Message
from localdelay.nurseries import bare_nursery
from localdelay.settling import caused_by

logger = logging.getLogger("localdelay.brokers")

_SHORTEST = 0.001
"""Seconds: the shortest time limit that there may be."""
_FRESH = 0.002
"""Seconds after a write in which nobody asks whether there still is a connection."""
_TURNS = 3
"""Of the loop, which a client may take to notice that there is none."""
_SETTLED = 1.0
"""Seconds: the next attempt after a connection that held so long is made almost at once."""


class Publisher:
    """A broker, on a driver; `open_publisher` makes it."""

    def __init__(self, driver: Driver, connect_timeout: float) -> None:
        self._driver = driver
        self._confirm_timeout = driver.confirm_timeout
        self._connect_timeout = connect_timeout
        self._filled = trio.lowlevel.ParkingLot()
        self._outbox = Outbox(
            self._verdict, self._filled.unpark, driver.most_under_way, driver.most_bytes_under_way
        )
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()
        self._dropped: Exception | None = None
        self._trouble: Exception | None = None
        self._closed = False
        self._latest = -math.inf

    @property
    def native_delay(self) -> bool:
        """Whether `publish_delayed` works: the broker has a delay of its own."""
        return self._driver.native_delay

    @enable_ki_protection
    async def send(self, message: Message) -> None:
        """Publish a message now, as `Broker.send` does."""
        await self._send(message, None)

    @enable_ki_protection
    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now, in their order, as `Broker.send_batch` does. Each is taken or not."""
        messages = tuple(messages)
        self._check_open()
        sending = Sending(self._outbox, len(messages))
        for message in messages:
            _check_payload(message)
        parcels: list[Parcel] = []
        encode, parcel_of, now = self._driver.encode, self._outbox.parcel, trio.current_time()
        for position, message in enumerate(messages):
            try:
                content = encode(message, None)
            except Exception as error:  # noqa: BLE001 (whatever it is: it is this message's alone)
                sending.settle(position, error)
            else:
                parcels.append(parcel_of(message, content, sending, position, now))
        sending.parcels = parcels
        self._put(parcels)
        await sending.of_all(messages)

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
        return await self._send(message, delay)

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

    async def _send(self, message: Message, delay: float | None) -> object:
        self._check_open()
        _check_payload(message)
        outbox = self._outbox
        sending = Sending(outbox)
        try:
            content = self._driver.encode(message, delay)
        except Exception as error:  # noqa: BLE001 (raised again, as what it means)
            verdict = self._verdict(error)
            raise verdict from verdict.__cause__
        parcel = outbox.parcel(message, content, sending, 0, trio.current_time())
        parcel.only_now = delay is not None
        sending.parcels = (parcel,)
        self._put((parcel,))
        await sending.of_one()
        return parcel.handle

    def _put(self, parcels: Sequence[Parcel]) -> None:
        # What has nobody to be gathered with would gain nothing by another turn of the loop.
        lone = self._outbox.put(parcels) or len(parcels) > 1
        if lone and self._connection is not None and trio.current_time() - self._latest < _FRESH:
            self._pump()
        else:
            self._filled.unpark()

    def _pump(self) -> bool:
        """Write what there is room for, as far as one turn of the loop goes. Whether anything was written."""
        connection, now = self._connection, trio.current_time()
        if connection is None or not (parcels := self._outbox.take(now)):
            return False
        self._latest = now
        try:
            connection.write(parcels)
        except ConnectionError as error:
            self._outbox.again(parcels)
            self._drop(error)
        except Exception as error:  # noqa: BLE001 (what the client raises: the connection may be out of step)
            for parcel in parcels:
                parcel.settle(error)
            self._drop(error)
        return True

    def _drop(self, reason: Exception) -> None:
        """Give the connection up, and have another made."""
        self._connection = None
        self._dropped = reason
        self._scope.cancel()

    @enable_ki_protection
    async def write(self) -> None:
        """Write what is put, gathered for a turn of the loop. To be run as a task."""
        while True:
            while self._pump():
                await trio.lowlevel.checkpoint()
            await self._filled.park()
            if trio.current_time() - self._latest >= _FRESH:
                for _ in range(
                    _TURNS
                ):  # so that a connection that was lost meanwhile says so, and costs nobody
                    await trio.lowlevel.checkpoint()

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
                    self._filled.unpark()
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
    async with bare_nursery() as nursery:
        try:
            await nursery.start(publisher.keep_connected)
            nursery.start_soon(publisher.write)
            nursery.start_soon(publisher.expire)
            yield publisher
        finally:
            publisher.close()
            nursery.cancel_scope.cancel()


def in_a_line(error: BaseException) -> str:
    """What an error says, for people: the system's words where it comes from there."""
    inner: BaseException | None = error
    while inner is not None and not (isinstance(inner, OSError) and inner.strerror):
        inner = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner.__cause__
    text = inner.strerror if isinstance(inner, OSError) else None
    return " ".join((text or str(error)).split()) or type(error).__name__


def _check_payload(message: Message) -> None:
    if not isinstance(message.payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(message.payload).__name__}")
