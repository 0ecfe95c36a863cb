"""What must be true: each checker compares what the queue says with what has happened to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from localdelay import Message, Statistics
from localdelay.limit import Limit
from tests.kit.conserving import conserve

from .clock import HAND_BACKS_IN_FLIGHT
from .disk import Copy
from .limits import Finding
from .marks import hit
from .story import Story

if TYPE_CHECKING:
    from .world import World

_MOST_WORKERS = 5  # of a scene


def check_instant(world: World) -> None:
    """What holds at every instant, also in the midst of a send: conservation, and room."""
    if not hasattr(world, "queue"):
        return  # it has messages from before, and is about to be opened
    s = conserve(world.queue)
    # A commit that has its room keeps it, though the capacity is lowered meanwhile.
    limit = world.most if world.promises.journal is not None else s.capacity
    assert s.pending <= max(limit, world.pending), "more was taken in than there is room for"
    if s.capacity_bytes is not None and world.promises.journal is None:
        assert s.pending_bytes <= max(s.capacity_bytes, world.pending_bytes), "more bytes than there is room"
    world.pending, world.pending_bytes = s.pending, s.pending_bytes


def check_send(world: World, messages: Sequence[Message], stories: Sequence[Story]) -> None:
    """Never early, never twice, never while paused, in order, of one key, no more at once than workers."""
    now = trio.current_time()
    assert not world.paused, "a send has begun in a queue that is paused"
    assert now <= world.deadline, "a send after the grace"
    for message, story in zip(messages, stories, strict=True):
        assert now >= message.execute_at, "early"
        assert message.attempt == story.attempt
        assert not story.hopeless, "it was given up"
        assert not story.has_expired(now), "it is not worth sending any more"
    key, shut = world.key_of(stories[0]), world.real.shut
    assert {world.key_of(story) for story in stories} == {key}, "several keys in one send"
    if not hasattr(world, "queue"):
        return
    if not world.is_limited:
        # What a worker has taken it sends when the journal knows, though there are too many meanwhile.
        kept = world.promises.journal is not None
        most = _MOST_WORKERS if kept else world.queue.statistics().workers
        assert world.real.sending < most, "more sends than workers"
    elif now > stories[0].due and stories[0].is_on_time:
        hit("the limit made a send wait")
    if world.part.batch is not None:
        assert len(messages) <= world.part.batch[0]
    elif not world.is_limited and stories[0].is_on_time and not world.part.rate:
        others = [other for other in world.waiting() if other.is_on_time and not other.busy]
        waits_for = [other for other in others if (its := world.key_of(other)) == key or its not in shut]
        earlier = [other for other in waits_for if other.due < stories[0].due]
        # With a journal a worker that has taken a message waits until that knows: it has been taken in order,
        # before those that are taken now and before what was overdue already when it came in meanwhile.
        taken = 0
        if world.promises.journal is not None:
            taken = world.queue.statistics().sending - world.real.sending - 1
            earlier = [other for other in earlier if not other.late]
        assert len(earlier) <= taken, "it has overtaken another"


def check_rest(world: World) -> None:
    """What holds when every task and thread has come to rest."""
    if world.broken:
        raise world.broken[0]
    check_instant(world)
    s = world.queue.statistics()
    messages = world.queue.messages()
    stories = [world.story(message) for message in messages]
    check_ends(world, s, stories)
    check_order(stories)
    check_shut(world)
    check_given_away(world, stories)
    if world.paused:  # then nobody is owed any
        check_tokens(world)
    check_wake_ups(world, s, stories)
    check_waiting(world, s)
    check_limit(world)


def check_ends(world: World, s: Statistics, pending: Sequence[Story]) -> None:
    """Each message that was accepted has one end, or is pending; and each end is counted as what it is."""
    accepted = [story for story in world.stories.values() if story.accepted]
    for story in accepted:
        assert len(story.ends) + (story in pending) <= 1, f"one end each: {story}"
        assert story.arrived <= 1 + story.cut, f"it is there twice, and was not cut off: {story}"
    assert {id(story) for story in pending} <= {id(story) for story in accepted}
    ends = Counter(end for story in accepted for end in story.ends)
    assert s.accepted == len(accepted)
    left = sum(not story.ends for story in accepted) - len(pending)
    assert s.spooled == left, "what has no end is pending, or in the journal when the queue has ended"
    assert not left or (s.closed and world.promises.journal is not None)
    assert (s.sent, s.dead) == (ends["sent"], ends["dead"])
    assert s.expired == sum(story.expired and "dead" in story.ends for story in accepted)
    assert (s.cancelled, s.handed_back) == (ends["cancelled"], ends["handed_back"])
    # What could not be handed back in a drain, and was rescheduled into its grace, has failed once already.
    possible = sum(story.given_back > 0 and story.was_moved for story in accepted)
    tried = sum(story.tried for story in accepted)
    assert tried - possible <= s.lateness.count <= tried
    busy = sum(story.busy for story in pending)
    assert busy == sum(story.busy for story in world.stories.values())
    assert s.sending >= busy
    waits = world.part.batch is not None or world.part.hand_back in ("fails twice", "throttled")
    if world.is_plain and not waits:  # for the hook of another, or for the next try
        assert s.sending == busy


def check_order(pending: Sequence[Story]) -> None:
    """A snapshot is in due order; a retry stands where its next send is."""
    dues = [story.due for story in pending if story.is_on_time]
    assert dues == sorted(dues)


def check_shut(world: World) -> None:
    """So many failures in a row, of different messages, have shut the sends of their key."""
    for key, row in world.real.rows.items():
        if key not in world.real.shut and not world.is_over and world.stopped is None:
            assert row.count < world.probe.failures, "it should be shut"


def check_wake_ups(world: World, s: Statistics, pending: Sequence[Story]) -> None:
    """No worker sleeps while something is due, and nothing is forgotten."""
    if world.paused or world.is_over or world.stopped is not None or s.workers_busy >= s.workers:
        return
    _check_probes(world, pending)
    now, keys = trio.current_time(), {world.key_of(story) for story in pending}
    # What is due of others waits for a probe, or for what the limit owes it.
    free = {key for key in keys if not world.is_limited or _is_free(world.limit_of(key))}
    free -= world.real.shut
    # With keys a batch waits for its company in the schedule, and not with a worker.
    company = world.part.batch[1] if world.part.batch is not None and world.part.keys is not None else 0.0
    if free == keys and not company:
        assert s.next_due_in is None or s.next_due_in > 0, "idle workers leave a due message waiting"
    if s.workers_busy == 0:
        for story in pending:
            if story.is_on_time and not story.busy and story.due < world.deadline:
                is_free = world.key_of(story) in free
                assert story.due + company > now or not is_free, "a due message is forgotten"


def _check_probes(world: World, pending: Sequence[Story]) -> None:
    """While a key is shut one message is tried as soon as that may be, if there is one."""
    if world.is_limited or world.promises.journal is not None:
        return
    now, real = trio.current_time(), world.real
    for key in real.shut:
        if now > real.next_probe[key][1] and not real.is_tried(key):
            for story in pending:
                if world.key_of(story) == key and story.is_on_time and not story.busy:
                    assert story.due > now or story.due >= world.deadline, "none is tried"


def _is_free(limit: Limit) -> bool:
    """Whether it lets a message go that it has been asked for."""
    return not limit.limits if limit.adapts else limit.available >= 0


def check_given_away(world: World, pending: Sequence[Story]) -> None:
    """What lies beyond the grace of a drain is handed back at once, as many at a time as may be."""
    part = world.part
    if part.hand_back is None or world.deadline == math.inf or world.is_over or world.stopped is not None:
        return
    if part.fallback is None and not world.is_limited and world.real.giving < HAND_BACKS_IN_FLIGHT:
        for story in pending:
            beyond = story.is_on_time and story.due >= world.deadline
            assert not beyond or story.busy or not story.is_to_be_given, "nobody hands it back"


def check_waiting(world: World, s: Statistics) -> None:
    """Puts wait only where there is no room, and get it in their order."""
    publishing = sum(story.publishing for story in world.stories.values())
    assert s.committing == 0
    assert len(world.calls) <= s.puts_waiting <= len(world.calls) + publishing, (len(world.calls), s)
    if world.calls and not publishing:
        serial, (story, _) = next(iter(world.calls.items()))
        assert serial > world.last_admitted, "a later call was given room first"
        full = s.capacity_bytes is not None and s.pending_bytes + story.size > s.capacity_bytes
        assert s.pending >= s.capacity or full, "there is room, and a put waits"


def check_limit(world: World) -> None:
    """No more goes than the limit allows: since the beginning, and over any time but for what was given back.

    Who gives its tokens back, cut off or paused while it waits for them, leaves the place of others behind
    it where it is: then whoever comes next may go together with them.
    """
    if world.part.adaptive:
        for key, when in world.real.throttled.items():
            limit = world.limit_of(key)
            assert isinstance(limit, Finding)
            assert limit.refused_at >= when or world.stopped is not None, "nobody told it of a refusal"
    if world.part.limit is None:
        return
    rate, burst = world.part.limit
    given_back = _MOST_WORKERS * (1 if world.part.batch is None else world.part.batch[0])
    for begun in world.real.begun.values():
        total = sum(count for _, count in begun)
        sent = 0
        for when, count in begun:
            assert total - sent <= burst + given_back + rate * (begun[-1][0] - when) + 1e-6, (
                "a burst over the limit"
            )
            sent += count
            assert sent <= burst + rate * when + 1e-6, "faster than the limit"


def check_tokens(world: World) -> None:
    """No token of the limit was taken for nothing: sends and hand-backs have left as many as there are."""
    if world.part.adaptive:
        keys = {world.key_of(story) for story in world.stories.values()}
        for limit in map(world.limit_of, keys):
            assert isinstance(limit, Finding)
            assert limit.taken <= limit.calls + 1e-6, "a token was taken for nothing"
    if world.part.limit is None:
        return
    rate, burst = world.part.limit
    for key, begun in world.real.begun.items():
        tokens, at = burst, 0.0
        for when, count in [*begun, (trio.current_time(), 0)]:
            tokens, at = min(burst, tokens + (when - at) * rate) - count, when
        assert world.limit_of(key).available >= tokens - 1e-6, "a token was taken for nothing"


def check_left(world: World) -> None:
    """When the block has been left nothing runs, and what is unfinished is pending, or in the journal."""
    s = conserve(world.queue)
    assert s.closed
    assert (s.sending, s.puts_waiting, s.workers_busy, s.committing) == (0, 0, 0, 0)
    assert not world.calls
    assert not any(story.busy for story in world.stories.values())
    assert s.at_risk == s.pending
    check_tokens(world)
    check_ends(world, s, [world.story(message) for message in world.queue.messages()])
    journal = world.promises.journal
    if journal is not None and journal.fault is None:
        assert s.pending == 0, "the journal works, and does not have it"


def check_copies(world: World, copies: Sequence[Copy]) -> None:
    """Nothing promised is missing from a copy, nothing finished or refused is in one, and none is a half."""
    for copy in copies:
        found = {record.payload: record for record in copy.records}
        assert len(found) == len(copy.records)
        assert set(found) <= set(world.stories)
        for story in world.stories.values():
            story.check_copy(found.get(story.payload), copy)
        assert not copy.instead or copy.records in copy.instead, "half of a commit"


def check_came_back(world: World) -> None:
    """What the journal held is pending again, with the time that was left."""
    pending = [story for story in world.stories.values() if story.accepted]
    s = conserve(world.queue)
    assert (s.recovered, s.accepted) == (len(pending), len(pending))
    if trio.current_time() == 0 and not s.sent and not s.dead and s.pending == len(pending):
        found = sorted((message.execute_at, message.id) for message in world.queue.messages())
        assert found == sorted((story.due, story.id) for story in pending)
