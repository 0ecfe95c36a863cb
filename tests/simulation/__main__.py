"""`python -m tests.simulation --minutes 2`: fresh scenes, until one fails or the time is over."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import traceback
from random import Random

from .marks import unvisited
from .run import play_scene, smallest
from .scene import draw_scene

_MANY = 2000
"""So many scenes visit all branches, the rarest of them some ten times."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="for how long")
    parser.add_argument("--seed", type=int, help="which scenes; fresh ones where it is not given")
    parser.add_argument("--scene", type=int, help="play this one only")
    given = parser.parse_args()
    if given.scene is not None:
        return _play(given.scene)
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}: python -m tests.simulation --minutes {given.minutes:g} --seed {seed}", flush=True)
    numbers, count, end = Random(seed), 0, time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        if failed := _play(numbers.getrandbits(32)):
            return failed
        count += 1
    print(f"{count} scenes")
    for mark in unvisited():
        print(f"never visited: {mark}")
    return 1 if unvisited() and count >= _MANY else 0


def _play(number: int) -> int:
    scene = draw_scene(number)
    try:
        play_scene(scene)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (a send of a scene raises what is no Exception)
        print(f"scene {number} fails: python -m tests.simulation --scene {number}", flush=True)
        traceback.print_exception(error)
        for part in smallest(scene, error).parts:
            print(part)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
