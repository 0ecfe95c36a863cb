"""What a generated scene is made of: what is put, what happens to it, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
from hypothesis import strategies as st

from localdelay import DelayQueue, Statistics

TICK = 0.25
SEND_TIMEOUT = 1.0
LATEST = 400.0
"""No generated scene takes longer than this, in virtual seconds."""
Operation: TypeAlias = tuple[Any, ...]
Conserved: TypeAlias = Callable[[DelayQueue], Statistics]

_ticks = st.integers(0, 12).map(lambda count: count * TICK)
_outcomes = st.sampled_from(
    ["slow", "fail", "fail slowly", "throttled", "throttled for long", "permanent", "hang", "group", "mixed"]
)
_plans = st.one_of(st.just(()), st.lists(_outcomes, max_size=3).map(tuple))
_picks = st.integers(0, 30)
_puts = st.tuples(
    st.sampled_from(["put", "put", "put_nowait"]),
    _ticks,
    st.sampled_from([None, None, "own", "taken"]),
    st.sampled_from([0, 0, 0, 3, 30]),  # bytes of headers
    _plans,
)
_steps = st.one_of(
    *[_puts] * 5,
    *[st.tuples(st.just("pass"), st.integers(1, 4))] * 2,
    st.tuples(st.just("cancel"), _picks),
    st.tuples(st.just("give up"), _picks),  # a put that waits is cancelled
    st.tuples(st.sampled_from(["pause", "resume", "resume"])),
    st.tuples(st.just("capacity"), st.integers(1, 6)),
    st.tuples(st.just("workers"), st.integers(1, 5)),
    st.tuples(st.just("bytes"), st.sampled_from([None, 12, 40, 100])),
)


def _up_to(most: int, steps: st.SearchStrategy[Operation]) -> st.SearchStrategy[list[Operation]]:
    # Lists that hypothesis may end where it likes are mostly short, and a queue takes a while to fill.
    return st.integers(0, most).flatmap(lambda count: st.lists(steps, min_size=count, max_size=count))


_graces = st.sampled_from([None, None, 0.0, TICK, 1.0, 3.0])
_hand_backs = st.sampled_from([None, "takes", "slow", "fails twice", "permanent", "hangs", "throttled"])


@attrs.frozen
class Scene:
    """How the queue is opened, what is done with it, and how it ends."""

    capacity: int
    capacity_bytes: int | None
    workers: int
    cancellable: bool
    attempts: int | None
    hook: str | None
    steps: list[Operation]
    ending: str
    grace: float | None
    hand_back: str | None
    meanwhile: list[Operation]
    """What is done while the drain runs, or the block is being left."""


scenes = st.builds(
    Scene,
    capacity=st.integers(1, 5),
    capacity_bytes=st.sampled_from([None, None, 40, 100]),
    workers=st.integers(1, 4),
    cancellable=st.sampled_from([True, True, True, False]),
    attempts=st.sampled_from([None, 1, 2]),
    hook=st.sampled_from([None, "takes", "slow", "raises", "hangs"]),
    steps=st.tuples(_up_to(8, _puts), _up_to(25, _steps)).map(lambda parts: [*parts[0], *parts[1]]),
    ending=st.sampled_from(["leave", "drain", "drain", "cancelled drain", "exception", "cancelled"]),
    grace=_graces,
    hand_back=_hand_backs,
    meanwhile=_up_to(6, _steps),
)
