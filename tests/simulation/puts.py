"""The ways in: puts that wait and that do not, and publishes, each with what must come of it."""

from __future__ import annotations

import math
from datetime import UTC
from typing import TYPE_CHECKING, Any

import trio

from localdelay import JournalError, LocalDelayError, Message, QueueClosed, QueueFull, Route

from .clock import Wall
from .marks import hit
from .scene import TICK
from .story import Story, Term

if TYPE_CHECKING:
    from .world import World


class Puts:
    """Puts messages into the queue of a world, or publishes them past it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def begin(self, nursery: trio.Nursery, way: str, *given: Any) -> None:
        story, options = self.story(*given)
        if way == "publish":
            nursery.start_soon(self.publish, story, options)
        elif way == "put_nowait":
            self._put_nowait(story, options)
        else:
            self._world.calls[self._world.serial] = (story, trio.CancelScope())
            nursery.start_soon(self._call, self._world.serial, options)

    def story(
        self,
        delay: float,
        when: str,
        name: str | None,
        size: int,
        plan: tuple[str, ...],
        expires: float | None = None,
    ) -> tuple[Story, dict[str, Any]]:
        """A new message, and what to put it with."""
        self._world.serial += 1
        headers = {"h": "x" * (size - 1)} if size and self._world.serial % 2 else {}
        payload = b"%05d" % self._world.serial + bytes(0 if headers else size)
        options: dict[str, Any] = {"headers": headers or None, "id": self._choose(name), "expires": expires}
        term, its_time = self.term(delay, when)
        options |= its_time
        if when != "delay":
            hit("a put in the past" if when == "past" else "a put at a time on the wall clock")
        if delay % TICK:
            hit("a put finer than the tick")
        self._world.stories[payload] = story = Story(
            payload=payload,
            headers=headers,
            size=len(payload) + size * bool(headers),
            terms=[term],
            expires=expires,
            plan=list(plan),
            id=options["id"],
        )
        return story, options

    def term(self, delay: float, when: str) -> tuple[Term, dict[str, Any]]:
        """When a message is to be sent, and how that is said."""
        world, now = self._world, trio.current_time()
        due = now if when == "past" else now + delay
        at: Any = None
        if when != "delay":
            at = Wall.fromtimestamp(world.wall() + (due - now) - (when == "past"), UTC)
        term = Term(due, at and at.timestamp(), [world.offset], world.promises.event())
        return term, {"delay": delay} if at is None else {"at": at}

    def _pending_ids(self) -> list[str]:
        waiting = [story.id for story, _ in self._world.calls.values() if story.id is not None]
        return [*waiting, *(message.id for message in self._world.queue.messages())]

    def _choose(self, name: str | None) -> str | None:
        pending = self._pending_ids()
        if name == "pending" and pending:
            return pending[self._world.serial % len(pending)]
        pending += [
            story.id for story in self._world.stories.values() if story.publishing and story.id is not None
        ]
        used = [story.id for story in self._world.stories.values() if story.ends and story.id not in pending]
        if name == "used" and used:
            return used[-1]
        return None if name is None else f"own-{self._world.serial}"

    def _expected(self, story: Story) -> type[Exception] | None:
        s = self._world.queue.statistics()
        if story.id in self._pending_ids() or (s.capacity_bytes or math.inf) < story.size:
            return ValueError
        if s.closed:
            return QueueClosed
        fits = s.pending_bytes + story.size <= (s.capacity_bytes or math.inf)
        return None if s.pending < s.capacity and fits and not s.puts_waiting else QueueFull

    def _put_nowait(self, story: Story, options: dict[str, Any]) -> None:
        expected = self._expected(story)
        try:
            message = self._world.queue.put_nowait(story.payload, **options)
        except (ValueError, QueueClosed, QueueFull) as error:
            assert not self._world.exact or type(error) is expected
            self._refuse(story, error)
        else:
            assert not self._world.exact or expected is None
            self._admit(story, message)
            self._world.fresh.append(story)

    async def _call(self, serial: int, options: dict[str, Any]) -> None:
        story, scope = self._world.calls[serial]
        journal = self._world.promises.journal
        failures = 0 if journal is None else journal.failed[False]
        began = trio.current_time()
        try:
            with self._world.target("put"), scope:
                try:
                    message = await self._world.queue.put(story.payload, **options)
                except BaseException as error:
                    self._refuse(story, error)
                    raise
                if trio.current_time() > began:
                    hit("a put waited for room")
                self._world.last_admitted = max(self._world.last_admitted, serial)
                self._admit(story, message)
                story.promised = self._world.promises.event()
        except JournalError:
            assert journal is not None
            assert journal.failed[False] > failures
        except (ValueError, QueueClosed):
            pass
        finally:
            del self._world.calls[serial]

    def _refuse(self, story: Story, error: BaseException) -> None:
        story.refused = True
        reasons: list[tuple[type[BaseException], str]] = [
            (JournalError, "a put was refused by the journal"),
            (QueueFull, "a put met a full queue"),
            (QueueClosed, "a waiting put met the end of the queue"),
            (ValueError, "a put was refused for its id"),
            (trio.Cancelled, "a waiting put was given up"),
        ]
        for kind, mark in reasons:
            if isinstance(error, kind):
                hit(mark)

    def _admit(self, story: Story, message: Message) -> None:
        story.check_message(message)
        if any(other.ends and other.id == story.id for other in self._world.stories.values()):
            hit("an id was used again")
        story.accepted = True
        story.late = story.due < trio.current_time()

    async def publish(self, story: Story, options: dict[str, Any]) -> Route | None:
        route = None
        story.publishing = True
        try:
            with self._world.target("publish"):
                receipt = await self._world.fallback.publish(story.payload, **options)
                story.check_message(receipt.message)
                route = receipt.route
                if route is Route.LOCAL:
                    hit("a publish was held")
                    self._admit(story, receipt.message)
                    story.promised = self._world.promises.event()
        except QueueFull:
            hit("a publish found no room")
        except ConnectionError:
            hit("a publish was ambiguous")
        except (ValueError, LocalDelayError):
            pass
        finally:
            story.publishing = False
            story.refused = not story.accepted
        if self._world.fallback.statistics().calls_saved:
            hit("the breaker was open")
        return route
