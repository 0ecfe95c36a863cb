"""From the source into the queue, as fast as that has room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeAlias

import attrs
import trio

from localdelay import arguments
from localdelay.errors import QueueFull, Throttled
from localdelay.fallback.fallback import Holder
from localdelay.message import NO_HEADERS, Message, numbers
from localdelay.queue.queue import DelayQueue
from localdelay.relay.framing import Splitter
from localdelay.relay.lines import Options, Parse, WrongLine
from localdelay.relay.source import Source

_REFUSED = 0.1
"""Seconds after which a message is given again to a queue in Redis that has refused it, or was not there."""
_TURN = 128
"""Lines taken in before the others get their turn."""

WrongLineHook: TypeAlias = Callable[[int, str], None]
"""Is given the line's number, and what is wrong with it."""


@attrs.frozen
class Rest:
    """What was read and not taken in when the reading was stopped."""

    messages: list[Message]
    half: bytes
    """The bytes of a line that the stop has cut off."""


class Reader:
    """Reads lines, and puts a message for each into the queue."""

    def __init__(
        self, source: Source, parse: Parse, *, max_line: int, strict: bool, on_wrong_line: WrongLineHook
    ) -> None:
        self._source = source
        self._parse = parse
        self._splitter = Splitter(max_line)
        self._max_line = max_line
        self._strict = strict
        self._on_wrong_line = on_wrong_line
        self._waiting: deque[bytes | None] = deque()
        self._numbers = numbers()
        self._giving: Message | None = None  # of the first line that waits: Redis may have it or not
        self.lines = 0
        """Lines so far, wrong ones included."""
        self.wrong = 0
        self._refused = False
        self.ended = False
        """Whether all of the input was read."""

    async def run(self, queue: DelayQueue | Holder) -> None:
        """Take in all lines, or those before the first wrong one where it is `strict`.

        Raises `OSError` where the source can't be read. It may be cancelled at any time; `stop` is to follow.
        """
        while chunk := await self._source.read():
            self._waiting.extend(self._splitter.feed(chunk))
            if not await self._take_in(queue):
                return
        self._waiting.extend(self._splitter.end())
        self.ended = await self._take_in(queue)

    def stop(self) -> Rest:
        """Read no more. What was read until now is not lost: it is what this returns."""
        arrived, ended = self._source.stop()
        if self._refused and self._source.keeps:
            # What a file has after the wrong line, it keeps.
            self._waiting.clear()
            return Rest([], b"")
        self._waiting.extend(self._splitter.feed(arrived))
        if ended:
            self._waiting.extend(self._splitter.end())
            self.ended = True
        half = self._splitter.cut()
        messages = []
        if self._giving is not None:  # under the id that Redis may have it by
            self._waiting.popleft()
            self.lines += 1
            messages.append(self._giving)
        while self._waiting:
            line = self._waiting.popleft()
            self.lines += 1
            try:
                payload, options = self._parsed(line)
            except ValueError as error:
                self._refuse(error)
            else:
                messages.append(_message(next(self._numbers), payload, options))
        # What a file has, it keeps.
        return Rest(messages, b"" if self._source.keeps else half)

    async def _take_in(self, queue: DelayQueue | Holder) -> bool:
        """Put what waits into the queue; False where it is to end at a wrong line."""
        waiting = self._waiting
        while waiting:
            if not self.lines % _TURN:
                await trio.lowlevel.checkpoint()
            try:
                payload, options = self._parsed(waiting[0])
                if isinstance(queue, DelayQueue):
                    try:
                        queue.put_nowait(payload, **options)
                    except QueueFull:
                        # A cancellation finds the line where it was, and no message of it.
                        await queue.put(payload, **options)
                else:
                    await self._give(queue, payload, options)
            except ValueError as error:
                self.lines += 1
                waiting.popleft()
                self._refuse(error)
                if self._strict:
                    self._refused = True
                    return False
            else:
                self.lines += 1
                waiting.popleft()
        return True

    async def _give(self, queue: Holder, payload: bytes, options: Options) -> None:
        """Have a queue hold the message, again and again until it does: it knows the id."""
        self._giving = _message(next(self._numbers), payload, options)
        while True:
            try:
                await queue.hold(self._giving)
            except (QueueFull, Throttled, ConnectionError):
                await trio.sleep(_REFUSED)
            except ValueError:  # it never will
                self._giving = None
                raise
            else:
                self._giving = None
                return

    def _parsed(self, line: bytes | None) -> tuple[bytes, Options]:
        if line is None:
            raise WrongLine(f"is longer than {self._max_line:,} bytes")
        return self._parse(line)

    def _refuse(self, error: ValueError) -> None:
        self.wrong += 1
        self._on_wrong_line(self.lines, str(error))


def _message(number: int, payload: bytes, options: Options) -> Message:
    wall = datetime.now(UTC)
    due = arguments.execute_at(trio.current_time(), options.get("delay"), options.get("at"), wall=wall)
    headers = options.get("headers")
    shown = MappingProxyType(dict(headers)) if headers else NO_HEADERS
    return Message(options.get("id", number), payload, due, shown)
