"""The arena of limits: its floors, in short runs, and that a seed gives one table."""

from __future__ import annotations

import attrs
import pytest

from bench import valve_outage, valve_quota
from bench.valve import VALVES, lines, measure, missed, play
from bench.valve_scenes import SCENES, Scene

SHORT = {
    "token bucket 200/s, 1.1x",
    "2x",
    "5x",
    "quota in whole seconds, 2x",
    "whole seconds, 5x",
    "answers in 0.1-0.3 s, 2x",
    "20 calls at once, 0.1 s each",
    "one call in 50 fails otherwise",
}


@pytest.mark.parametrize("scene", [one for one in SCENES if one.name in SHORT], ids=lambda scene: scene.name)
def test_the_floors_are_reached(scene: Scene) -> None:
    """In 20 s instead of two minutes: the search at the beginning weighs more, so both may be a bit worse."""
    floors = attrs.evolve(scene, used=scene.used - 0.02, refused=0.06)
    played = {valve: play(scene, valve, seconds=20.0) for valve in ("always ask", "adaptive")}
    assert list(missed(floors, played)) == []


def test_one_seed_gives_one_table() -> None:
    """And another seed another one."""
    scenes = [one for one in SCENES if one.name == "2x"]
    tables = [list(lines(measure(scenes, 5.0, seed, lambda line: None)))[3:] for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]
    assert [row.split(" | ")[1] for row in tables[0][2 : 2 + len(VALVES)]] == list(VALVES)


def test_a_limit_that_knows_the_costs_refuses_hardly_a_due_send() -> None:
    """Of a quota that counts a delayed publish as five; one that counts all alike is far over it."""
    alike, costs = (
        valve_quota.play(f"RateLimit{how}", delay=5.0) for how in (", all count 1", " with costs")
    )
    assert costs.refused < 5
    assert costs.late < 0.2
    assert alike.refused > 100


def test_a_limit_that_is_not_told_the_quota_refuses_hardly_a_due_send() -> None:
    """It knows what calls cost, and finds the rest."""
    adaptive = valve_quota.play("adaptive, with costs", delay=5.0)
    assert adaptive.refused < 5
    assert adaptive.late < 0.2


def test_an_outage_costs_few_calls_and_is_made_good_soon() -> None:
    """The floors are those of a minute; a broker that refuses all for as long is hardly called more."""
    scene = "down, probed"
    assert valve_outage.missed(scene, valve_outage.play(scene)) == []
    assert valve_outage.play("refuses all, adaptive").calls <= valve_outage.CALLS_MOST
