"""What is promised of one message: where it may end, and what a journal must say of it, from when on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from localdelay import Message
from localdelay.journal.record import Record

from .disk import Copy
from .marks import hit

_ROUNDING = 1e-5
"""Seconds."""


@attrs.define(eq=False)
class Term:
    """When a message is to be sent, from one event on: from its put, or since it was rescheduled."""

    due: float
    """On Trio's clock, as it was at the call."""
    at: float | None
    """The Unix time that it was given for; None where a delay was."""
    offsets: list[float]
    """Of the wall clock against Trio's, since then."""
    begun: float
    """Before this event the journal can't have it,"""
    kept: float = math.inf
    """and from this one on none that was before."""

    def is_that_of(self, record: Record) -> bool:
        """Whether it was written so. Times between two ticks are rounded on their way to the wall clock."""
        dues = [self.due + offset for offset in self.offsets]
        return record.at == self.at and any(abs(record.due - due) < _ROUNDING for due in dues)


@attrs.define(eq=False, kw_only=True)
class Story:
    """A message. Times of `promised` and the like are events: they are counted, not measured."""

    payload: bytes
    headers: Mapping[str, str]
    size: int
    terms: list[Term]
    """The last one counts."""
    expires: float | None = None
    plan: list[str] = attrs.Factory(list)
    id: str | None = None
    accepted: bool = False
    refused: bool = False
    publishing: bool = False
    tried: bool = False
    moved: bool = False
    """It was rescheduled since it was tried last."""
    paced: bool = False
    """It came back overdue, and may have to wait for others."""
    late: bool = False
    """It was overdue when its put returned."""
    busy: bool = False
    """In a send, a hook or a hand-back."""
    attempt: int = 1
    """Of its next send."""
    hopeless: bool = False
    """The real queue will never take it."""
    expired: bool = False
    """It was given up for this."""
    is_to_be_given: bool = True
    """It was not tried to hand it back since it has its time."""
    given_back: int = 0
    """Tries to hand it back."""
    arrived: int = 0
    cut: int = 0
    """Sends that had arrived and ended without an answer."""
    ends: list[str] = attrs.Factory(list)

    promised: float = math.inf
    finishing: float = math.inf
    """From here on the journal need not have it,"""
    gone: float = math.inf
    """and from here on it must not."""
    doomed: float = math.inf
    marked: float = math.inf
    """The same for the mark of a dead letter."""
    written: list[tuple[float, int]] = attrs.Factory(lambda: [(0, 1)])
    """(event, attempt): at least that one, and"""
    possible: list[tuple[float, int]] = attrs.Factory(lambda: [(0, 1)])
    """at most this one."""

    @property
    def due(self) -> float:
        """When it is to be sent."""
        return self.terms[-1].due

    @property
    def was_moved(self) -> bool:
        return len(self.terms) > 1

    @property
    def is_on_time(self) -> bool:
        """Whether it waits for its own time, and neither to be tried again nor behind others."""
        return not self.paced and (self.moved or not self.tried)

    def has_expired(self, now: float) -> bool:
        """Whether it is not worth sending any more."""
        return self.expires is not None and now - self.due > self.expires

    @classmethod
    def of_record(cls, record: Record, offset: float) -> Story:
        """One that the last life has left; its journal has it already."""
        headers = record.headers or {}
        size = len(record.payload) + sum(len(k.encode()) + len(v.encode()) for k, v in headers.items())
        story = cls(
            payload=record.payload,
            headers=headers,
            size=size,
            terms=[Term(record.due - offset, record.at, [offset], begun=0)],
            expires=record.expires,
            id=record.id,
            accepted=record.dead is None,
            attempt=record.attempt + record.sending,  # what may have ended the process was an attempt
            promised=0,
            paced=record.sending,  # it goes after all that is overdue
        )
        story.written, story.possible = [(0, record.attempt)], [(0, story.attempt)]
        if record.dead is not None:
            story.doomed = story.marked = 0
        return story

    def check_message(self, message: Message) -> None:
        """Compare it with what somebody is given."""
        assert (message.payload, message.headers) == (self.payload, self.headers)
        assert message.execute_at == self.due, "it is not due when it was"
        assert message.expires == self.expires
        assert self.id is None or message.id == self.id
        self.id = message.id

    def check_copy(self, record: Record | None, copy: Copy) -> None:
        """Compare it with what a copy of the journal has."""
        if record is None:
            assert self.promised > copy.before or self.finishing <= copy.after, f"{self} is lost"
            return
        assert not self.refused, f"{self} was refused"
        assert self.terms[0].begun <= copy.after
        assert self.gone > copy.before, f"{self} has come back"
        assert (record.id, record.headers or {}) == (self.id or record.id, self.headers)
        assert record.expires == self.expires
        first = max((place for place, term in enumerate(self.terms) if term.kept <= copy.before), default=0)
        possible = [term for term in self.terms[first:] if term.begun <= copy.after]
        assert any(term.is_that_of(record) for term in possible), f"{self}: {record.due}"
        if record.due != self.terms[-1].due + self.terms[-1].offsets[-1] and self.was_moved:
            hit("a copy had the time that a message had before")
        least = max(attempt for event, attempt in self.written if event <= copy.before)
        most = max(attempt for event, attempt in self.possible if event <= copy.after)
        assert least <= record.attempt <= most, f"{self}: {least} <= {record.attempt} <= {most}"
        if record.dead is not None:
            assert self.doomed <= copy.after, f"{self} was not given up: {record.dead}"
        else:
            assert self.marked > copy.before, f"{self} was given up"
