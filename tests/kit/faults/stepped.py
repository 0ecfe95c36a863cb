"""The wall clock stepped by an hour, under a running queue and between two runs over a journal."""

from __future__ import annotations

import time
from pathlib import Path

import attrs

from tests.kit.faults.clock import WallClock
from tests.kit.faults.counting import count, in_redis
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, directory, redis
from tests.kit.faults.victim import Orders
from tests.kit.faults.victims import Child, epoch, read_begun, read_log

_HOUR = 3600
_NEARLY_AN_HOUR = _HOUR - 10
"""What is over an hour late is clipped in the histogram, and the check of the books allows none of that."""
_END_TIMEOUT = 150.0
_LATE = 300.0
"""Seconds that a busy machine may take; a queue that believed in the clock would be an hour late."""
_WORKERS = 20


def _orders(url: str, place: Path, seed: int, journal: bool) -> Orders:
    return Orders(
        url=url,
        log=str(place / "accepted"),
        name="run",
        epoch=epoch(),
        seed=seed,
        ends="drained",
        rate=500.0,
        low=0.2,
        high=2.0,
        workers=_WORKERS,
        journal=str(place / "journal") if journal else None,
    )


def under_way(fault: str, scale: Scale, *, cycles: int, journal: bool) -> Row:
    """Forth, back, forth ... while messages wait: nothing is early, nothing late, by the monotonic clock."""
    draws, watch = scale.random(fault), Watch()
    with redis() as server, directory() as place:
        clock, url = WallClock(place), server.fresh()
        orders = attrs.evolve(_orders(url, place, draws.randrange(1 << 30), journal), seconds=0.8 * cycles)
        with Child("tests.kit.faults.victim", orders, clock.environ) as victim:
            victim.wait_ready()
            for cycle in range(cycles):
                time.sleep(draws.uniform(0.4, 0.8))
                clock.step((_HOUR, -_HOUR, 0)[cycle % 3])
            told = victim.report(_END_TIMEOUT)
        accepted, begun = read_log(place / "accepted"), read_begun(place / "accepted")
        arrivals = list(in_redis(server, url))
    counted = count(accepted, arrivals, begun=begun, headers=False)
    wrong = []
    if counted.latest > _LATE or told["lateness_max"] > _LATE:
        wrong.append(f"late by {counted.latest:.3f} s, or {told['lateness_max']:.3f} s by its own account")
    # What a header says is by the clock as it then is: so one can see that it was stepped.
    ahead = {round((arrival.header_due or 0.0) - arrival.due) for arrival in arrivals}
    if ahead != {_HOUR, -_HOUR, 0}:
        wrong.append(f"the clock was not stepped as it should: the headers are {sorted(ahead)} s ahead")
    return Row.of(
        fault,
        counted,
        watch,
        cycles=cycles,
        accepted=len(accepted),
        notes=f"late by {counted.latest * 1e3:.0f} ms at most",
        wrong=wrong,
    )


def between_runs(fault: str, scale: Scale) -> Row:
    """Killed; an hour back, nothing is due; an hour ahead, everything is, by the wall clock as it is then."""
    draws, watch, wrong = scale.random(fault), Watch(), []
    with redis() as server, directory() as place:
        clock, url = WallClock(place), server.fresh()
        orders = _orders(url, place, draws.randrange(1 << 30), journal=True)
        with Child(
            "tests.kit.faults.victim", attrs.evolve(orders, low=0.5, high=6.0), clock.environ
        ) as victim:
            victim.wait_ready()
            time.sleep(1.0)
            victim.kill()
        accepted, begun = read_log(place / "accepted"), read_begun(place / "accepted")
        clock.step(-_HOUR)
        before = list(in_redis(server, url))
        with Child(
            "tests.kit.faults.victim", attrs.evolve(orders, seconds=0.0, grace=1.0), clock.environ
        ) as victim:
            victim.wait_ready()
            back = victim.report(_END_TIMEOUT)
        if back["sent"] or back["spooled"] != back["recovered"] or not back["recovered"]:
            wrong.append(f"an hour before all is due it is to wait: {_short(back)}")
        meanwhile = list(in_redis(server, url))[len(before) :]
        clock.step(_NEARLY_AN_HOUR)
        with Child("tests.kit.faults.victim", attrs.evolve(orders, seconds=0.0), clock.environ) as victim:
            victim.wait_ready()
            ahead = victim.report(_END_TIMEOUT)
        if ahead["sent"] != ahead["recovered"] or ahead["recovered"] != back["spooled"]:
            wrong.append(f"an hour after all was due it is to go at once: {_short(ahead)}")
        after = list(in_redis(server, url))[len(before) + len(meanwhile) :]
    by_its_clock = [
        *before,
        *(attrs.evolve(arrival, at=arrival.at - _HOUR) for arrival in meanwhile),
        *(attrs.evolve(arrival, at=arrival.at + _NEARLY_AN_HOUR) for arrival in after),
    ]
    counted = count(accepted, by_its_clock, begun=begun, headers=False)
    return Row.of(
        fault,
        counted,
        watch,
        cycles=2,
        accepted=len(accepted),
        allowed_duplicates=_WORKERS,
        notes=f"an hour back {back['recovered']} wait, an hour ahead {ahead['sent']} go at once",
        wrong=wrong,
    )


def _short(told: dict[str, object]) -> dict[str, object]:
    return {name: told[name] for name in ("recovered", "sent", "spooled", "pending")}
