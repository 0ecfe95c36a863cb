"""What the extreme scenes read off a running loop: heartbeats, task steps, collections, arrivals."""

from __future__ import annotations

import gc
import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

from localdelay import Message, Statistics
from localdelay.benchmark.load import NUMBER_BYTES, number_in

from .samples import BODY_BYTES, distribution

BEAT = 0.001
"""Seconds that a heartbeat sleeps between its turns."""
_NOTED = 0.0005
"""Seconds. Shorter steps and passes are only counted: there are millions of them."""


def longest(calls: Iterable[tuple[float, float]], since: float = 0.0) -> float:
    """The longest of (began, took), in seconds, of those that began at `since` or later; 0.0 of none."""
    return max((took for began, took in calls if began >= since), default=0.0)


class Heartbeat:
    """An independent task that wakes every millisecond: the gaps between its turns, by phase."""

    def __init__(self) -> None:
        self._gaps: dict[str, list[tuple[float, float]]] = {}
        self.enter("start")

    def enter(self, phase: str) -> None:
        """From now on the gaps that end belong to this phase."""
        self._phase = self._gaps.setdefault(phase, [])

    async def run(self) -> None:
        clock = time.perf_counter
        last = clock()
        while True:
            await trio.sleep(BEAT)
            now = clock()
            self._phase.append((last, now - last))
            last = now

    def longest(self, phase: str, since: float = 0.0) -> float:
        """Seconds of the longest gap of a phase that began at `since` or later; 0.0 if it had none."""
        return longest(self._gaps.get(phase, []), since)

    def p999(self, phase: str) -> float:
        """99.9 % of the gaps of a phase were at most so many seconds long."""
        return distribution(gap for _, gap in self._gaps.get(phase, [])).p999 or 0.0


Hold: TypeAlias = tuple[float, float, float, str]
"""The loop was in one step, or one pass, and could do nothing else: when that began, seconds, seconds of
processor time, which are fewer where others had the core, and the task. It began on `time.perf_counter`,
which on one machine all processes share.
"""
_NONE: Hold = (0.0, 0.0, 0.0, "none")


class Steps(trio.abc.Instrument):
    """Times every step of every task, and every pass of the loop, by wall and by processor time.

    A step is what one task does between two awaits that really wait. A pass is all steps between two looks at
    the world outside; a task that became ready during a pass has its turn in the next.
    """

    def __init__(self) -> None:
        # Plain tuples, which the collector does not keep track of: it is watched, too.
        self._steps: list[Hold] = []
        self._passes: list[Hold] = []
        self._step_began = self._step_cpu = self._pass_began = self._pass_cpu = math.inf
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_cpu = time.thread_time()
        self._step_began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        seconds = time.perf_counter() - self._step_began
        self.count += 1
        if seconds > _NOTED:
            cpu = time.thread_time() - self._step_cpu
            self._steps.append((self._step_began, seconds, cpu, task.name))

    def after_io_wait(self, timeout: float) -> None:
        self._pass_cpu = time.thread_time()
        self._pass_began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        seconds = time.perf_counter() - self._pass_began
        if seconds > _NOTED:
            self._passes.append((self._pass_began, seconds, time.thread_time() - self._pass_cpu, "a pass"))

    def longest_step(self, since: float) -> Hold:
        """The longest step that began at `since` (seconds on `time.perf_counter`) or later."""
        return _longest_hold(self._steps, since)

    def longest_pass(self, since: float) -> Hold:
        """The longest pass that began at `since` or later."""
        return _longest_hold(self._passes, since)


def _longest_hold(noted: Iterable[Hold], since: float) -> Hold:
    # What a stopped process was doing when it was stopped began before it was woken: it does not count.
    return max((hold for hold in noted if hold[0] >= since), key=lambda hold: hold[1], default=_NONE)


