"""Putting: messages of many callers are gathered, a script call a shard.

A put by a single caller goes out at once. Where several tasks put at the same time, each waits up to `linger`
seconds for the others: Redis then has one command for many messages. What is put without an id gets one when
it goes out, and all of these go to one shard, and to another after 256 messages.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections import defaultdict
from collections.abc import Sequence

import attrs
import trio

from localdelay.errors import QueueClosed, QueueFull
from localdelay.queue.admission import already_pending
from localdelay.redis_plan.bodies import Stored
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.keys import RUN, shard_of
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.sending import Arrivals
from localdelay.redis_plan.store import NewMessage, PutAnswer, Store

_MOST = 250
_MOST_BYTES = 1_000_000
"""Messages and bytes of one command: Redis does nothing else meanwhile."""
_COMPANY = 0.1
"""Seconds for which it is remembered that another task has put."""
_TRIES = 8


@attrs.define(eq=False)
class Put:
    """A message on its way into Redis."""

    body: bytes = attrs.field(repr=False)
    payload: bytes = attrs.field(repr=False)
    headers: dict[str, str] | None
    attempt: int
    id: str | None
    due: float
    """Seconds on Trio's clock."""
    at: int | None = None
    """Instead of that, microseconds on Redis's clock."""
    is_new: bool = False
    """Whether nobody else can have put a message with this id."""
    twice: bool = False
    """Whether it is well if the message is there already."""
    done: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None
    given_up: bool = False
    tries: int = 0


