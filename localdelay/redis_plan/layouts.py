"""Following how many shards there are, while several instances change it; and the slow heartbeat.

The layout key says how many. A change is written there, and told to all. Messages stay where they are: more
shards means that new messages are spread over more of them, and fewer that the others get no new ones, are
closed, and are served until they are empty. Closing is what makes it safe: an instance that has not heard of
the change is refused by the shard itself, reads the layout, and puts its message where it belongs.
"""

from __future__ import annotations

import itertools

import attrs
import trio

from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.keys import Layout
from localdelay.redis_plan.link import logger
from localdelay.redis_plan.store import LAYOUT, SHUT, Store

_GLANCES = 3
"""Shards that are looked at with each heartbeat, in turn, though nothing was heard of them."""
_CLOSED_AT_ONCE = 64
_TRIES = 20
_DEFAULT_SHARDS = 16


class Layouts:
    """Knows the layout, and follows its changes. Its `beat` is to run as a task."""

    def __init__(self, store: Store, claimer: Claimer) -> None:
        self._store = store
        self._claimer = claimer
        store.on_layout = self.look
        self._news = trio.Event()
        self._looked_at = 0
        self.layout = Layout(0, 1, 1)

    async def refresh(self, shards: int | None = None) -> Layout:
        """Read the layout. Where there is none one is made, with so many shards at an opening.

        Raises as `Link.call` does.
        """
        for _ in range(_TRIES):
            there = Layout.read(await self._store.link.call(b"HGETALL", self._store.names.layout))
            if there is not None:
                if there != self.layout:
                    self.layout = there
                    self._claimer.serve(there.served)
                return there
            if self.layout.generation:
                logger.warning("the layout has gone from Redis, and all that was there with it")
                made = attrs.evolve(self.layout, generation=self.layout.generation + 1)
            else:
                made = Layout(1, shards or _DEFAULT_SHARDS, shards or _DEFAULT_SHARDS)
            await self._write(made, b"")
        raise ConnectionError("the layout in Redis disappears as soon as it is written")

    async def change(self, shards: int) -> None:
        """Have so many shards from now on. Raises as `Link.call` does; it may have been done then."""
        for _ in range(_TRIES):
            layout = await self.refresh()
            if layout.shards == shards:
                break
            if await self._write(layout.changed(shards), layout.generation):
                await self.refresh()
                break
        else:
            raise ConnectionError("the layout in Redis is changed by others all the time")
        layout = self.layout  # it may be another soon, in which these shards are not to be closed
        for shard in layout.retiring:
            await self._close(shard, layout)

    def look(self) -> None:
        """The layout may have changed."""
        self._news.set()

    async def beat(self) -> None:
        """Look after the layout, and at a few shards, at each heartbeat and when there are news."""
        for beat in itertools.count():
            with trio.move_on_after(self._store.tuning.heartbeat) as scope:
                await self._news.wait()
            self._news = trio.Event()
            try:
                layout = await self.refresh()
                if scope.cancelled_caught and layout.retiring and beat % 2:
                    await self._retire(layout)
                elif scope.cancelled_caught:
                    for _ in range(_GLANCES):
                        self._looked_at = (self._looked_at + 1) % len(layout.served)
                        await self._store.glance(self._looked_at)
            except Exception as error:  # noqa: BLE001 (the next heartbeat is another try)
                logger.debug("the layout could not be read: %s", error)

    async def _write(self, layout: Layout, before: int | bytes) -> bool:
        """Write a layout if the generation that is there is this one still; return whether it was."""
        names, link = self._store.names, self._store.link
        arguments = (names.channel, before, *layout.fields())
        return bool(await link.run(LAYOUT, (names.layout,), *arguments))

    async def _close(self, shard: int, layout: Layout) -> int:
        """Have a shard refuse the puts of who knows of none after this; how many messages there are."""
        return int((await self._store.run(SHUT, shard, layout.generation))[0])

    async def _retire(self, layout: Layout) -> None:
        """Close shards from the last one on, and do without those that are empty."""
        top = layout.retiring.stop
        for shard in reversed(layout.retiring[-_CLOSED_AT_ONCE:]):
            if await self._close(shard, layout):
                break
            top = shard
        if top < layout.retiring.stop:
            fewer = attrs.evolve(layout, generation=layout.generation + 1, top=top)
            if await self._write(fewer, layout.generation):
                await self.refresh()
