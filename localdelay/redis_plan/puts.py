"""Putting: messages of many callers are gathered, a script call a shard.

A put by a single caller goes out at once. Where several tasks put at the same time, each waits up to `linger`
seconds for the others: Redis then has one command for many messages. What is put without an id gets one when
it goes out, and all of these go to one shard, and to another after 256 messages.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import attrs
import trio

from localdelay import arguments
from localdelay.errors import QueueClosed, QueueFull, Throttled
from localdelay.queue.admission import already_pending
from localdelay.redis_plan.bodies import dated, encode
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.keys import RUN, shard_of
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.leases import Leases
from localdelay.redis_plan.link import Copies
from localdelay.redis_plan.store import PUT, Store, flat, micro

MOST = 250
_MOST_BYTES = 1_000_000
"""Messages and bytes of one command: Redis does nothing else meanwhile."""
_COMPANY = 0.1
"""Seconds for which it is remembered that another task has put."""
_TRIES = 8
_LARGEST_ID = 512
"""Bytes."""
_LONGEST = 5e9
"""Seconds: what a score can still tell to the microsecond."""


@attrs.define(eq=False)
class Put:
    """A message on its way into Redis."""

    body: bytes = attrs.field(repr=False)
    id: str
    """Empty until it gets one when it goes out."""
    due: float
    """Seconds on Trio's clock."""
    at: int | None = None
    """Instead of that, microseconds on Redis's clock."""
    is_new: bool = False
    """Whether its id was made here, and may be another."""
    twice: bool = False
    """Whether it is well if the message is there already."""
    error: Exception | None = None
    done: trio.Event = attrs.field(factory=trio.Event)

    def end(self, error: Exception | None = None) -> None:
        """Redis has it, or it has failed."""
        self.error = error
        self.done.set()


