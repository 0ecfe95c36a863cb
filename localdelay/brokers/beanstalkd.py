"""beanstalkd, with greenstalk's errors. Needs the extra `beanstalkd`.

Only the payload travels, as the body of a job: beanstalkd has no headers, so a consumer that is to recognise
a message that comes twice must find its id in the payload.

A message is confirmed by the id that the server gives to its job. The server then has it in memory; only with
`-b DIR` it is on disk too, and only with `-f 0` before it is confirmed (the default writes every 50 ms). Jobs
of a tube are handed out by priority, then in the order in which they were sent, except that what is tried
again comes later.

All sends share one connection, on Trio's own sockets: puts are written together, and each has an answer of
its own, so that one that is refused or cancelled harms no other. A lost connection is made again for as long
as the block is open; sends wait for it.

- Throttled: the server is draining (SIGUSR1; only a restart ends that), or out of memory, which a full disk
  of `-b` is too. A job that it has buried because of that was kept, but is not handed out before somebody
  kicks it; the message is sent again all the same.
- Permanent: a payload over the server's `-z` (65,535 bytes by default), a delay of 2**32 seconds and more, a
  command that the server does not know.
- What was under way when the connection was lost raises `ConnectionError`, and what is not answered within
  `confirm_timeout` a `TimeoutError`: the server may have it. What has found no connection in that time is a
  `ConnectionError` too.
- As greenstalk names it, and to be tried again: the rest, such as `InternalError`.

The delay is the server's own, in whole seconds, rounded up: nothing comes early. It is kept over a restart
with `-b`.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import greenstalk

from localdelay import arguments
from localdelay.brokers.address import Address
from localdelay.brokers.beanstalkd_line import Line, Place
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message
from localdelay.nurseries import bare_nursery
from localdelay.settling import Confirmation

MAX_DELAY = 2**32 - 1
"""The longest delay in seconds that the protocol has."""
MAX_JOB_BYTES = 2**30
"""The most that a server can be told to take; by default it takes 65,535."""

_MAX_UINT32 = 2**32 - 1
_SHORTEST = 0.001
_TUBE = re.compile(r"[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}")


def classified(error: Exception) -> Exception:
    """What to raise for an error of greenstalk's: `Throttled`, `PermanentSendError`, or the error itself."""
    if isinstance(error, greenstalk.DrainingError):
        return Throttled("beanstalkd is draining: it takes no more jobs")
    if isinstance(error, greenstalk.OutOfMemoryError):
        return Throttled("beanstalkd is out of memory, or its disk is full")
    if isinstance(error, greenstalk.BuriedError):
        return Throttled(f"beanstalkd is out of memory: it has buried the job, as {error.id}")
    if isinstance(error, greenstalk.JobTooBigError):
        return PermanentSendError("the payload is too large for this beanstalkd (its option -z)")
    if isinstance(error, greenstalk.BadFormatError | greenstalk.UnknownCommandError):
        return PermanentSendError(f"beanstalkd does not understand: {error}")
    return error


class BeanstalkdBroker:
    """A connection that puts into one tube; `open_beanstalkd` makes it."""

    native_delay = True

    def __init__(self, line: Line, priority: int, time_to_run: int) -> None:
        self._line = line
        self._head = b"put %d " % priority
        self._middle = b" %d " % time_to_run

    async def send(self, message: Message) -> None:
        """Put a message into the tube now; returns once the server has given it an id.

        Raises `Throttled` where the server is draining or out of memory; `PermanentSendError` for what can
        never work, such as a payload over the server's limit; `TimeoutError` or `ConnectionError` where
        nobody can tell whether it was taken, or there is no connection; greenstalk's error for the rest.
        """
        await self._deliver(self._put(message, 0))

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Put messages into the tube now, in their order; returns once each has been given an id.

        Raises as `send` does, and `PartialSendError` where some failed.
        """
        messages = tuple(messages)
        self._line.check_open()
        confirmation = Confirmation(len(messages))
        puts: list[tuple[int, bytes]] = []
        for position, message in enumerate(messages):
            try:
                puts.append((position, self._put(message, 0)))
            except PermanentSendError as error:
                confirmation.settle(position, error)
        job = self._line.put(puts, confirmation)
        try:
            await confirmation.of_all(messages)
        except BaseException:
            self._line.give_up(job)
            raise

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Put a message that nobody is given for `delay` seconds, rounded up; returns once it has an id.

        Raises as `send` does; `PermanentSendError` too for a delay over `MAX_DELAY`, and a `ValueError` for
        one that is negative or not finite.
        """
        seconds = math.ceil(arguments.at_least("delay", delay, 0, "a number of seconds"))
        if seconds > MAX_DELAY:
            raise PermanentSendError(f"a delay of {seconds} s; beanstalkd takes {MAX_DELAY} at most")
        await self._deliver(self._put(message, seconds))

    async def _deliver(self, put: bytes) -> None:
        confirmation = Confirmation()
        job = self._line.put(((0, put),), confirmation)
        try:
            await confirmation.of_one()
        except BaseException:
            self._line.give_up(job)
            raise

    def _put(self, message: Message, delay: int) -> bytes:
        """The command, with its body."""
        payload = message.payload
        if not isinstance(payload, bytes):
            raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
        if len(payload) > MAX_JOB_BYTES:
            # Past 32 bits the server would take the payload itself for commands.
            raise PermanentSendError(f"{len(payload)} bytes; beanstalkd takes {MAX_JOB_BYTES} at most")
        return b"%b%d%b%d\r\n%b\r\n" % (self._head, delay, self._middle, len(payload), payload)


def open_address(where: Address) -> AbstractAsyncContextManager[BeanstalkdBroker]:
    """Connect to where a URL points to."""
    return open_beanstalkd(where.host, where.port, tube=where.target)


@asynccontextmanager
async def open_beanstalkd(
    host: str,
    port: int = 11300,
    *,
    tube: str,
    priority: int = greenstalk.DEFAULT_PRIORITY,
    time_to_run: int = greenstalk.DEFAULT_TTR,
    confirm_timeout: float = 10.0,
    connect_timeout: float = 5.0,
) -> AsyncIterator[BeanstalkdBroker]:
    """Connect to a beanstalkd, and put into `tube` for the length of an `async with` block.

    A send that is not confirmed within `confirm_timeout` seconds has failed, up to a tenth of that later.
    Jobs get the `priority` (0 is the most urgent, 2**32 - 1 the least); a consumer has `time_to_run` seconds
    before its job goes to another.
    Raises `ConnectionError` where no beanstalkd answers within `connect_timeout` seconds.
    """
    if not _TUBE.fullmatch(tube):
        raise ValueError("tube must be 1 to 200 of the characters A-Z a-z 0-9 + / ; . $ _ ( ) -, not - first")
    _check_uint32("priority", priority, 0)
    _check_uint32("time_to_run", time_to_run, 1)
    arguments.at_least("confirm_timeout", confirm_timeout, _SHORTEST, "a number of seconds")
    arguments.at_least("connect_timeout", connect_timeout, _SHORTEST, "a number of seconds")
    line = Line(Place(host, port, tube), confirm_timeout, connect_timeout, classified)
    connected = await line.connect()
    async with bare_nursery() as nursery:
        try:
            nursery.start_soon(line.keep_connected, connected)
            nursery.start_soon(line.watch)
            yield BeanstalkdBroker(line, priority, time_to_run)
        finally:
            line.close()
            nursery.cancel_scope.cancel()


def _check_uint32(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if not low <= value <= _MAX_UINT32:
        raise ValueError(f"{name} must be from {low} to {_MAX_UINT32}, not {value}")
