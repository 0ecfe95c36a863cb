"""How many shards there are, while several instances change it; and the slow heartbeat.

The layout key says how many. A change is written there, and told to all. Messages stay where they are: more
shards means that new messages are spread over more of them, and fewer that the others get no new ones, are
closed, and are served until they are empty. Closing is what makes it safe: an instance that has not heard of
the change is refused by the shard itself, reads the layout, and puts its message where it belongs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import attrs
import trio

from localdelay.redis_plan.keys import MOST_FORMER, Layout
from localdelay.redis_plan.link import Link, logger
from localdelay.redis_plan.store import Store

_GLANCES = 3
"""Shards that are looked at with each heartbeat, in turn, though nothing was heard of them."""
_CLOSED_AT_ONCE = 64
_TRIES = 20
_DEFAULT_SHARDS = 16


def changed(layout: Layout, shards: int) -> Layout:
    """The layout with another number of shards. Pure."""
    former = [count for count in dict.fromkeys((layout.shards, *layout.former)) if count != shards]
    top = max(layout.top, layout.shards, shards)
    return Layout(layout.generation + 1, shards, top, tuple(former[:MOST_FORMER]))


class Layouts:
    """Knows the layout, and follows its changes. Its `beat` is to run as a task."""

    def __init__(
        self,
        store: Store,
        link: Link,
        *,
        heartbeat: float,
        on_layout: Callable[[Layout], None],
        on_glance: Callable[[int, int, int], None],
    ) -> None:
        self._store = store
        self._link = link
        self._heartbeat = heartbeat
        self._on_layout = on_layout
        self._on_glance = on_glance
        self._news = trio.Event()
        self._looked_at: Iterator[int] = iter(())
        self.layout = Layout(0, 1, 1)

    async def open(self, shards: int | None) -> None:
        """Read the layout, or make one with so many shards."""
        for _ in range(_TRIES):
            there = await self._store.layout()
            if there is not None:
                self._adopt(there)
                return
            count = shards or _DEFAULT_SHARDS
            await self._store.change_layout(Layout(1, count, count), after=None)
        raise ConnectionError("the layout in Redis disappears as soon as it is written")

    async def refresh(self) -> Layout:
        """Read the layout again; write it again where it has gone, as after a FLUSHALL."""
        for _ in range(_TRIES):
            there = await self._store.layout()
            if there is not None:
                self._adopt(there)
                break
            logger.warning("the layout has gone from Redis, and all that was there with it")
            again = attrs.evolve(self.layout, generation=self.layout.generation + 1)
            await self._store.change_layout(again, after=None)
        return self.layout

    async def change(self, shards: int) -> None:
        """Have so many shards from now on. Raises as `Link.call` does; it may have been done then."""
        for _ in range(_TRIES):
            layout = await self.refresh()
            if layout.shards == shards:
                break
            if await self._store.change_layout(changed(layout, shards), after=layout):
                await self.refresh()
                break
        else:
            raise ConnectionError("the layout in Redis is changed by others all the time")
        for shard in self.layout.retiring:
            await self._store.close(shard, self.layout.generation)

    def heard(self) -> None:
        """The layout has changed."""
        self._news.set()

    async def beat(self) -> None:
        """Look after the layout, and at a few shards, at each heartbeat and when there are news."""
        for beat in itertools.count():
            with trio.move_on_after(self._heartbeat):
                await self._news.wait()
            try:
                if self._news.is_set():
                    self._news = trio.Event()
                    await self.refresh()
                elif self._link.is_connected:
                    layout = await self.refresh()
                    if layout.retiring and beat % 2:
                        await self._retire(layout)
                    else:
                        await self._glance()
            except Exception as error:  # noqa: BLE001 (the next heartbeat is another try)
                logger.debug("the layout could not be read: %s", error)

    async def _glance(self) -> None:
        for _ in range(_GLANCES):
            shard = next(self._looked_at, None)
            if shard is None:
                self._looked_at = iter(self.layout.served)
                shard = next(self._looked_at, 0)
            self._on_glance(shard, *await self._store.glance(shard))

    async def _retire(self, layout: Layout) -> None:
        """Close shards from the last one on, and do without those that are empty."""
        top = layout.retiring.stop
        for shard in reversed(layout.retiring[-_CLOSED_AT_ONCE:]):
            if (await self._store.close(shard, layout.generation)).count:
                break
            top = shard
        if top < layout.retiring.stop:
            fewer = attrs.evolve(layout, generation=layout.generation + 1, top=top)
            if await self._store.change_layout(fewer, after=layout):
                await self.refresh()

    def _adopt(self, layout: Layout) -> None:
        if layout != self.layout:
            self.layout = layout
            self._on_layout(layout)
