"""The real queue of a scene, its dead letters and its delayed publish: they do what the scene says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from localdelay import Expired, Message, PartialSendError, PermanentSendError, Throttled
from localdelay.events import DeadLetter, Event, LimitBegan, LimitEnded, SendingOpened, SendingShut

from .checks import check_instant, check_send
from .limits import Finding
from .marks import hit
from .scene import TICK, WHOLE
from .story import Story

if TYPE_CHECKING:
    from .world import World


class Stop(BaseException):
    """No `Exception`: what a KeyboardInterrupt is to a send."""


@attrs.define
class Row:
    """Failures in a row, of sends that say that it may be down."""

    messages: set[tuple[bytes, int]] = attrs.Factory(set)
    """Also what was rescheduled is as new."""
    count: int = 0
    """Those that were of messages which had not failed in it."""

    def add(self, stories: Sequence[Story]) -> None:
        names = {(story.payload, len(story.terms)) for story in stories}
        self.count += self.messages.isdisjoint(names)
        self.messages |= names


class RealQueue:
    """What the queue calls. Messages arrive here, are refused, or are lost on their way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._part = world.part
        self.shut: set[Hashable] = set()
        """Keys of which one message at a time is tried; None, where there are no keys."""
        self._failing: dict[trio.lowlevel.Task, list[tuple[Story, int]]] = {}
        """What has failed in the last send of a task, and which attempt that was."""
        self.sending = 0
        self.giving = 0
        """Hand-backs of a drain that are under way."""
        self.begun: dict[Hashable, list[tuple[float, int]]] = defaultdict(list)
        """(when, how many messages) of every send of a key, and of every hand-back of a drain."""
        self.state = "well"
        """Of its delayed publish."""
        self.broker = "well"
        """Of it as a whole, for the sends."""
        self._probes: dict[Hashable, list[Story]] = {}
        """What is tried while all else of its key waits for that."""
        self.next_probe: dict[Hashable, tuple[float, float]] = {}
        """Before which instant none may begin, and until when one must, where there is something to try."""
        self._failed_probes: Counter[Hashable] = Counter()
        self.throttled: dict[Hashable, float] = {}
        """When a send of a key was throttled last."""
        self.rows: dict[Hashable, Row] = defaultdict(Row)
        """What has failed of each key since something was sent."""

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        # The queue takes what is wrong here for a failed send like any other, so it is kept.
        try:
            yield
        except (AssertionError, AttributeError, LookupError, TypeError) as error:
            self._world.broken.append(error)
            raise

    @contextmanager
    def _occupied(self, *stories: Story) -> Iterator[None]:
        for story in stories:
            assert not story.busy, "two things at once are done with one message"
            assert not story.ends, f"it is finished: {story}"
            assert not story.refused, "it was never accepted"
            story.busy = True
        check_instant(self._world)
        try:
            yield
            check_instant(self._world)
        finally:
            for story in stories:
                story.busy = False
            self._world.changed = trio.current_time()

    async def send(self, message: Message) -> None:
        with self._noticed():
            await self._send([message])

    async def send_batch(self, messages: Sequence[Message]) -> None:
        with self._noticed():
            await self._send(messages)

    async def _send(self, messages: Sequence[Message]) -> None:
        self._world.promises.goes_on()
        self._failing.pop(trio.lowlevel.current_task(), None)
        stories = [self._world.story(message) for message in messages]
        check_send(self._world, messages, stories)
        key = self._world.key_of(messages[0])
        self._begin(key, len(messages))
        if self.shut - {key} and key not in self.shut:
            hit("one key was sent while another was shut")
        # With a journal it may have been taken before they were shut, and have waited for that.
        is_probe = key in self.shut and self._world.promises.journal is None
        if is_probe:
            assert key not in self._probes, "two are tried at a time"
            assert trio.current_time() >= self.next_probe[key][0], "one was tried too soon"
            self._probes[key] = stories
        self.sending += 1
        try:
            with self._occupied(*stories):
                for story in stories:
                    story.tried, story.moved = True, False
                self._world.act("send")
                outcomes = [self._outcome(story) for story in stories]
                whole = next((outcome for outcome in outcomes if outcome in (*WHOLE, "stop")), None)
                if whole is not None:
                    await self._whole(whole, stories)
                else:
                    await self._each(outcomes, stories)
        finally:
            self.sending -= 1
            if is_probe:
                del self._probes[key]

    def _begin(self, key: Hashable, count: int) -> None:
        """A call begins, with so many messages of this key."""
        self.begun[key].append((trio.current_time(), count))
        if self._part.adaptive:
            limit = self._world.limit_of(key)
            assert isinstance(limit, Finding)
            limit.called(count)

    def _outcome(self, story: Story) -> str:
        """What the next send of this message does."""
        if self.broker == "well":
            return story.plan.pop(0) if story.plan else "fine"
        return {"down": "fail", "hangs": "hang", "throttles": "throttled"}[self.broker]

    async def _each(self, outcomes: list[str], stories: list[Story]) -> None:
        slow = "slow" in outcomes
        if slow:
            await trio.sleep(TICK)
        failed: dict[str, Exception] = {}
        for outcome, story in zip(outcomes, stories, strict=True):
            error = self._failure(outcome)
            if error is None:
                story.arrived += 1
            else:
                assert story.id is not None
                failed[story.id] = error
        if slow:
            try:
                await trio.sleep(TICK)
            except trio.Cancelled:
                hit("a send that had arrived was cut off")
                for story in stories:
                    story.cut += story.id not in failed
                raise
        for outcome, story in zip(outcomes, stories, strict=True):
            if story.id not in failed:
                self._finish(story, "sent")
            elif outcome == "fail":
                self._failed(story, opens=len(failed) < len(stories))
            elif outcome == "permanent":
                self.doom(story)
            else:
                hit("a send was throttled")
        if len(stories) > 1:
            hit("a batch failed in part" if failed else "a batch went together")
        if "throttled" in outcomes and ("fail" not in outcomes or len(failed) < len(stories)):
            self.throttled[self._world.key_of(stories[0])] = trio.current_time()
        if len(failed) < len(stories):
            self.rows.pop(self._world.key_of(stories[0]), None)
        elif {"fail", "throttled"} & {*outcomes}:
            self._wait_longer(stories, is_down="fail" in outcomes)
        if failed:
            raise PartialSendError(failed) if self._part.batch else next(iter(failed.values()))

    def _failure(self, outcome: str) -> Exception | None:
        if outcome in ("fine", "slow"):
            return None
        kinds = {"fail": OSError, "throttled": Throttled, "permanent": PermanentSendError}
        error: Exception = kinds[outcome](outcome)
        return error

    async def _whole(self, outcome: str, stories: list[Story]) -> None:
        if len(stories) > 1:
            hit("a batch was split" if outcome == "all permanent" else "a batch failed as a whole")
        if outcome == "stop":
            hit("a send raised what is no Exception")
            self._world.stopped = Stop()
            raise self._world.stopped
        if outcome == "throttled for long":
            self._wait_longer(stories, is_down=False)
            self.throttled[self._world.key_of(stories[0])] = trio.current_time()
            raise Throttled(retry_after=6 * TICK)
        if outcome == "all permanent":
            if len(stories) == 1:
                self.doom(stories[0])
            raise PermanentSendError
        if outcome == "fail slowly":
            await trio.sleep(TICK)
        hangs = outcome in ("hang", "mixed")
        try:
            await self._fail(outcome)
        finally:
            # Only now: while an error passes a nursery, another one may shut the sends, at the same instant.
            if hangs:
                hit("a send hung until its time-out")
            self._wait_longer(stories, is_down=True)
            for story in stories:
                self._failed(story, sure=not hangs)  # or all of it was cancelled

    def is_tried(self, key: Hashable) -> bool:
        """Whether a message of this key is, while all else of it waits for that."""
        return key in self._probes

    def _wait_longer(self, stories: list[Story], *, is_down: bool) -> None:
        """These have failed, or were refused for now; if they were a probe, the next one is tried later."""
        key = self._world.key_of(stories[0])
        if is_down and key not in self.shut:
            self.rows[key].add(stories)
        if self._probes.get(key) is stories:
            self._wait(key)

    def _wait(self, key: Hashable) -> None:
        now, wait = trio.current_time(), min(1.0, TICK * 2 ** self._failed_probes[key])
        self._failed_probes[key] += 1
        self.next_probe[key] = now + wait, now + 1.3 * wait

    async def _fail(self, outcome: str) -> None:
        if outcome == "hang":
            await trio.sleep_forever()
        if outcome == "mixed":  # the cancellation by send_timeout meets an error of the send's own
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError(outcome)
        if outcome == "group":
            async with trio.open_nursery():
                raise ValueError(outcome)
        if outcome == "wrong names" and self._part.batch:
            raise PartialSendError({"nobody": OSError()})
        raise OSError(outcome)

    def _finish(self, story: Story, how: str, *, told: bool = True) -> None:
        """It has ended; where a journal is `told`, it is gone from there, too, in the end."""
        promises = self._world.promises
        story.ends.append(how)
        story.finishing = min(story.finishing, promises.event())
        if told:
            promises.owe(partial(setattr, story, "gone"), removal=True)

    def _failed(self, story: Story, *, sure: bool = True, opens: bool = False) -> None:
        """It has failed, and used up an attempt: not as a probe, unless others of its batch were sent."""
        hit("a send failed and was tried again")
        key = self._world.key_of(story)
        if key in self.shut and not opens:
            return
        promises, attempt = self._world.promises, story.attempt
        self._failing.setdefault(trio.lowlevel.current_task(), []).append((story, attempt))
        if self._part.attempts is not None and attempt >= self._part.attempts:
            story.possible.append((promises.event(), attempt + 1 - sure))
            self.doom(story, sure=sure)
            return
        story.attempt = attempt + 1
        story.possible.append((promises.event(), attempt + 1))
        promises.owe(lambda event: story.written.append((event, attempt + 1)), removal=False, sure=sure)

    def doom(self, story: Story, *, sure: bool = True) -> None:
        story.hopeless = True
        if self._part.hook is None:
            self._stays(story, sure=sure)

    def _stays(self, story: Story, *, sure: bool, begun: bool = False) -> None:
        """A journal has it as a dead letter from now on; it may have `begun` to write that already."""
        promises = self._world.promises
        story.doomed = min(story.doomed, promises.rested if begun else promises.event())
        promises.owe(partial(setattr, story, "marked"), removal=False, sure=sure, begun=begun)

    async def bury(self, message: Message, error: Exception) -> None:
        with self._noticed():
            story = self._world.story(message)
            with self._occupied(story):
                self._given_up(story, error)
                self._world.act("hook")
                hook = self._part.hook
                if hook == "slow":
                    await trio.sleep(3 * TICK)
                elif hook == "raises":
                    self._stays(story, sure=True)
                    raise ValueError(message.id)
                elif hook == "hangs":
                    try:
                        await trio.sleep_forever()
                    finally:
                        hit("a dead-letter hook was ended")
                        self._stays(story, sure=False)
            hit("a dead letter was taken")
            self._finish(story, "dead")

    def _given_up(self, story: Story, error: Exception) -> None:
        assert isinstance(error, Exception)
        if not isinstance(error, Expired):
            assert story.hopeless, "given up on, and nobody asked for it"
            return
        assert story.has_expired(trio.current_time()), "it is worth sending still"
        story.expired = True
        hit("a message expired while it waited to be tried again" if story.tried else "a message expired")

    def on_event(self, event: Event) -> None:
        """Hear of what happens, and do something about it."""
        with self._noticed():
            self._note(event)
            self._world.act("listener")

    def _note(self, event: Event) -> None:
        """Hear of what was given up, and of sends that wait for one that is tried."""
        if isinstance(event, LimitBegan):
            hit("a limit began")
        elif isinstance(event, LimitEnded):
            hit("a limit ended")
        if isinstance(event, SendingShut):
            hit("sends that failed in a row shut it")
            self.shut.add(event.key)
            assert self.rows[event.key].count == self._world.probe.failures, "it was not yet to be shut"
            self._failed_probes[event.key] = 0
            self._wait(event.key)
            # The failure that shuts it is the broker's, too, and uses up no attempt.
            for story, attempt in self._failing.pop(trio.lowlevel.current_task(), []):
                story.attempt, story.hopeless = attempt, False
            self._world.promises.forgive()
        elif isinstance(event, SendingOpened):
            self.shut.discard(event.key)
            for story in self._world.stories.values():
                story.paced |= self._world.part.rate is not None and story.due < trio.current_time()
        if isinstance(event, DeadLetter):
            story = self._world.story(event.message)
            if not story.ends:
                self._given_up(story, event.error)
                self._world.changed = trio.current_time()
                if story.expired and self._part.hook is None:
                    hit("what had expired was nobody's")
                    self._stays(story, sure=True, begun=True)
                hit("a dead letter was logged")
                story.ends.append("dead")
                if self._world.promises.journal is not None:
                    hit("a dead letter stayed in the journal")

    @contextmanager
    def _giving(self) -> Iterator[None]:
        self.giving += 1
        try:
            yield
        finally:
            self.giving -= 1

    async def hand_back(self, message: Message, remaining: float) -> None:
        with self._noticed():
            world = self._world
            world.promises.goes_on()
            story = world.story(message)
            now = trio.current_time()
            assert remaining == max(0.0, message.execute_at - now)
            assert now <= world.deadline
            if story.is_on_time:
                assert message.execute_at >= world.deadline, "it would have come due within the grace"
            with self._occupied(story), self._giving():
                story.given_back += 1
                story.is_to_be_given = False
                self._begin(world.key_of(story), 1)
                world.act("hand back")
                kind = self._part.hand_back
                if kind == "slow":
                    await trio.sleep(2 * TICK)
                elif kind == "fails twice" and story.given_back < 3:
                    hit("a hand-back failed first")
                    raise ValueError
                elif kind == "throttled" and story.given_back < 2:
                    raise Throttled(retry_after=TICK)
                elif kind == "permanent":
                    raise PermanentSendError
                elif kind == "hangs":
                    await trio.sleep_forever()
            hit("a hand-back took it")
            # Where a send has ended the queue, its journal is closed before a drain beside it is cut off.
            self._finish(story, "handed_back", told=world.stopped is None)

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Its own delayed publish, for what is new and for what a fallback gives back."""
        with self._noticed():
            story = self._world.stories[message.payload]
            assert message.execute_at == story.due
            if self._part.adaptive:
                self._begin(self._world.key_of(story), 1)
            if story.publishing:
                await self._publish(story)
                hit("the primary took it")
                return
            self._world.promises.goes_on()
            with self._occupied(story):
                story.given_back += 1
                await self._publish(story)
            hit("the primary took it back while the queue ran")
            self._finish(story, "handed_back")

    async def _publish(self, story: Story) -> None:
        if self.state == "throttles":
            raise Throttled
        if self.state == "loses":
            raise ConnectionError
        if self.state == "hangs a little":
            await trio.sleep(2 * TICK)
        story.arrived += 1
