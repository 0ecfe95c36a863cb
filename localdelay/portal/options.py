"""What a face's queue is opened with."""

from __future__ import annotations

from os import PathLike
from typing import Required, TypedDict

from localdelay.arguments import NotGiven
from localdelay.journal.record import Journal
from localdelay.limit import Limit
from localdelay.listening import Listener
from localdelay.probe import ProbePolicy
from localdelay.queue.batch import BatchPolicy
from localdelay.queue.retry import RetryPolicy
from localdelay.timer import TimerKind


class Options(TypedDict, total=False):
    """What the faces' queues are opened with as `localdelay.open_delay_queue` is."""

    batch: BatchPolicy
    capacity: Required[int]
    capacity_bytes: int | None
    cancellable: bool
    timer: TimerKind
    retry: RetryPolicy
    send_timeout: float | None
    limit: Limit | NotGiven | None
    catch_up_rate: float | None
    probe: ProbePolicy | None
    listener: Listener | None
    journal: Journal | str | PathLike[str] | None
