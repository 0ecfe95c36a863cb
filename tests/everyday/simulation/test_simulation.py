"""The whole queue in generated scenes: what it promises is checked at every step (`tests/simulation`).

The scenes here are always the same; `.ci/run` plays fresh ones. A scene that fails says how to play it again.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.simulation import marks
from tests.simulation.run import play_everywhere, play_number
from tests.simulation.scene import draw_scene

EVERYWHERE = {
    "whole": [1002, 1009, 1036, 1043, 1046, 1050, 1054, 1058, 1063],
    "put": [1003, 1037, 1059, 1064],
    "drain": [1002, 1015, 1036, 1043, 1050],
    "publish": [1058, 1087],
}
"""Scenes in which many things are under way while the target runs, by target."""
pytestmark = pytest.mark.timeout(300)  # they need a second each, and many where the machine is busy


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_the_promises_hold(seed: int) -> None:
    """Conservation, one end each, never early, order, room, no lost wake-up, nothing lost by a crash."""
    numbers = Random(seed)
    for _ in range(50):
        play_number(numbers.getrandbits(32))


@pytest.mark.parametrize(
    ("target", "number"), [(target, number) for target, numbers in EVERYWHERE.items() for number in numbers]
)
def test_wherever_it_is_cancelled_the_promises_hold(target: str, number: int) -> None:
    """A scene is cancelled before its first step, its second, and so on, until it is through."""
    assert play_everywhere(draw_scene(number), target) > 5


def test_the_branches_of_the_queue_are_visited() -> None:
    """In a minute of scenes all of them are; here, those that are not rare."""
    numbers = Random(20)
    marks.visited.clear()
    for _ in range(100):
        play_number(numbers.getrandbits(32))
    assert len(marks.visited) >= 0.8 * len(marks.MARKS), marks.unvisited()
