"""What a relay is asked to do, and what becomes of it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from localdelay.arguments import field_at_least, field_count, field_count_or_none
from localdelay.brokers import hide_secrets
from localdelay.message import Message
from localdelay.queue.queue import DelayQueue
from localdelay.relay.saving import Saved
from localdelay.statistics import Statistics

if TYPE_CHECKING:
    from localdelay.redis_plan import RedisDelayQueue

AnyQueue: TypeAlias = "DelayQueue | RedisDelayQueue"
FORMATS = ("text", "jsonl")
_MOST_WORKERS = 100_000
"""Each is a task, and takes some kilobytes."""

_seconds = field_at_least(0, "a number of seconds")


@attrs.frozen(kw_only=True)
class Settings:
    """What to relay, and how; times are in seconds. A wrong one is a `TypeError` or `ValueError`.

    The options of `localdelay relay` say what each is; None stands for what is said there of its absence.
    """

    to: str
    hold: str | None = None
    delay: float | None = attrs.field(default=None, validator=attrs.validators.optional(_seconds))
    format: str = "text"
    workers: int = attrs.field(default=20, validator=field_count)
    capacity: int = attrs.field(default=100_000, validator=field_count)
    capacity_bytes: int = attrs.field(default=256_000_000, validator=field_count)
    batch: int | None = attrs.field(default=None, validator=field_count_or_none)
    attempts: int | None = attrs.field(default=None, validator=field_count_or_none)
    send_timeout: float = attrs.field(default=30.0, validator=_seconds)
    grace: float = attrs.field(default=25.0, validator=_seconds)
    hand_back: bool = False
    strict: bool = False
    max_line: int = attrs.field(default=1 << 20, validator=field_count)
    """The most bytes of a line, without its line break."""
    unsent: Path | None = None
    dead_letters: Path | None = None

    def __attrs_post_init__(self) -> None:
        if self.workers > _MOST_WORKERS:
            raise ValueError(f"workers must be at most {_MOST_WORKERS:,}, not {self.workers:,}")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if self.format == "text" and self.delay is None:
            raise ValueError("delay must be given for text: a line says nothing of when")
        if self.hold is not None and self.hand_back:
            raise ValueError("hand_back is for messages in memory: in Redis they are safe")
        if not self.send_timeout:
            raise ValueError("send_timeout must be more than 0")

    def hide_secrets(self, text: str) -> str:
        """The text without what is secret in the URLs."""
        for url in (self.to, self.hold):
            text = text if url is None else hide_secrets(text, url)
        return text


class Phase(Enum):
    """What a relay is at."""

    READING = "reading"
    LAST = "last"
    """The input has ended, and what is pending is waited for."""
    STOPPING = "stopping"
    """A signal has come, and what comes due within the grace is sent."""


@attrs.define(kw_only=True)
class Outcome:
    """How far it is, and in the end what became of it all.

    lines = wrong + accepted + what was read and not taken in.
    """

    phase: Phase = Phase.READING
    grace_left: float | None = None
    """Seconds, while it is stopping."""
    seconds: float = 0.0
    """Since it began to read."""
    lines: int = 0
    """Lines read, wrong ones included."""
    wrong: int = 0
    queue: Statistics | None = None
    """None where nothing was read."""
    dead: int = 0
    """Messages given up; they are in `letters`."""
    letters: Path | None = None
    unsent: int = 0
    """Messages that were read and neither sent nor given up; they are in `saved`."""
    held: int | None = 0
    """Messages that wait in Redis, where it has ended before all was sent; None: it did not say how many."""
    half: int = 0
    """Bytes of a last line that a stop has cut off; it is in `saved` too."""
    saved: Saved = attrs.field(factory=Saved)
    input_ended: bool = False
    """Whether all of the input was read."""
    stopped_by: int | None = None
    """The first signal."""
    failure: str | None = None
    """Why it ended before its time, in a line."""


class Watcher(Protocol):
    """Who is told what happens."""

    def opened(self, queue: AnyQueue) -> None:
        """The queue is there, and this is its loop."""

    def progress(self, outcome: Outcome, queue: Statistics) -> None:
        """How far it is, twice a second."""

    def wrong_line(self, number: int, reason: str) -> None:
        """A line was skipped; the reason has nothing of its payload."""

    def dead_letter(self, message: Message, error: Exception) -> None:
        """A message was given up."""