class Putter:
    """Gathers puts. Its `run` is to run as a task."""

    def __init__(self, store: Store, layouts: Layouts, claimer: Claimer, leases: Leases) -> None:
        self._store = store
        self._layouts = layouts
        self._claimer = claimer
        self._leases = leases
        self._waiting: dict[Put, None] = {}
        self._arrived = trio.lowlevel.ParkingLot()
        self._many = trio.Event()
        self._go_at = self._last_at = self._company_until = -math.inf
        self._last_task: trio.lowlevel.Task | None = None
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(RUN)
        self._went_well = self._ended = False
        self.in_flight = 0
        """Puts that are under way."""
        self.done = 0
        """Messages that Redis has taken in."""

    def check(
        self, payload: bytes, headers: Mapping[str, str] | None, id: str | None, due: float, attempt: int = 1
    ) -> Put:
        """A put of these, which are checked here but for `due`."""
        if due - trio.current_time() > _LONGEST:
            raise ValueError(f"delay must be less than {_LONGEST:g} s, and at not further away")
        copy = None if headers is None else arguments.check_headers(headers)
        name = "" if id is None else arguments.check_id(id)
        if len(name.encode()) > _LARGEST_ID:
            raise ValueError(f"id must have at most {_LARGEST_ID} bytes")
        body = encode(arguments.check_payload(payload), copy, attempt)
        most, largest = self._store.tuning.shard_bytes, self._store.link.largest
        said = f"payload and headers of {len(body)} bytes are over the"
        if len(dated(0, body)) > most:
            raise ValueError(f"{said} shard_bytes of {most}")
        if len(body) > largest:
            raise ValueError(f"{said} {largest} that Redis takes")
        return Put(body, name, due)

    async def put(self, put: Put) -> None:
        """Have a message stored; returns once Redis has it. Raises as `Link.call` does, and `QueueFull`."""
        if self._ended:
            raise QueueClosed("the queue takes no more messages")
        now = trio.current_time()
        task = trio.lowlevel.current_task()
        if task is not self._last_task and now - self._last_at < _COMPANY:
            self._company_until = now + _COMPANY
        self._last_task, self._last_at = task, now
        if not self._waiting:
            self._go_at = now + self._store.tuning.linger if now < self._company_until else now
            self._arrived.unpark()
        self._waiting[put] = None
        if len(self._waiting) >= MOST:
            self._many.set()
        self.in_flight += 1
        try:
            await put.done.wait()
        finally:
            self.in_flight -= 1
            self._waiting.pop(put, None)  # where it was cancelled, and has not gone out
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
                    if len(self._waiting) < MOST:
                        self._many = trio.Event()
                        with trio.CancelScope(deadline=self._go_at):
                            await self._many.wait()
                    batch, self._waiting = self._waiting, {}
                    nursery.start_soon(self._store_all, list(batch))
        finally:
            self._ended = True
            for put in self._waiting:
                put.end(QueueClosed("the queue was closed before the message was sent to Redis"))

    async def _store_all(self, batch: list[Put]) -> None:
        """Store these, each in the shard that its id says; what finds a shard full or closed goes on."""
        for _ in range(_TRIES):
            parts: defaultdict[tuple[int, int], list[Put]] = defaultdict(list)
            sizes: Counter[int] = Counter()
            for put in batch:
                if not put.id:
                    put.id, put.is_new = f"{self._prefix}-{next(self._numbers)}", True
                shard = shard_of(put.id, self._layouts.layout.shards)
                parts[shard, sizes[shard] // _MOST_BYTES].append(put)
                sizes[shard] += max(len(put.body), _MOST_BYTES // MOST)
            batch = []
            async with trio.open_nursery() as nursery:
                for (shard, _), part in parts.items():
                    nursery.start_soon(self._store_some, shard, part, batch)
        for put in batch:
            put.end(QueueFull(f"{_TRIES} shards have as many messages or bytes as they may, or are closed"))

    async def _store_some(self, shard: int, puts: Sequence[Put], again: list[Put]) -> None:
        tuning, layout = self._store.tuning, self._layouts.layout
        room = self._claimer.reserve(len(puts))
        now = trio.current_time()
        limits = [layout.generation, tuning.shard_messages, tuning.shard_bytes]
        limits += [micro(tuning.claim_ahead), micro(tuning.lease), room]
        stored: list[bytes] = []
        for put in puts:
            when = b"+%d" % micro(max(0.0, put.due - now)) if put.at is None else b"@%d" % put.at
            stored += (put.id.encode(), when, put.body)
        copies = Copies(tuning.replicas) if tuning.replicas else None
        # A put that Redis refuses tells nothing: what is told must not wait for its like.
        carries, self._went_well = MOST if self._went_well and not copies else 0, False
        try:
            with trio.CancelScope(shield=True):  # or nobody could give back what it claims
                with self._leases.telling(shard, carries) as (told, lost):
                    count, codes, unknown, *dues = await self._store.run(
                        PUT,
                        shard,
                        *limits,
                        2 * len(told),
                        *flat(told),
                        *stored,
                        copies=copies,
                    )
                    lost.update(name.decode() for name in unknown)
                self._went_well = True
                if codes == b"M":
                    await self._layouts.refresh()
        except Exception as error:  # noqa: BLE001 (raised by the puts)
            self._claimer.ask_later(shard)
            for put in puts:
                put.end(_copy(error))
            return
        finally:
            self._claimer.unreserve(room)
        short = None
        if copies and copies.made < copies.wanted:
            short = f"Redis has it, but {copies.made} replicas do, and not {copies.wanted}"
        if codes == b"M":
            again += puts
            return
        for put, code, due in zip(puts, codes.decode(), dues, strict=True):
            if code == "F" and put.is_new:
                put.id = ""
                again.append(put)
            elif code == "F":
                put.end(QueueFull(f"shard {shard} has {count} messages, or as many bytes as it may"))
            elif code == "D":
                put.end(already_pending(put.id) if not put.twice else Throttled(short) if short else None)
            else:
                if code == "L":
                    self._leases.take_in(put.id, shard, due, dated(due, put.body), now + tuning.lease)
                self.done += 1
                put.end(Throttled(short) if short else None)
        if any(not put.id for put in puts):  # others of this run would come to the same shard
            self._numbers = itertools.count((next(self._numbers) // RUN + 1) * RUN)


def _copy(error: Exception) -> Exception:
    """The same error for one more caller: raised by several tasks, it would collect their tracebacks."""
    try:
        again = type(error)(*error.args)
    except Exception:  # noqa: BLE001 (it is a stranger's)
        return error
    again.__cause__ = error.__cause__
    return again
