"""What callers do with messages that are pending, whenever they like: cancel them, or have them due then."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from .marks import hit
from .story import Story

if TYPE_CHECKING:
    from .world import World


class Orders:
    """Cancels and reschedules messages of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def cancel(self, pick: int) -> None:
        world = self._world
        if not self._is_indexed(world.queue.cancel):
            hit("a cancel was refused for want of an index")
            return
        story = self._picked(pick)
        if story is None or story.id is None:
            assert not world.queue.cancel("unknown")
            return
        waits, is_sure = self._waits(story), self._is_sure(story)
        promised, story.finishing = story.finishing, min(story.finishing, world.promises.event())
        cancelled = world.queue.cancel(story.id)
        self._check(cancelled, waits, is_sure)
        if not cancelled:
            hit("a cancel came too late")
            story.finishing = promised
            return
        hit("a message was cancelled")
        story.ends.append("cancelled")
        world.promises.owe(partial(setattr, story, "gone"), removal=True, anybody=True)
        world.changed = trio.current_time()

    def reschedule(self, pick: int, delay: float, when: str) -> None:
        world = self._world
        if not self._is_indexed(partial(world.queue.reschedule, delay=delay)):
            hit("a reschedule was refused for want of an index")
            return
        term, its_time = world.puts.term(delay, when)
        story = self._picked(pick)
        if story is None or story.id is None:
            assert not world.queue.reschedule("unknown", **its_time)
            return
        waits, is_sure, before = self._waits(story), self._is_sure(story), story.due
        story.terms.append(term)
        moved = world.queue.reschedule(story.id, **its_time)
        self._check(moved, waits, is_sure)
        if not moved:
            hit("a reschedule came too late")
            story.terms.pop()
            return
        hit("a message was rescheduled earlier" if term.due < before else "a message was rescheduled later")
        if not story.is_on_time:
            hit("a retry was rescheduled")
        if world.queue.statistics().closed:
            hit("a message was rescheduled while the queue drained")
            if story.given_back:
                hit("a message was rescheduled that could not be handed back")
        story.moved, story.paced, story.late = True, False, False
        story.is_to_be_given = True
        world.promises.owe(partial(setattr, term, "kept"), removal=False, anybody=True)
        world.changed = trio.current_time()

    def _is_indexed(self, act: Any) -> bool:
        """Whether the queue has an index; without one this raises."""
        if not self._world.part.cancellable:
            with pytest.raises(RuntimeError):
                act("unknown")
        return self._world.part.cancellable

    def _picked(self, pick: int) -> Story | None:
        """One of the messages there were so far, or none; of several with its name the youngest is meant."""
        stories = self._world.stories.values()
        known = [story for story in stories if story.id is not None and story.accepted]
        if pick % 9 == 8 or not known:
            return None
        its_id = known[pick % len(known)].id
        story = next(story for story in reversed(stories) if story.id == its_id and not story.refused)
        return story if story.accepted else None  # else it is being published, and may be held already

    def _waits(self, story: Story) -> bool:
        return story in self._world.waiting() and not story.busy

    def _is_sure(self, story: Story) -> bool:
        """Whether what is shown as waiting is not in anybody's hands."""
        world = self._world
        # One of a batch that is given up waits for the hooks of others, and counts as being sent meanwhile.
        given_up = story.hopeless or story.has_expired(trio.current_time())
        in_hand = given_up and world.part.batch is not None
        return world.is_plain and world.exact and not story.given_back and not in_hand

    def _check(self, done: bool, waits: bool, is_sure: bool) -> None:
        assert waits or not done
        assert done == waits or not is_sure
