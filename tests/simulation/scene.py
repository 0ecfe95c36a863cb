"""What a scene is made of: how the queue is opened, what is put, what happens to it, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any, TypeAlias

import attrs

TICK = 0.25
SEND_TIMEOUT = 1.0
LATEST = 400.0
"""No life takes longer than this, in virtual seconds."""
Step: TypeAlias = tuple[Any, ...]

SINGLE = ("slow", "fail", "throttled", "permanent")
"""What a send does with its message; in a batch, with that one alone."""
WHOLE = ("fail slowly", "throttled for long", "hang", "group", "mixed", "all permanent", "wrong names")
"""What a send does; in a batch, with all of them."""


@attrs.frozen(kw_only=True)
class Part:
    """One life of the process."""

    capacity: int
    capacity_bytes: int | None
    workers: int
    cancellable: bool
    attempts: int | None
    hook: str | None
    batch: tuple[int, float] | None
    """(messages, seconds that one may wait for company)"""
    limit: tuple[float, float] | None
    """(rate, burst)"""
    fallback: str | None
    """"holds", or "returns": it gives back what it holds, too."""
    room_timeout: float | None
    rate: float | None
    """Of overdue messages that come back, a second."""
    keys: int | None
    """So many different keys the messages have."""
    gap: float
    """By how much the wall clock has moved since the last life."""
    steps: tuple[Step, ...]
    ending: str
    grace: float | None
    hand_back: str | None
    meanwhile: tuple[Step, ...]
    """What is done while the drain runs, or the block is being left."""
    cut: tuple[str, int] | None
    """(whom, before which step) the cancellation strikes."""
    moment: float
    """Which copy of its journal the next life begins with: 0 is the first, and 1 the last."""
    adaptive: bool = False
    """The limit is one that finds its rate."""
    soon_shut: bool = False
    """Also without keys a few failures in a row shut the sends."""
    acts: Mapping[str, tuple[Step, ...]] = attrs.Factory(dict)
    """What a listener, a hook, a send, a hand-back does, one step each time that it is called."""


@attrs.frozen
class Scene:
    """One life, or two on one journal."""

    seed: int
    journal: str | None
    """"disk" in memory, or a "file"."""
    durability: str
    parts: tuple[Part, ...]


def _some(rng: Random, most: int, draw: Callable[[Random], Step]) -> tuple[Step, ...]:
    return tuple(draw(rng) for _ in range(rng.randint(0, most)))


def _delay(rng: Random, fine: bool) -> float:
    ticks = rng.randint(0, 12) * TICK
    return ticks + rng.randint(0, 15) * TICK / 16 if fine else ticks


def _plan(rng: Random, stops: bool) -> tuple[str, ...]:
    if rng.random() < 0.5:
        return ()
    outcomes = (*SINGLE, *SINGLE, *WHOLE, "stop") if stops else (*SINGLE, *SINGLE, *WHOLE)
    return tuple(rng.choice(outcomes) for _ in range(rng.randint(1, 3)))


@attrs.frozen
class _Draw:
    """What steps a life may have."""

    journal: bool
    fallback: bool
    fine: bool
    at: bool
    stops: bool
    reuses: bool

    def put(self, rng: Random) -> Step:
        ways = ["put", "put", "put_nowait"] + ["publish"] * 3 * self.fallback
        when = rng.choice(["at", "past", "delay"]) if self.at and rng.random() < 0.5 else "delay"
        name = rng.choice([None, None, None, "own", "own", "pending"] + ["used"] * self.reuses)
        far = self.fallback and rng.random() < 0.3
        delay = 30.0 if far else _delay(rng, self.fine)
        size = rng.choice([0, 0, 0, 3, 30] + [5000] * self.journal)  # more than a page of a database
        return (rng.choice(ways), delay, when, name, size, _plan(rng, self.stops))

    def step(self, rng: Random) -> Step:
        kinds = ["put"] * 10 + ["pass"] * 5 + ["cancel", "cancel", "give up", "pause", "resume", "resume"]
        kinds += ["capacity", "workers", "bytes"]
        kinds += ["flush", "flush", "disk", "disk", "set the clock"] * self.journal
        kinds += ["primary", "primary"] * self.fallback
        kind = rng.choice(kinds)
        if kind == "put":
            return self.put(rng)
        given: dict[str, Callable[[], Any]] = {
            "pass": lambda: rng.randint(1, 4),
            "cancel": lambda: rng.randint(0, 30),
            "give up": lambda: rng.randint(0, 30),
            "capacity": lambda: rng.randint(1, 6),
            "workers": lambda: rng.randint(1, 5),
            "bytes": lambda: rng.choice([None, 12, 40, 100]),
            "flush": lambda: rng.random() < 0.5,
            "disk": lambda: rng.choice([None, None, "refuses", "half", "full", "all"]),
            "set the clock": lambda: rng.choice([60.0, -60.0, -1.0]),
            "primary": lambda: rng.choice(["well", "throttles", "loses", "hangs a little"]),
        }
        return (kind, given[kind]()) if kind in given else (kind,)

    def rushed(self, rng: Random) -> Step:
        """A step that the next one may not wait for: commits take a while."""
        step = self.step(rng)
        return ("rush", step) if self.journal and rng.random() < 0.3 else step


def _part(rng: Random, journal: str | None, keys: int | None, *, last: bool) -> Part:
    def rare(share: float) -> bool:
        return rng.random() < share

    fallback = rng.choice(["holds", "returns"]) if rare(0.3) else None
    draw = _Draw(
        journal is not None, fallback is not None, rare(0.3), rare(0.3), rare(0.08), journal is None or last
    )
    refuses = (("primary", rng.choice(["throttles", "loses"])),) if fallback and rare(0.6) else ()
    roomy = rare(0.2)
    targets = ["whole", "whole", "put", "drain"] + ["publish"] * 2 * (fallback is not None)
    return Part(
        capacity=rng.randint(6, 14) if roomy else rng.randint(1, 5),
        capacity_bytes=rng.choice([None, None, 40, 100]),
        workers=rng.randint(1, 4),
        cancellable=fallback is not None or rare(0.8),
        attempts=rng.choice([None, None, 1, 2]),
        hook=rng.choice([None, "takes", "slow", "raises", "hangs"]),
        batch=(rng.randint(2, 5), rng.choice([0.0, 0.0, TICK, 2 * TICK])) if rare(0.3) else None,
        limit=(rng.choice([2.0, 4.0, 8.0]), rng.choice([1.0, 2.0])) if rare(0.2) else None,
        fallback=fallback,
        room_timeout=rng.choice([0.0, TICK, 1.0, None]),
        rate=rng.choice([None, None, 4.0]),
        keys=keys,
        gap=rng.choice([0.0, 1.0, 2.0, 60.0, -60.0]),
        steps=refuses + _some(rng, 8, draw.put) + _some(rng, 25, draw.rushed),
        ending=rng.choice(["leave", "leave", "drain", "drain", "cancelled drain", "exception", "cancelled"]),
        grace=rng.choice([None, None, 0.0, TICK, 1.0, 3.0]),
        hand_back=rng.choice([None, "takes", "slow", "fails twice", "permanent", "hangs", "throttled"]),
        meanwhile=_some(rng, 6, draw.rushed),
        cut=(rng.choice(targets), int(10 ** rng.uniform(0, 2.5))) if rare(0.2) else None,
        moment=rng.choice([1.0, rng.random()]),
    )


@attrs.frozen
class _More:
    """What steps there may be besides, each feature with a Random of its own.

    So a scene that is without one is what it was before there was any.
    """

    seed: int
    part: Part
    life: int
    journal: bool

    def drawn(self) -> Part:
        """The life with all of it."""
        part = self.part
        limited = self._rng("adaptive").random() < 0.3
        return attrs.evolve(
            part,
            steps=tuple(self._outages(self._moves(self._expiring(part.steps)))),
            meanwhile=tuple(self._moves(self._expiring(part.meanwhile), far=0.3)),
            adaptive=limited,
            limit=None if limited else part.limit,
            soon_shut=self._rng("outages").random() < _OUTAGES,
            acts=self._acts(),
        )

    def _rng(self, what: str, on: object = "") -> Random:
        return Random(f"{what} of {self.seed} {on}")

    def _expiring(self, steps: Iterable[Step]) -> Iterator[Step]:
        rng = self._rng("expires")
        is_on = rng.random() < 0.35
        for step in steps:
            yield _with_expires(step, _expires(rng)) if is_on else step

    def _moves(self, steps: Iterable[Step], *, far: float = 0.1) -> Iterator[Step]:
        rng = self._rng("moves")
        is_on = rng.random() < 0.4
        for step in steps:
            yield step
            if is_on and rng.random() < 0.35:
                move = _move(rng, rng.choice(["delay", "delay", "at", "past"]), far)
                yield ("rush", move) if self.journal and rng.random() < 0.3 else move

    def _outages(self, steps: Iterable[Step]) -> Iterator[Step]:
        rng = self._rng("outages")
        is_on = rng.random() < _OUTAGES
        for step in steps:
            yield step
            if is_on and rng.random() < 0.2:
                yield ("broker", rng.choice(["down", "down", "hangs", "throttles", "well", "well"]))

    def _acts(self) -> Mapping[str, tuple[Step, ...]]:
        rng = self._rng("acts", self.life)
        if rng.random() >= 0.35:
            return {}
        acts = {who: _some(rng, 5, _act) for who in ("listener", "hook", "send", "hand back")}
        if rng.random() < 0.3:  # or hardly any pause would meet the rare of its events
            acts["listener"] = (("pause",),) * 5
        return acts


_OUTAGES = 0.3


def _expires(rng: Random) -> float | None:
    return rng.choice([None, None, 0.0, TICK / 2, TICK, 2 * TICK, 1.0, 3.0])


def _with_expires(step: Step, expires: float | None) -> Step:
    """A put of a message that expires; any other step as it is."""
    if step[0] == "rush":
        return ("rush", _with_expires(step[1], expires))
    return (*step, expires) if step[0] in ("put", "put_nowait", "publish") else step


def _move(rng: Random, when: str, far: float = 0.1) -> Step:
    delay = 30.0 if rng.random() < far else _delay(rng, fine=True)
    return ("reschedule", rng.randint(0, 40), delay, when)


def _act(rng: Random) -> Step:
    """What can be done in the midst of something else, which waits for nothing."""
    draws: list[Callable[[], Step]] = [
        lambda: (
            "put_nowait",
            _delay(rng, fine=True),
            "delay",
            None,
            0,
            _plan(rng, stops=False),
            _expires(rng),
        ),
        lambda: ("cancel", rng.randint(0, 30)),
        lambda: _move(rng, "delay"),
        lambda: _move(rng, "past"),
        lambda: ("pause",),
        lambda: (rng.choice(["resume", "resume", "look"]),),
        lambda: ("capacity", rng.randint(1, 6)),
        lambda: ("workers", rng.randint(1, 5)),
        lambda: ("give up", rng.randint(0, 30)),
    ]
    return rng.choice(draws)()


def draw_scene(seed: int) -> Scene:
    """The scene with this seed, always the same."""
    rng = Random(seed)
    journal = rng.choice([None, None, None, "disk", "disk", "file"])
    lives = 2 if journal is not None and rng.random() < 0.7 else 1
    durability = rng.choice(["os", "fsync"])
    # Apart from all else, which is what it was before there were any.
    keys = Random(f"keys of {seed}").choice([None, None, None, 2, 3])
    parts = [_part(rng, journal, keys, last=life == lives) for life in range(1, lives + 1)]
    more = [_More(seed, part, life, journal is not None).drawn() for life, part in enumerate(parts)]
    return Scene(seed, journal, durability, tuple(more))
