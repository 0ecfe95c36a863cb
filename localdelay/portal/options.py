"""What a face's queue is opened with."""

from __future__ import annotations

from os import PathLike
from typing import Required

from localdelay.journal.record import Journal
from localdelay.keys import Key
from localdelay.queue.core import CoreOptions


class Options(CoreOptions, total=False):
    """What the faces' queues are opened with as `localdelay.open_delay_queue` is."""

    capacity: Required[int]
    cancellable: bool
    catch_up_rate: float | None
    key: Key | None
    journal: Journal | str | PathLike[str] | None
