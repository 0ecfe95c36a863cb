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

from localdelay.brokers.address import Address, host_and_port
from localdelay.brokers.driver import Driver
from localdelay.brokers.line import Line, OutOfStep, open_socket
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.brokers.publisher import Publisher, open_publisher
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message

MAX_DELAY = 2**32 - 1
"""The longest delay in seconds that the protocol has."""
MAX_JOB_BYTES = 2**30
"""The most that a server can be told to take; by default it takes 65,535."""

_MAX_UINT32 = 2**32 - 1
_LONGEST_ANSWER = 1000
_LONGEST_ID = 20  # digits of 64 bits
_OUT_OF_STEP = (greenstalk.BadFormatError, greenstalk.UnknownCommandError, greenstalk.UnknownResponseError)
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


def answer_error(answer: bytes) -> Exception | None:
    """The error of greenstalk's for an answer to a put, or None where it confirms. Pure."""
    if answer.startswith(b"INSERTED "):
        return None
    status, *values = answer.split(b" ")
    if status == b"BURIED" and all(value.isdigit() and len(value) <= _LONGEST_ID for value in values):
        return greenstalk.BuriedError(values)
    if status in greenstalk.ERROR_RESPONSES and not values:
        error: Exception = greenstalk.ERROR_RESPONSES[status](answer.decode(errors="replace"))
        return error
    return greenstalk.UnknownResponseError(status, values)


class _Line(Line):
    """A connection to one server."""

    def write(self, parcels: Sequence[Parcel]) -> None:
        self.send(b"".join([parcel.content for parcel in parcels]))
        self.unanswered.extend(parcels)

    def received(self, data: bytes) -> bytes:
        *answers, rest = data.split(b"\r\n")
        unanswered = self.unanswered
        for answer in answers:
            if not unanswered:
                raise OutOfStep("it answers what nobody has asked")
            error = answer_error(answer)
            unanswered.popleft().settle(error)
            if isinstance(error, _OUT_OF_STEP):
                raise OutOfStep(f"it answers {shown(answer)}")
        if len(rest) > _LONGEST_ANSWER or (rest and not unanswered):
            raise OutOfStep(f"it answers {shown(rest)}")
        return rest


class _Driver(Driver):
    native_delay = True
    in_order = True

    def __init__(self, host: str, port: int, tube: str, priority: int, time_to_run: int) -> None:
        self.where = f"beanstalkd at {host_and_port(host, port)}"
        self._address = host, port
        self._tube = tube.encode()
        self._head = b"put %d " % priority
        self._middle = b" %d " % time_to_run

    def encode(self, message: Message, delay: float | None) -> bytes:
        """The command, with its body."""
        payload = message.payload
        seconds = math.ceil(delay or 0)
        if seconds > MAX_DELAY:
            raise PermanentSendError(f"a delay of {seconds} s; beanstalkd takes {MAX_DELAY} at most")
        if len(payload) > MAX_JOB_BYTES:
            # Past 32 bits the server would take the payload itself for commands.
            raise PermanentSendError(f"{len(payload)} bytes; beanstalkd takes {MAX_JOB_BYTES} at most")
        return b"%b%d%b%d\r\n%b\r\n" % (self._head, seconds, self._middle, len(payload), payload)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[_Line]:
        async with open_socket(*self._address) as connected:
            line = _Line(connected, outbox)
            answer = await line.ask(b"use %b\r\n" % self._tube, b"\r\n", _LONGEST_ANSWER)
            if answer != b"USING %b\r\n" % self._tube:
                raise ConnectionError(f"it answers {shown(answer)}")
            yield line

    def verdict(self, error: Exception) -> Exception:
        return classified(error)


def shown(answer: bytes) -> str:
    """The beginning of an answer, for people."""
    return repr(answer[:80].decode(errors="replace").strip())


def open_address(where: Address) -> AbstractAsyncContextManager[Publisher]:
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
) -> AsyncIterator[Publisher]:
    """Connect to a beanstalkd, and put into `tube` for the length of an `async with` block.

    A send that is not confirmed within `confirm_timeout` seconds has failed.
    Jobs get the `priority` (0 is the most urgent, 2**32 - 1 the least); a consumer has `time_to_run` seconds
    before its job goes to another.
    Raises `ConnectionError` where no beanstalkd answers within `connect_timeout` seconds.
    """
    if not _TUBE.fullmatch(tube):
        raise ValueError("tube must be 1 to 200 of the characters A-Z a-z 0-9 + / ; . $ _ ( ) -, not - first")
    _check_uint32("priority", priority, 0)
    _check_uint32("time_to_run", time_to_run, 1)
    driver = _Driver(host, port, tube, priority, time_to_run)
    async with open_publisher(
        driver, confirm_timeout=confirm_timeout, connect_timeout=connect_timeout
    ) as publisher:
        yield publisher


def _check_uint32(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if not low <= value <= _MAX_UINT32:
        raise ValueError(f"{name} must be from {low} to {_MAX_UINT32}, not {value}")
