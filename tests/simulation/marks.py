"""Which branches the scenes have visited: one that none of them reaches any more must not go unseen."""

from __future__ import annotations

from typing import Final

MARKS: Final = frozenset(
    {
        # ways in
        "a put waited for room",
        "a waiting put was given up",
        "a waiting put met the end of the queue",
        "a put met a full queue",
        "a put was refused by the journal",
        "a put was refused for its id",
        "an id was used again",
        "a put at a time on the wall clock",
        "a put in the past",
        "a put finer than the tick",
        # sends
        "a send failed and was tried again",
        "a send hung until its time-out",
        "a send was throttled",
        "a send that had arrived was cut off",
        "a batch went together",
        "a batch failed in part",
        "a batch was split",
        "a batch failed as a whole",
        "the limit made a send wait",
        "sends that failed in a row shut it",
        "one key was sent while another was shut",
        "a send raised what is no Exception",
        "a limit began",
        "a limit ended",
        # what is done by who is called
        "a listener did something to the queue",
        "a hook did something to the queue",
        "a send did something to the queue",
        "a hand back did something to the queue",
        # another time, and an end of its worth
        "a message was rescheduled earlier",
        "a message was rescheduled later",
        "a retry was rescheduled",
        "a message was rescheduled while the queue drained",
        "a message was rescheduled that could not be handed back",
        "a reschedule came too late",
        "a reschedule was refused for want of an index",
        "a copy had the time that a message had before",
        "a message expired",
        "a message expired while it waited to be tried again",
        "what had expired was nobody's",
        # ends
        "a dead letter was taken",
        "a dead letter was logged",
        "a dead-letter hook was ended",
        "a message was cancelled",
        "a cancel came too late",
        "a cancel was refused for want of an index",
        "a hand-back took it",
        "a hand-back failed first",
        "a drain was cut off",
        "something was left by a drain",
        "a queue was left with messages",
        # fallback
        "the primary took it",
        "a publish was held",
        "a publish found no room",
        "a publish was ambiguous",
        "the breaker was open",
        "the primary took it back while the queue ran",
        # journal
        "a flush waited",
        "a flush failed",
        "the journal failed and went on",
        "a copy was half of a write",
        "messages came back",
        "a message came back overdue",
        "a dead letter stayed in the journal",
        "the wall clock was set",
        # what comes from outside
        "the whole was cancelled before a step",
        "a put was cancelled before a step",
        "a drain was cancelled before a step",
        "a publish was cancelled before a step",
    }
)

visited: set[str] = set()


def hit(mark: str) -> None:
    """This branch was visited."""
    assert mark in MARKS, mark
    visited.add(mark)


def unvisited() -> list[str]:
    return sorted(MARKS - visited)
