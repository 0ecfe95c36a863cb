"""Items that hop to the loop of another thread."""

from __future__ import annotations

from collections.abc import Callable

import trio

from localdelay.hops import Hop


def test_the_last_turn_of_a_loop_leaves_what_it_cannot_take() -> None:
    """A loop at its end lets nobody ask for another turn: no error there, and nothing is lost."""
    posted: list[Callable[[], object]] = []
    arrived: list[int] = []

    def post(come: Callable[[], object]) -> None:
        if posted:
            raise trio.RunFinishedError
        posted.append(come)

    hop: Hop[int] = Hop(post, arrived.extend, most=2)
    for item in range(5):
        hop.send(item)
    posted[0]()
    assert arrived == [0, 1]
    assert hop.take() == [2, 3, 4]
