"""Inputs, brokers and places to write to, for the tests of a relay on the virtual clock."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from localdelay import DelayNotSupported, Message, PartialSendError
from localdelay.relay.run import Relay
from localdelay.relay.settings import AnyQueue, Outcome, Settings
from localdelay.statistics import Statistics


class Script:
    """An input: bytes that come, seconds that pass, an error; then the end, or nothing any more.

    A function among these is called once the lines before it are taken in.
    """

    def __init__(
        self,
        *steps: bytes | float | Exception | Callable[[], Awaitable[None]],
        rest: bytes = b"",
        ends: bool = True,
        keeps: bool = False,
    ) -> None:
        self._steps = deque(steps)
        self._rest = rest
        self._ends = ends
        self.keeps = keeps
        self.reads = 0
        self.stops = 0

    async def read(self) -> bytes:
        self.reads += 1
        while self._steps:
            step = self._steps.popleft()
            if isinstance(step, bytes):
                await trio.lowlevel.checkpoint()
                return step
            if isinstance(step, Exception):
                raise step
            if callable(step):
                await step()
            else:
                await trio.sleep(step)
        if not self._ends:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return b""

    def stop(self) -> tuple[bytes, bool]:
        self.stops += 1
        rest, self._rest = self._rest, b""
        return rest, self._ends and not self._steps


class Sink:
    """A broker whose sends take some seconds, and fail as they are told to."""

    def __init__(
        self,
        seconds: float = 0.0,
        fail: Callable[[Message, int], Exception | None] | None = None,
        *,
        native_delay: bool = False,
    ) -> None:
        self.native_delay = native_delay
        self._seconds = seconds
        self._fail = fail or (lambda *_: None)
        self.calls = 0
        self.got: list[tuple[float, Message]] = []
        self.batches: list[int] = []
        self.delayed: list[tuple[float, Message]] = []

    async def send(self, message: Message) -> None:
        began = trio.current_time()
        self.calls += 1
        error = self._fail(message, self.calls)
        if error is not None:
            raise error
        await trio.sleep(self._seconds)
        self.got.append((began, message))

    async def send_batch(self, messages: Sequence[Message]) -> None:
        self.batches.append(len(messages))
        failed = {}
        for message in messages:
            try:
                await self.send(message)
            except ConnectionError as error:
                failed[message.id] = error
        if failed:
            raise PartialSendError(failed)

    async def publish_delayed(self, message: Message, delay: float) -> None:
        if not self.native_delay:
            raise DelayNotSupported
        self.delayed.append((delay, message))

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for _, message in self.got]


class Watched:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Outcome] = []
        self.wrong: list[tuple[int, str]] = []
        self.dead: list[tuple[bytes, str]] = []

    def opened(self, queue: AnyQueue) -> None:
        self.queue = queue

    def progress(self, outcome: Outcome, queue: Statistics) -> None:
        self.seen.append(attrs.evolve(outcome, queue=queue))

    def wrong_line(self, number: int, reason: str) -> None:
        self.wrong.append((number, reason))

    def dead_letter(self, message: Message, error: Exception) -> None:
        self.dead.append((message.payload, str(error)))


class Stage:
    """Where the tests' relays write, and what they have said."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.unsent = directory / "unsent.jsonl"
        self.letters = directory / "letters.jsonl"
        self.watched = Watched()

    async def relay(
        self, script: Script, sink: Sink | None = None, *, signals: Sequence[float] = (), **settings: Any
    ) -> Outcome:
        """Run one until its end, with signals at these times after its beginning."""
        # One worker, for Trio shuffles the order in which several send.
        files = {"unsent": self.unsent, "dead_letters": self.letters}
        options = {"to": "stdout:", "delay": 1.0, "workers": 1, **files, **settings}
        one = Relay(Settings(**options), script, self.watched, sink or Sink())
        self.stop = one.stop

        async def stop() -> None:
            began = trio.current_time()
            for when, signum in zip(signals, (signal.SIGTERM, signal.SIGINT), strict=False):
                await trio.sleep_until(began + when)
                one.stop(signum)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            await one.go()
            nursery.cancel_scope.cancel()
        outcome = one.outcome
        if "hold" not in settings:  # else others may have a part in it
            conserve(outcome)
        return outcome

    def occupy(self, name: str) -> None:
        """Make a directory where a file is to be."""
        (self._directory / name).mkdir()

    def records(self, path: Path | None = None) -> list[dict[str, Any]]:
        """What was written."""
        return [json.loads(line) for line in (path or self.unsent).read_bytes().splitlines()]


def conserve(outcome: Outcome) -> None:
    """Every line that was read is accounted for, and so is every message."""
    queue = outcome.queue
    assert queue is not None
    assert queue.accepted == queue.sent + queue.dead + queue.handed_back + queue.pending
    rest = outcome.lines - outcome.wrong - queue.accepted
    assert rest >= 0
    assert outcome.unsent == queue.pending + rest + (queue.dead - outcome.dead)
    kept = sum(count for _, count in outcome.saved.places)
    assert kept + outcome.saved.lost == outcome.unsent + bool(outcome.half)