class Collections:
    """The garbage collector's runs: (when it began, seconds), by generation."""

    def __init__(self) -> None:
        self._began = 0.0
        self.runs: tuple[list[tuple[float, float]], ...] = ([], [], [])

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.runs[info["generation"]].append((self._began, now - self._began))

    @contextmanager
    def watched(self) -> Iterator[None]:
        gc.callbacks.append(self)
        try:
            yield
        finally:
            gc.callbacks.remove(self)

    def total(self, since: float = 0.0) -> float:
        """Seconds of all runs of all generations that began at `since` or later."""
        return sum(took for runs in self.runs for began, took in runs if began >= since)

    def longest(self, generation: int, since: float = 0.0) -> float:
        """Seconds that the longest run of this generation took, of those that began at `since` or later."""
        return longest(self.runs[generation], since)


class Arrivals:
    """What was sent: each message by its number, how late it was, and when the last of the first ones left.

    `expected` is how many numbers there are, from 0; `first` how many of them, from 0, set `all_left`.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        expected: int,
        first: int = 0,
        due: Callable[[int], float] | None = None,
    ) -> None:
        """`due`: when the message with this number should be sent; else lateness is from its execute-at."""
        self._clock = clock
        self._due = due
        self._first = first
        self._first_gone = 0
        self.seen = bytearray(expected)
        self.late = array("d")
        self.early = 0
        """Sends that began before the execute-at of their message."""
        self.all_left = trio.Event()
        self.all_left_at = math.nan
        """On `time.perf_counter`."""

    async def send(self, message: Message) -> None:
        self._count((message,))

    async def send_batch(self, messages: Sequence[Message]) -> None:
        self._count(messages)

    def _count(self, messages: Sequence[Message]) -> None:
        now, due = self._clock(), self._due
        self.early += sum([message.execute_at > now for message in messages])
        if due is None:
            self.late.extend([now - message.execute_at for message in messages])
        seen, limit = self.seen, self._first
        first = 0
        for message in messages:
            number = int.from_bytes(message.payload[:NUMBER_BYTES], "big")
            if due is not None:
                self.late.append(now - due(number))
            seen[number] += 1
            first += number < limit
        self._first_gone += first
        if first and self._first_gone == limit:
            self.all_left_at = time.perf_counter()
            self.all_left.set()


@attrs.frozen
class Account:
    """What became of every number, and whether the queue's own books agree."""

    lost: int
    """Put, and neither sent nor pending."""
    twice: int
    """Sent more than once, or sent and still pending."""
    early: int
    books: str
    """Empty, or what in the queue's statistics does not add up."""


def account(arrivals: Arrivals, put: int, statistics: Statistics, pending: Sequence[Message]) -> Account:
    """Compare what was put (numbers 0 to `put`) with what was sent and what `messages()` says is pending."""
    seen = arrivals.seen
    sent = len(arrivals.late)
    for message in pending:
        seen[number_in(message.payload)] += 1
    lost = seen[:put].count(0)
    unknown = len(seen) - put - seen[put:].count(0)
    twice = put - lost - seen[:put].count(1) + unknown
    return Account(
        lost, twice, arrivals.early, "; ".join(_disagreements(statistics, put, sent, len(pending)))
    )


def _disagreements(s: Statistics, put: int, sent: int, pending: int) -> Iterator[str]:
    finished = s.sent + s.dead + s.cancelled + s.handed_back + s.spooled
    if s.accepted != finished + s.pending:
        yield f"accepted {s.accepted}, but finished {finished} and pending {s.pending}"
    if s.pending != s.waiting + s.sending + s.retrying:
        yield f"pending {s.pending}, but waiting {s.waiting}, sending {s.sending}, retrying {s.retrying}"
    if (s.accepted, s.sent, s.pending) != (put, sent, pending):
        yield f"accepted {s.accepted}, sent {s.sent}, pending {s.pending}; counted {put}, {sent}, {pending}"
    if s.pending_bytes != pending * BODY_BYTES:
        yield f"pending_bytes {s.pending_bytes} for {pending} of {BODY_BYTES} bytes"
    if s.lateness.count != sent:
        yield f"lateness of {s.lateness.count} messages, but {sent} sent"
