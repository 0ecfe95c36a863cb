"""One connection to beanstalkd: puts are written together, and answered in their order.

greenstalk writes a put and waits for its answer, so it needs a thread and a connection for each that is under
way. The protocol needs neither: what is given between two turns of the loop is written at once, without
waiting for the answers to what was written before.

    put --> [ outbox ] --write--> [ under way ] --read--> confirmed or failed
              while there is no     until the server
              connection or room    has answered
"""

from __future__ import annotations

import math
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import attrs
import greenstalk
import trio
from trio.lowlevel import enable_ki_protection, wait_readable, wait_writable

from localdelay.backoff import Backoff
from localdelay.settling import Confirmation, caused_by

# So much is under way at most: what the server does not answer must not fill the memory.
_MOST_UNDER_WAY = 2000
# So much is written in one go, unless one put is larger: it stops the loop.
_WRITE_BYTES = 65_536
_READ_BYTES = 65_536
_LONGEST_ANSWER = 1000
_LONGEST_ID = 20  # digits of 64 bits
_FRESH = 0.002  # seconds after a put in which nobody asks whether there still is a connection
_OUT_OF_STEP = (greenstalk.BadFormatError, greenstalk.UnknownCommandError, greenstalk.UnknownResponseError)


@attrs.frozen
class Place:
    """Where a server is, and which tube to use there."""

    host: str
    port: int
    tube: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Job:
    """The puts of one `send` or `send_batch`; those from `handed` on have not been written yet."""

    __slots__ = ("begun", "confirmation", "handed", "puts")

    def __init__(self, puts: Sequence[tuple[int, bytes]], confirmation: Confirmation) -> None:
        self.puts = puts
        self.confirmation = confirmation
        self.handed = 0
        self.begun = trio.current_time()


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


