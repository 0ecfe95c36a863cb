"""The floors of `bench.valve`, in short runs of the scenes that take little of a machine."""

from __future__ import annotations

import pytest

from bench.valve import missed, play
from bench.valve_scenes import SCENES, Scene

EVERYDAY = {
    "token bucket 200/s, 1.1x",
    "2x",
    "quota in whole seconds, 2x",
    "whole seconds, after 0.3 s",
    "limit of 2/s, 3x",
}


@pytest.mark.parametrize(
    "scene", [one for one in SCENES if one.name in EVERYDAY], ids=lambda scene: scene.name
)
def test_the_floors_are_reached(scene: Scene) -> None:
    """What the primary takes natively, and what it refuses, in 20 s of virtual time."""
    played = {valve: play(scene, valve, seconds=20.0) for valve in ("always ask", "adaptive")}
    assert list(missed(scene, played)) == []
