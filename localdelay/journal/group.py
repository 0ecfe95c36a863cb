"""What is committed together, and what of a message is to be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio

from localdelay.entry import Entry
from localdelay.errors import JournalError

FRESH: Final = 0
TAKEN: Final = 1
LATE: Final = 2


@attrs.define(eq=False)
class Change:
    """What of a message is to be written. But for where it stands, it stays as it was made."""

    key: int
    entry: Entry | None  # None: it is gone
    due: float = 0.0  # on the wall clock
    dead: str | None = None
    on_disk: bool = True  # or may be: only what surely is not need not be removed
    at_risk: bool = False  # pending, and not known to be there in any form
    stage: int = FRESH
    enter: Callable[[], None] | None = None  # of a put that waits: makes it pending once it is on disk


@attrs.define(eq=False)
class Group:
    """What is committed together. Of the loop until the thread takes it; its `tasks` also then."""

    told: bool = False  # whether the thread knows that there is something
    durable: bool = False  # whether a message in it is new
    takes_late: bool = False  # whether somebody waits for all: for what is late, and that the rest is there
    tells: bool = False  # whether what is being sent has changed
    sending: list[int] | None = None  # the keys of that, once the thread has taken it
    changes: list[Change] = attrs.Factory(list)
    seconds: float | None = None  # None: there was nothing to write
    error: Exception | None = None
    are_gone: bool = False  # whether, for all that, its removals are written
    has_ended: bool = False
    tasks: dict[trio.lowlevel.Task, None] = attrs.Factory(dict)  # which wait for that

    async def until_end(self, *, shielded: bool = False) -> None:
        """Wait for the end of its commit. Raises `JournalError` if that has failed."""
        if not self.has_ended:
            task = trio.lowlevel.current_task()
            self.tasks[task] = None

            def abort(_: object) -> trio.lowlevel.Abort:
                if shielded:  # nobody knows yet whether there is a message to be cancelled
                    return trio.lowlevel.Abort.FAILED
                del self.tasks[task]
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self.error is not None:
            raise JournalError(str(self.error))