class Line:
    """Puts into one tube, on a connection that is made again when it is lost. Of the Trio thread alone.

    `keep_connected` and `watch` are to run as tasks.
    """

    def __init__(
        self,
        place: Place,
        confirm_timeout: float,
        connect_timeout: float,
        classified: Callable[[Exception], Exception],
    ) -> None:
        """`classified` says what to raise for an error of greenstalk's."""
        self._place = place
        self._confirm_timeout = confirm_timeout
        self._connect_timeout = connect_timeout
        self._classified = classified
        self._outbox: OrderedDict[Job, None] = OrderedDict()
        self._under_way: deque[tuple[Confirmation, int, float]] = deque()
        self._unwritten = b""
        self._writable = trio.lowlevel.ParkingLot()
        self._socket: socket.socket | None = None
        self._connection_scope = trio.CancelScope()
        self._latest = -math.inf
        self._heard = -math.inf
        self._refusal = ""
        self._closed = False

    @enable_ki_protection
    def put(self, puts: Sequence[tuple[int, bytes]], confirmation: Confirmation) -> Job:
        """Have puts written, for the messages at these positions. Raises `ConnectionError` when closed."""
        self.check_open()
        job = Job(puts, confirmation)
        if puts:
            self._outbox[job] = None
            if self._writable:
                if self._under_way:
                    self._writable.unpark()
                elif job.begun - self._latest < _FRESH or self._seems_up():
                    self._write_some()  # nobody to gather with: another turn of the loop would only cost time
            self._latest = job.begun
        return job

    @enable_ki_protection
    def give_up(self, job: Job) -> None:
        """Nobody waits for it any more: what is not written yet is not sent."""
        self._outbox.pop(job, None)

    def check_open(self) -> None:
        """Raise `ConnectionError` when closed."""
        if self._closed:
            raise _closed()

    @enable_ki_protection
    def close(self) -> None:
        """Fail whatever is not confirmed; to be called once the tasks have ended, or are about to."""
        self._closed = True
        self._fail_under_way(_closed)
        while self._outbox:
            self._fail_oldest(_closed)

    async def connect(self) -> socket.socket:
        """A connection that uses the tube. Raises `ConnectionError`, in one line."""
        connected: socket.socket | None = None
        try:
            with trio.fail_after(self._connect_timeout):
                stream = await trio.open_tcp_stream(self._place.host, self._place.port)
                connected = socket.socket(fileno=stream.socket.detach())
                connected.setblocking(False)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                await self._use_tube(connected)
        except BaseException as error:
            if connected is not None:
                connected.close()
            if isinstance(error, trio.TooSlowError):
                reason = f"no answer within {self._connect_timeout:g} s"
            elif isinstance(error, OSError):
                reason = _reason(error)
            elif isinstance(error, UnicodeError):
                reason = "that is no host's name"
            else:
                raise
            raise ConnectionError(f"no connection to beanstalkd at {self._place}: {reason}") from error
        return connected

    @enable_ki_protection
    async def keep_connected(self, connected: socket.socket) -> None:
        """Write and read on this connection, and when it is lost on others."""
        while True:
            await self._serve(connected)
            backoff = Backoff()
            while True:
                await trio.sleep(backoff.next())
                try:
                    connected = await self.connect()
                    break
                except ConnectionError as error:
                    self._refusal = str(error)

    @enable_ki_protection
    async def watch(self) -> None:
        """Fail what was not confirmed in time; a timer for each would cost more than the put."""
        while True:
            await trio.sleep(self._confirm_timeout / 10)
            before = trio.current_time() - self._confirm_timeout
            if self._under_way and max(self._under_way[0][2], self._heard) <= before:
                # It answers in order, and says nothing: one that is slow is not asked again for the same.
                self._fail_under_way(self._unanswered)
                self._socket = None
                self._connection_scope.cancel()
            while self._outbox and next(iter(self._outbox)).begun <= before:
                self._fail_oldest(self._unwritten_in_time)

    async def _use_tube(self, connected: socket.socket) -> None:
        connected.sendall(b"use %b\r\n" % self._place.tube.encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            await wait_readable(connected)
            received = connected.recv(_LONGEST_ANSWER)
            answer += received
            if not received:
                raise ConnectionError("it has closed the connection")
            if len(answer) > _LONGEST_ANSWER:
                break
        if answer != b"USING %b\r\n" % self._place.tube.encode():
            raise ConnectionError(f"it answers {answer[:80].decode(errors='replace').strip()!r}")

    async def _serve(self, connected: socket.socket) -> None:
        """Write and read until the connection is lost."""
        self._socket = connected
        self._connection_scope = trio.CancelScope()
        try:
            with self._connection_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, connected)
                    await self._read(connected)
                    nursery.cancel_scope.cancel()
        finally:
            self._socket = None
            self._refusal = ""
            self._unwritten = b""
            connected.close()
            self._fail_under_way(self._lost)

    @enable_ki_protection
    async def _write(self, connected: socket.socket) -> None:
        while True:
            self._write_some()
            if self._unwritten:
                await wait_writable(connected)
            elif self._outbox and len(self._under_way) < _MOST_UNDER_WAY:
                await trio.lowlevel.checkpoint()
            else:
                await self._writable.park()

    async def _read(self, connected: socket.socket) -> None:
        """Settle what is answered; returns when there is no more to come."""
        rest = b""
        while len(rest) <= _LONGEST_ANSWER:
            await wait_readable(connected)
            try:
                received = connected.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not received:
                return
            self._heard = trio.current_time()
            *answers, rest = (rest + received).split(b"\r\n")
            for answer in answers:
                if not self._under_way:
                    return
                confirmation, position, _ = self._under_way.popleft()
                error = answer_error(answer)
                if error is None:
                    confirmation.settle(position, None)
                    continue
                confirmation.settle(position, caused_by(self._classified(error), error))
                if isinstance(error, _OUT_OF_STEP):
                    return
            if rest and not self._under_way:
                return
            if self._outbox:
                self._writable.unpark()

    def _seems_up(self) -> bool:
        """Whether the connection was not lost since the last turn of the loop; `_read` will see it."""
        try:
            if self._socket is not None:
                self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _write_some(self) -> None:
        """Write what there is, as far as it goes without blocking."""
        if self._socket is None:
            return
        data = self._unwritten or self._gathered()
        if data:
            try:
                written = self._socket.send(data)
            except BlockingIOError:
                written = 0
            except OSError:
                written = len(data)  # the connection is lost; who reads it will see that too
            self._unwritten = data[written:]
        if self._unwritten or self._outbox:
            self._writable.unpark()

    def _gathered(self) -> bytes:
        """The puts that are to be written next; they count as under way."""
        gathered: list[bytes] = []
        size = 0
        now = trio.current_time()
        under_way, outbox = self._under_way, self._outbox
        while outbox:
            job = next(iter(outbox))
            while job.handed < len(job.puts):
                if size >= _WRITE_BYTES or len(under_way) >= _MOST_UNDER_WAY:
                    return b"".join(gathered)
                position, put = job.puts[job.handed]
                gathered.append(put)
                size += len(put)
                under_way.append((job.confirmation, position, now))
                job.handed += 1
            del outbox[job]
        return b"".join(gathered)

    def _fail_under_way(self, error: Callable[[], Exception]) -> None:
        while self._under_way:
            confirmation, position, _ = self._under_way.popleft()
            confirmation.settle(position, error())

    def _fail_oldest(self, error: Callable[[], Exception]) -> None:
        job, _ = self._outbox.popitem(last=False)
        for position, _put in job.puts[job.handed :]:
            job.confirmation.settle(position, error())

    def _lost(self) -> Exception:
        return ConnectionError(f"the connection to beanstalkd at {self._place} was lost")

    def _unanswered(self) -> Exception:
        return TimeoutError(f"beanstalkd at {self._place} did not answer within {self._confirm_timeout:g} s")

    def _unwritten_in_time(self) -> Exception:
        if self._socket is not None:
            return self._unanswered()
        return ConnectionError(self._refusal or f"no connection to beanstalkd at {self._place}")


def _closed() -> Exception:
    return ConnectionError("the connection to beanstalkd is closed")


def _reason(error: OSError) -> str:
    """The system's words, in one line; Trio puts its own around them."""
    inner: BaseException | None = error
    while inner is not None and not (isinstance(inner, OSError) and inner.strerror):
        inner = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner.__cause__
    text = inner.strerror if isinstance(inner, OSError) else None
    return " ".join((text or str(error)).split())
