"""From the source into the queue, as fast as that has room."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from types import MappingProxyType

import trio

from localdelay import arguments
from localdelay.errors import QueueFull, Throttled
from localdelay.fallback.fallback import Holder
from localdelay.message import NO_HEADERS, Message, add_terms, numbers
from localdelay.relay import lines
from localdelay.relay.framing import Splitter
from localdelay.relay.lines import WrongLine
from localdelay.relay.settings import Settings
from localdelay.relay.source import Source

_REFUSED = 0.1
"""Seconds after which a message is given again to a queue in Redis that has refused it, or was not there."""
_TURN = 128
"""Lines taken in before the others get their turn."""


class Reader:
    """Reads lines, and has the queue hold a message for each."""

    def __init__(self, source: Source, settings: Settings, on_wrong_line: Callable[[int, str], None]) -> None:
        self._source = source
        delay = settings.delay
        as_text = settings.format == "text"
        self._parse = lines.text(delay) if as_text and delay is not None else lines.json_lines(delay)
        self._splitter = Splitter(settings.max_line)
        self._max_line = settings.max_line
        self._strict = settings.strict
        self._on_wrong_line = on_wrong_line
        self._rest: tuple[list[Message], bytes] | None = None
        self._waiting: deque[bytes | None] = deque()
        self._numbers = numbers()
        self._giving: Message | None = None  # memory does not have it yet; Redis may have it or not
        self.lines = 0
        """Lines so far, wrong ones included."""
        self.wrong = 0
        self._refused = False
        self.ended = False
        """Whether all of the input was read."""

    async def run(self, queue: Holder) -> None:
        """Take in all lines, or those before the first wrong one where it is `strict`.

        Raises `OSError` where the source can't be read. It may be cancelled at any time; `stop` is to follow.
        """
        while chunk := await self._source.read():
            if not await self._take_in(queue, self._splitter.feed(chunk)):
                return
        self.ended = await self._take_in(queue, self._splitter.end())

    def stop(self) -> tuple[list[Message], bytes]:
        """Read no more: what was read and not taken in, and the bytes of a line that this cuts off.

        It returns them again and again: nothing is lost.
        """
        if self._rest is None:
            self._rest = self._stop()
        return self._rest

    async def take_in_rest(self, queue: Holder, until: float) -> None:
        """After a stop, have the queue hold what comes due by then; `stop` returns the others from now on.

        It may be cancelled at any time.
        """
        messages, _ = self.stop()
        due = deque(message for message in messages if message.execute_at <= until)
        later = [message for message in messages if message.execute_at > until]
        messages.clear()
        try:
            while due:
                try:
                    await _give(queue, due[0])
                except ValueError:  # it will never hold this
                    later.append(due[0])
                due.popleft()
        finally:
            messages += [*due, *later]

    def _stop(self) -> tuple[list[Message], bytes]:
        arrived, ended = self._source.stop()
        if self._refused and self._source.keeps:  # what a file has after the wrong line, it keeps
            self._waiting.clear()
            return [], b""
        self._waiting.extend(self._splitter.feed(arrived))
        if ended:
            self._waiting.extend(self._splitter.end())
            self.ended = True
        half = b"" if self._source.keeps else self._splitter.cut()
        # A cancellation in the midst of giving it leaves it here, under the id that Redis may have it by.
        messages = [] if self._giving is None else [self._giving]
        while self._waiting:
            try:
                messages.append(self._next())
            except ValueError as error:
                self._refuse(error)
        return messages, half

    async def _take_in(self, queue: Holder, found: Iterable[bytes | None]) -> bool:
        """Have the queue hold the messages of these lines; False where it is to end at a wrong one."""
        self._waiting.extend(found)
        while self._waiting:
            if not self.lines % _TURN:
                await trio.lowlevel.checkpoint()
            try:
                self._giving = self._next()
                await _give(queue, self._giving)
            except ValueError as error:  # also where the queue will never hold it
                self._refuse(error)
                self._refused = self._strict
            self._giving = None
            if self._refused:
                return False
        return True

    def _next(self) -> Message:
        """The message of the next line that waits. Raises `ValueError` where it is a wrong one."""
        line = self._waiting.popleft()
        self.lines += 1
        if line is None:
            raise WrongLine(f"is longer than {self._max_line:,} bytes")
        payload, options = self._parse(line)
        at = options.get("at")
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(trio.current_time(), options.get("delay"), at, wall=wall)
        headers = options.get("headers")
        shown = MappingProxyType(dict(headers)) if headers else NO_HEADERS
        message = Message(options.get("id", next(self._numbers)), payload, due, shown)
        if terms := arguments.terms(options.get("expires"), at):
            add_terms(message, terms)
        return message

    def _refuse(self, error: ValueError) -> None:
        self.wrong += 1
        self._on_wrong_line(self.lines, str(error))


async def _give(queue: Holder, message: Message) -> None:
    """Have the queue hold this, however long it takes: one in Redis again and again, for it knows the id."""
    patience = 0.0  # most find room at once, and a scope for each would be for nothing
    while True:
        try:
            await queue.hold(message, patience)
        except (QueueFull, Throttled, ConnectionError):
            if patience:
                await trio.sleep(_REFUSED)
            patience = math.inf
        else:
            return
