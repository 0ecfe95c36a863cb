"""Plays scenes one after the other; each can be played again by its number."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs

from localdelay.journal.record import Record

from .checks import check_copies
from .clock import EPOCH, Pace, Watch, play
from .disk import Disk, File, open_file
from .scene import Scene, draw_scene
from .world import World


def play_scene(scene: Scene) -> bool:
    """Play all its lives; whether the cancellation of the last one has struck."""
    held: list[Record] = []
    wall, files = EPOCH, None
    watch = Watch(None)
    with tempfile.TemporaryDirectory() as directory:
        for number, part in enumerate(scene.parts):
            wall += part.gap
            pace, watch = Pace(), Watch(None if part.cut is None else part.cut[1])
            world = World(part, pace, watch, held, wall)
            journal: Disk | File | None = None
            if scene.journal == "disk":
                journal = Disk(held, world.promises.event)
            elif scene.journal == "file":
                place = Path(directory) / str(number)
                place.mkdir()
                journal = open_file(place, files, scene.durability, scene.seed, world.promises.event)
            play(world.play, journal, seed=scene.seed, pace=pace, watch=watch, wall=world.wall)
            wall = world.offset
            copies = [] if journal is None else list(journal.copies())
            check_copies(world, copies)
            if copies:
                index = round(part.moment * (len(copies) - 1))
                held = copies[index].records
                files = journal.files_at(index) if isinstance(journal, File) else None
    return watch.fired


def play_everywhere(scene: Scene, target: str) -> int:
    """Play it, cancelled before its first step, its second, and so on until it is through; how often."""
    step = 0
    while True:
        step += 1
        *before, last = scene.parts
        cut = attrs.evolve(last, cut=(target, step))
        try:
            if not play_scene(attrs.evolve(scene, parts=(*before, cut))):
                return step
        except BaseException as error:
            error.add_note(f"{target!r} was cancelled before its step {step}")
            raise


def smallest(scene: Scene, failure: BaseException) -> Scene:
    """The scene without the steps that it fails without, too."""
    kind = type(failure)

    def still_fails(less: Scene) -> bool:
        try:
            play_scene(less)
        except BaseException as error:  # noqa: BLE001 (whatever it was)
            return type(error) is kind
        return False

    parts = list(scene.parts)
    for number in range(len(parts)):
        for name in ("steps", "meanwhile"):
            index = 0
            while index < len(getattr(parts[number], name)):
                steps = getattr(parts[number], name)
                fewer = attrs.evolve(parts[number], **{name: steps[:index] + steps[index + 1 :]})
                less = attrs.evolve(scene, parts=(*parts[:number], fewer, *parts[number + 1 :]))
                if still_fails(less):
                    parts[number] = fewer
                else:
                    index += 1
    return attrs.evolve(scene, parts=tuple(parts))


def play_number(number: int) -> None:
    """Play the scene of this number; what it fails with says how to play it again."""
    try:
        play_scene(draw_scene(number))
    except BaseException as error:
        error.add_note(f"again: python -m tests.simulation --scene {number}")
        raise
