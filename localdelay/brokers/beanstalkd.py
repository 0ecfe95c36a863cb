"""beanstalkd, with greenstalk's errors. Needs the extra `beanstalkd`."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import greenstalk
import trio

from localdelay.brokers.address import Address
from localdelay.brokers.driver import Driver
from localdelay.brokers.line import Line, OutOfStep, connect_socket
from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message

MAX_DELAY = _MAX_UINT32 = 2**32 - 1
"""The longest delay in seconds that the protocol has."""
MAX_JOB_BYTES = 2**30
"""The most that a server can be told to take; by default it takes 65,535."""

_LONGEST_ANSWER = 1000
_LONGEST_ID = 20  # digits of 64 bits
_OUT_OF_STEP = (greenstalk.BadFormatError, greenstalk.UnknownCommandError, greenstalk.UnknownResponseError)


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

    def __init__(self, connected: socket.socket, outbox: Outbox) -> None:
        super().__init__(connected, outbox)
        self._unanswered: deque[Parcel] = deque()

    async def use(self, tube: bytes) -> None:
        """Put into this tube from now on. Raises `ConnectionError`."""
        self.send(b"use %b\r\n" % tube)
        answer = b""
        while not answer.endswith(b"\r\n") and len(answer) <= _LONGEST_ANSWER:
            answer += await self.receive()
        if answer != b"USING %b\r\n" % tube:
            raise ConnectionError(f"it answers {shown(answer)}")

    def write(self, parcels: Sequence[Parcel]) -> None:
        self.send(b"".join([parcel.content for parcel in parcels]))
        self._unanswered.extend(parcels)

    def received(self, data: bytes) -> bytes:
        *answers, rest = data.split(b"\r\n")
        unanswered = self._unanswered
        if answers:
            self.heard = trio.current_time()
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
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self.where = f"beanstalkd at {where.place}"
        self._address = where.host, where.port
        self._tube = where.target.encode()
        self._head = b"put %d " % where.count("priority", greenstalk.DEFAULT_PRIORITY, _MAX_UINT32)
        self._middle = b" %d " % where.count("time_to_run", greenstalk.DEFAULT_TTR, _MAX_UINT32)

    def encode(self, message: Message, delay: float | None, now: float) -> bytes:
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
        with closing(_Line(await connect_socket(*self._address), outbox)) as line:
            await line.use(self._tube)
            yield line


def shown(answer: bytes) -> str:
    """The beginning of an answer, for people."""
    return repr(answer[:80].decode(errors="replace").strip())


driver_at = _Driver
