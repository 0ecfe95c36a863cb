"""The arena of limits: its floors, in short runs, and that a seed gives one table."""

from __future__ import annotations

import pytest

from bench import valve_sends
from bench.valve import VALVES, lines, measure, missed, play
from bench.valve_scenes import SCENES, Scene

LONG = {
    "falls to a quarter, comes back",
    "answers in 0.1-0.3 s, 2x",
    "20 instances, 2x, then 0.5x",
    "20 calls at once, 0.1 s each",
}
"""A minute: in a shorter run the search at the beginning weighs too much."""
IN_SHORT = {"5x", "whole seconds, 5x", "a burst of 200, 2x", "one call in 50 fails otherwise"}
"""Twenty seconds; others, which take less of a machine, are among the everyday tests."""


@pytest.mark.timeout(600)  # it is long for a machine that does much else
@pytest.mark.parametrize(
    "scene", [one for one in SCENES if one.name in LONG | IN_SHORT], ids=lambda scene: scene.name
)
def test_the_floors_are_reached(scene: Scene) -> None:
    """What is used, what is refused, and among instances who gets most and how soon all is native again."""
    seconds = 60.0 if scene.name in LONG else 20.0
    played = {valve: play(scene, valve, seconds=seconds) for valve in ("always ask", "adaptive")}
    assert list(missed(scene, played)) == []


def test_one_seed_gives_one_table() -> None:
    """And another seed another one."""
    scenes = [one for one in SCENES if one.name == "2x"]
    tables = [list(lines(measure(scenes, 5.0, seed, lambda line: None)))[3:] for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]
    assert [row.split(" | ")[1] for row in tables[0][2 : 2 + len(VALVES)]] == list(VALVES)


def test_a_limit_that_knows_the_costs_refuses_hardly_a_due_send() -> None:
    """Of a quota that counts a delayed publish as five; one that counts all alike is far over it."""
    alike, costs = (
        valve_sends.play_quota(f"RateLimit{how}", delay=5.0) for how in (", all count 1", " with costs")
    )
    assert costs.refused < 5
    assert costs.late < 0.2
    assert alike.refused > 100


@pytest.mark.parametrize("seed", [1, 2])
def test_a_limit_that_is_not_told_the_quota_refuses_hardly_a_due_send(seed: int) -> None:
    """It knows what calls cost, and finds the rest."""
    valve = "adaptive, with costs"
    assert valve_sends.missed(valve, valve_sends.play_quota(valve, seed=seed, delay=20.0)) == []


@pytest.mark.parametrize("scene", ["down, probed", "refuses all, adaptive"])
def test_an_outage_costs_few_calls_and_is_made_good_soon(scene: str) -> None:
    """Whether the broker can't be reached for a minute, or refuses all that it gets."""
    assert valve_sends.missed(scene, valve_sends.play_outage(scene)) == []
