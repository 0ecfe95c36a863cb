"""Which due messages are sent together, and which of them a failed batch is to blame on. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs

from localdelay import arguments
from localdelay.entry import Entry, all_plain, goes_alone, plain_size, size_of
from localdelay.errors import PartialSendError


@attrs.frozen
class BatchPolicy:
    """When a batch is full. A wrong argument is a `TypeError` or `ValueError` that names it."""

    max_messages: int = attrs.field(default=500, validator=arguments.field_count)
    max_bytes: int = attrs.field(default=1_000_000, validator=arguments.field_count)
    """Payloads and headers; a message that is larger on its own goes alone."""
    max_wait: float = attrs.field(default=0.0, validator=arguments.field_at_least(0))
    """Seconds that a message may wait for company past its execute-at; 0: only what is due goes together."""


ONE = BatchPolicy(max_messages=1)
"""No batches: each message goes alone."""


def joining(entries: Sequence[Entry], policy: BatchPolicy, *, count: int, size: int) -> tuple[int, int, bool]:
    """How many of these due messages join a batch that has `count` messages of `size` bytes already.

    Returns how many, their bytes, and whether the batch is full then.
    """
    most, room = policy.max_messages - count, policy.max_bytes - size
    if len(entries) <= most and all_plain(entries) and (size_of_all := plain_size(entries)) <= room:
        return len(entries), size_of_all, len(entries) == most or size_of_all == room
    joined = added = 0
    for _, _, body in entries:
        its_size, alone = size_of(body), goes_alone(body)
        if (joined or count) and (alone or added + its_size > room):
            return joined, added, True
        joined += 1
        added += its_size
        if alone or joined >= most or added >= room:
            return joined, added, True
    return joined, added, False


def blame(error: Exception, ids: Sequence[str]) -> Mapping[str, Exception] | None:
    """Which messages of a batch failed, and with what; None where the batch failed as a whole.

    A `PartialSendError` that names an id that is not in the batch cannot be trusted to say what was
    sent, so it counts against the whole batch: twice is better than never.
    """
    if not isinstance(error, PartialSendError):
        return None
    with suppress(Exception):  # a child may have made a property of it, or put something else there
        if isinstance(error.failed, Mapping):
            failed = dict(error.failed)
            if failed.keys() <= set(ids) and all(isinstance(each, Exception) for each in failed.values()):
                return failed
    return None