class Putter:
    """Gathers puts. Its `run` is to run as a task."""

    def __init__(
        self, store: Store, layouts: Layouts, claimer: Claimer, arrivals: Arrivals, *, linger: float
    ) -> None:
        self._store = store
        self._layouts = layouts
        self._claimer = claimer
        self._arrivals = arrivals
        self._linger = linger
        self._waiting: list[Put] = []
        self._arrived = trio.lowlevel.ParkingLot()
        self._many = trio.Event()
        self._go_at = -math.inf
        self._last_task: trio.lowlevel.Task | None = None
        self._last_at = self._company_until = -math.inf
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(RUN)
        self._ended = False
        self.in_flight = 0
        """Puts that are under way."""
        self.done = 0
        """Messages that Redis has taken in."""

    async def put(self, put: Put) -> None:
        """Have a message stored; returns once Redis has it. Raises as `Link.call` does, and `QueueFull`."""
        if len(put.body) > self._store.largest:
            size, most = len(put.body), self._store.largest
            raise ValueError(f"payload and headers of {size} bytes are over the {most} that Redis takes")
        if self._ended:
            raise QueueClosed("the queue takes no more messages")
        now = trio.current_time()
        task = trio.lowlevel.current_task()
        if task is not self._last_task:
            if now - self._last_at < _COMPANY:
                self._company_until = now + _COMPANY
            self._last_task = task
        self._last_at = now
        if not self._waiting:
            self._go_at = now + self._linger if now < self._company_until else now
            self._arrived.unpark()
        self._waiting.append(put)
        if len(self._waiting) >= _MOST:
            self._many.set()
        self.in_flight += 1
        try:
            await put.done.wait()
        except BaseException:
            put.given_up = True
            raise
        finally:
            self.in_flight -= 1
        if put.error is not None:
            try:
                raise put.error
            finally:
                put.error = None  # or its traceback, this frame and the payload hold each other

    async def run(self) -> None:
        """Send what is gathered. Where it is cancelled, it waits for the answers to what was sent."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    if not self._waiting:
                        await self._arrived.park()
                    if len(self._waiting) < _MOST:
                        self._many = trio.Event()
                        with trio.CancelScope(deadline=self._go_at):
                            await self._many.wait()
                    batch = [put for put in self._waiting if not put.given_up]
                    self._waiting = []
                    nursery.start_soon(self._store_all, batch)
        finally:
            self._ended = True
            for put in self._waiting:
                _end(put, QueueClosed("the queue was closed before the message was sent to Redis"))

    async def _store_all(self, batch: list[Put]) -> None:
        """Store these, each in the shard that its id says; what finds a shard full or closed goes on."""
        while batch:
            groups: defaultdict[int, list[Put]] = defaultdict(list)
            shards = self._layouts.layout.shards
            for put in batch:
                if put.id is None:
                    put.id, put.is_new = f"{self._prefix}-{next(self._numbers)}", True
                groups[shard_of(put.id, shards)].append(put)
            again: list[Put] = []
            parts = [(shard, part) for shard, puts in groups.items() for part in _parts(puts)]
            if len(parts) == 1:
                await self._store_some(*parts[0], again)
            else:
                async with trio.open_nursery() as nursery:
                    for shard, part in parts:
                        nursery.start_soon(self._store_some, shard, part, again)
            batch = again

    async def _store_some(self, shard: int, puts: Sequence[Put], again: list[Put]) -> None:
        room = self._claimer.reserve(len(puts))
        now = trio.current_time()
        messages = [
            NewMessage(
                put.id or "", max(0.0, put.due - now) if put.at is None else put.at, not put.is_new, put.body
            )
            for put in puts
        ]
        generation = self._layouts.layout.generation
        try:
            with trio.CancelScope(shield=True):  # or nobody could give back what it claims
                answer = await self._store.put(shard, messages, generation=generation, room=room)
                if answer.moved:
                    await self._layouts.refresh()
                else:
                    self._claimer.hear(answer.news)
        except Exception as error:  # noqa: BLE001 (raised by the puts)
            for put in puts:
                _end(put, _copy(error))
            return
        finally:
            self._claimer.unreserve(room)
        if answer.moved:
            self._try_again(puts, again, "is closed")
        else:
            self._settle(shard, puts, answer, now, again)

    def _settle(
        self, shard: int, puts: Sequence[Put], answer: PutAnswer, asked: float, again: list[Put]
    ) -> None:
        ends = asked + self._store.limits.lease
        full = []
        for put, code, due in zip(puts, answer.codes, answer.dues, strict=True):
            name = put.id or ""
            if code == ord("F"):
                full.append(put)
                continue
            if code == ord("D") and not put.twice:
                _end(put, already_pending(name))
                continue
            if code == ord("L"):
                stored = Stored(due, put.payload, put.headers, put.attempt)
                self._arrivals.take_in(name, shard, stored, due, ends)
            self.done += code != ord("D")
            _end(put, None)
        if full:
            # Others of this run would come to the same shard.
            ours = [put for put in full if put.is_new]
            for put in ours:
                put.id = None
            if ours:
                self._numbers = itertools.count((next(self._numbers) // RUN + 1) * RUN)
            self._try_again(ours, again, f"has {answer.news.count} messages")
            for put in full:
                if not put.is_new:
                    _end(put, _full(shard, answer.news.count))

    def _try_again(self, puts: Sequence[Put], again: list[Put], why: str) -> None:
        for put in puts:
            put.tries += 1
            if put.tries < _TRIES:
                again.append(put)
            else:
                _end(put, QueueFull(f"each of {_TRIES} shards {why}, or holds as many bytes as it may"))


def body_size(body: bytes) -> int:
    """Bytes that a message takes of those that its shard may have."""
    return len(body) + 8  # its execute-at


def _parts(puts: list[Put]) -> list[list[Put]]:
    parts: list[list[Put]] = [[]]
    size = 0
    for put in puts:
        if parts[-1] and (len(parts[-1]) >= _MOST or size + len(put.body) > _MOST_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(put)
        size += len(put.body)
    return parts


def _end(put: Put, error: Exception | None) -> None:
    put.error = error
    put.done.set()


def _full(shard: int, count: int | None) -> QueueFull:
    return QueueFull(f"shard {shard} has {count} messages, or holds as many bytes as it may")


def _copy(error: Exception) -> Exception:
    """The same error for one more caller: raised by several tasks, it would collect their tracebacks."""
    try:
        again = type(error)(*error.args)
    except Exception:  # noqa: BLE001 (it is a stranger's)
        return error
    again.__cause__ = error.__cause__
    return again
