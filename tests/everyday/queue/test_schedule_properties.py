"""The schedule against a model that is a sorted list, on generated lists of operations."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdelay.entry import Body, Entry, execute_at_of, failures_of
from localdelay.queue import lanes as piles
from localdelay.queue import schedule as schedules
from localdelay.queue.schedule import Schedule

Operation: TypeAlias = tuple[Any, ...]


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """Blocks of a few slots, so that a short list of operations goes through all that happens to one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piles, "BLOCK", 4)
        patch.setattr(schedules, "INBOX", 4)
        yield


# Few distinct times, so that ties are common; more of them than there are lanes.
_times = st.integers(0, 12).map(lambda quarter: quarter / 4)
_picks = st.integers(0, 10**6)
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _times, st.sampled_from(["plain", "details"])),
        st.tuples(st.just("put"), _times, st.just("plain")),
        st.tuples(st.just("put many"), st.lists(_times, min_size=1, max_size=4), st.integers(2, 120)),
        st.tuples(st.just("take"), _times, st.integers(1, 30)),
        st.tuples(st.just("take and put back"), _times, _times, st.booleans()),
        st.tuples(st.just("cancel"), _picks),
        st.tuples(st.just("cancel many"), st.integers(1, 3)),
        st.tuples(st.just("lend"), _picks),
        st.tuples(st.just("lend many"), st.integers(1, 3)),
        st.tuples(st.just("bring back"), st.integers(1, 3)),
        st.tuples(st.just("take later and keep"), st.sampled_from(["keep", "put back", "take"]), _times),
        st.tuples(st.just("horizon"), _times),
    ),
    max_size=40,
)


class Model:
    """A schedule and, beside it, plain lists of what it should hold."""

    def __init__(self, *, indexed: bool) -> None:
        self.schedule = Schedule(indexed=indexed)
        self.indexed = indexed
        self.near: list[Entry] = []
        self.later: list[Entry] = []
        self.aside: list[Entry] = []
        self.lent: list[Entry] = []
        self.horizon = math.inf
        self.number = 0

    def put(self, due: float, kind: str = "plain") -> None:
        if self.horizon < math.inf:
            return  # a queue that drains takes nothing new
        self.number += 1
        payload = b"%d" % self.number
        body: Body = payload if kind == "plain" else (payload, {"a": "b"}, None, 1, 0, due, False, None, None)
        self.schedule.put((due, self.number, body))
        self.near.append((due, self.number, body))

    def take(self, now: float, most: int = 1) -> list[Entry]:
        self.near.sort()
        expected = [entry for entry in self.near if entry[0] <= now]
        due = self.schedule.due(now, most)
        assert due == expected[: len(due)]
        assert bool(due) == bool(expected)
        assert len(due) <= most
        taken = due[: (len(due) + 1) // 2]  # the rest is left where it is
        if taken:
            self.schedule.take(taken)
            del self.near[: len(taken)]
        return taken

    def put_back(self, entry: Entry, wait: float, *, failed: bool) -> None:
        due, number, body = entry
        if failed:
            payload = body if isinstance(body, bytes) else body[0]
            body = (payload, None, None, 2, 1, execute_at_of(due, body), False, None, None)
            due += wait
        self.schedule.put_back((due, number, body))
        (self.later if due >= self.horizon else self.near).append((due, number, body))

    def cancel(self, pick: int) -> None:
        if not self.indexed:
            with pytest.raises(RuntimeError, match="cancellable"):
                self.schedule.lend(pick)
            return
        number = pick % (self.number + 2)  # also some that were never there, or are gone
        found = [entry for entry in self.everything if entry[1] == number]
        assert self.schedule.lend(number) == (found[0][2] if found else None)
        self.schedule.forget(number)
        self.lent = [entry for entry in self.lent if entry[1] != number]
        for entry in found:
            for place in (self.near, self.later, self.aside):
                if entry in place:
                    place.remove(entry)

    def lend(self, number: int) -> None:
        for place in (self.near, self.later):
            for entry in [entry for entry in place if self.indexed and entry[1] == number]:
                assert self.schedule.lend(number) == entry[2]
                place.remove(entry)
                self.lent.append(entry)

    def bring_back(self, every: int) -> None:
        for entry in self.lent[::every]:
            self.lent.remove(entry)
            self.put_back(entry, 0.0, failed=False)

    def take_later(self, then: str, wait: float) -> None:
        self.later.sort(key=lambda entry: entry[:2])
        expected = self.later.pop(0) if self.later else None
        entry = self.schedule.take_later(math.inf)
        assert entry == expected
        if entry is None or then == "take":
            return
        if then == "keep":
            self.schedule.set_aside(entry)
            self.aside.append(entry)
        else:
            self.put_back(entry, wait, failed=bool(wait))

    def set_horizon(self, horizon: float) -> None:
        if self.horizon < math.inf:
            return  # a queue drains once
        self.schedule.set_horizon(horizon)
        self.horizon = horizon
        self.later = sorted(entry for entry in self.near if entry[0] >= horizon)
        self.near = [entry for entry in self.near if entry[0] < horizon]

    @property
    def everything(self) -> list[Entry]:
        return sorted([*self.near, *self.later, *self.aside])

    def apply(self, operation: Operation) -> None:
        name, *rest = operation
        if name == "put":
            self.put(*rest)
        elif name == "put many":
            times, count = rest
            for index in range(count):
                self.put(times[index % len(times)] + index // 16)
        elif name == "take":
            self.take(*rest)
        elif name == "take and put back":
            now, wait, failed = rest
            for entry in self.take(now):
                self.put_back(entry, wait, failed=failed)
        elif name == "cancel":
            self.cancel(rest[0])
        elif name == "cancel many":
            for entry in self.everything[:: rest[0]]:
                self.cancel(entry[1])
        elif name == "lend":
            self.lend(rest[0] % (self.number + 2))
        elif name == "lend many":
            for entry in self.everything[:: rest[0]]:
                self.lend(entry[1])
        elif name == "bring back":
            self.bring_back(rest[0])
        elif name == "take later and keep":
            self.take_later(*rest)
        else:
            self.set_horizon(rest[0])

    def check(self) -> None:
        schedule, everything = self.schedule, self.everything
        retries = [entry for entry in everything if failures_of(entry[2])]
        assert schedule.entries() == everything
        assert schedule.entries() == everything, "looking has changed it"
        assert schedule.waiting == len(everything) - len(retries)
        assert schedule.retrying == len(retries)
        assert schedule.next_due() == min((due for due, _, _ in self.near), default=math.inf)
        assert schedule.is_empty == (not self.near)
        count, last = schedule.near()
        assert count == len(self.near)
        assert last >= max((due for due, _, _ in self.near), default=-math.inf)
        assert last == max((due for due, _, _ in self.near), default=-math.inf) or schedule._living.dead
        assert schedule.has_later(1e9) == bool(self.later)
        oldest = min((execute_at_of(due, body) for due, _, body in everything), default=math.inf)
        assert schedule.oldest() == oldest
        for number in (0, 1, self.number):
            found = [body for _, key, body in everything if key == number]
            assert schedule.find(number) == (found[0] if found else None)
        # What is left of cancelled messages is bounded: when the dead outnumber the living they are swept
        # away, a block at each cancelling.
        assert len(list(schedule._slots())) <= (2 * len(everything) + 70) * 4 / 3 + 8


@pytest.mark.parametrize("indexed", [True, False])
@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(operations=_operations)
def test_the_schedule_does_what_a_sorted_list_does(indexed: bool, operations: list[Operation]) -> None:
    """Whatever the order of the operations, all that comes out and all that is counted is the model's."""
    model = Model(indexed=indexed)
    for operation in operations:
        model.apply(operation)
        model.check()
    while model.take(math.inf, 7):
        model.check()
    while model.later:
        model.take_later("take", 0.0)
    model.check()


@pytest.mark.parametrize("indexed", [True, False])
@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(operations=_operations)
def test_a_schedule_that_was_cleared_is_empty(indexed: bool, operations: list[Operation]) -> None:
    """Whatever was in it; and it can be used again."""
    model = Model(indexed=indexed)
    for operation in operations:
        model.apply(operation)
    model.schedule.clear()
    model.near, model.later, model.aside = [], [], []
    model.check()
    model.schedule.set_aside((1.0, 1, b"x"))
    model.aside = [(1.0, 1, b"x")]
    model.check()


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(dues=st.lists(st.floats(0, 1e6), max_size=300), most=st.integers(1, 100), indexed=st.booleans())
def test_any_due_times_come_out_in_order(dues: list[float], most: int, indexed: bool) -> None:
    """Whatever fits no lane goes through the heap, and the order is exact."""
    schedule = Schedule(indexed=indexed)
    for number, due in enumerate(dues):
        schedule.put((due, number, b""))
    taken: list[Entry] = []
    while due := schedule.due(math.inf, most):
        schedule.take(due)
        taken += due
    assert taken == sorted((due, number, b"") for number, due in enumerate(dues))


@pytest.mark.parametrize("indexed", [True, False])
@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1000)), max_size=120, unique_by=lambda e: e[1]
    ),
    most=st.integers(1, 30),
    now=st.integers(0, 5),
)
def test_numbers_in_any_order_come_out_once(
    indexed: bool, entries: list[tuple[int, int]], most: int, now: int
) -> None:
    """Many are due at once, and a later number may come first: in due order, and each number once."""
    schedule = Schedule(indexed=indexed)
    for due, number in entries:
        schedule.put((float(due), number, b"%d" % number))
    taken: list[Entry] = []
    for until in (float(now), math.inf):
        while not schedule.is_empty and schedule.next_due() <= until:
            found = schedule.due(until, most)
            assert 0 < len(found) <= most
            found = found[: (len(found) + 1) // 2]
            schedule.take(found)
            taken += found
            assert len(taken) <= len(entries)
    assert [due for due, _, _ in taken] == sorted(due for due, _ in entries)
    assert sorted(taken) == sorted((float(due), number, b"%d" % number) for due, number in entries)
    assert schedule.entries() == []
    assert (schedule.waiting, schedule.taken) == (0, len(entries))


@pytest.mark.parametrize("lent", [[2, 6], [0, 1], list(range(9)), list(range(0, 200, 2)), list(range(150))])
@pytest.mark.parametrize("look", [True, False])
def test_what_was_lent_comes_back_once(lent: list[int], look: bool) -> None:
    """It is where it was, whether its old place is still there, was passed meanwhile, or was swept away."""
    schedule = Schedule(indexed=True)
    entries: list[Entry] = [(float(number), number, b"%d" % number) for number in range(200)]
    schedule.put_all(entries)
    for number in lent:
        assert schedule.lend(number) == entries[number][2]
    if look:  # which passes what is gone
        assert schedule.next_due() == min(set(range(200)) - set(lent))
    assert schedule.entries() == [entry for entry in entries if entry[1] not in lent]
    for number in lent[1:]:
        schedule.put_back(entries[number])
    schedule.forget(lent[0])
    del entries[lent[0]]
    assert schedule.entries() == entries
    taken: list[Entry] = []
    while due := schedule.due(math.inf, 7):
        schedule.take(due)
        taken += due
    assert taken == entries
    assert (schedule.waiting, schedule.retrying, schedule._living.dead) == (0, 0, 0)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("ways", [("put", "put"), ("put_back", "put"), ("put", "put_back")])
@pytest.mark.parametrize("order", [(1, 3, 5, 7), (5, 1, 7, 3)])
def test_what_comes_in_has_its_place_among_what_was_seen_already(
    order: tuple[int, ...], ways: tuple[str, str], indexed: bool
) -> None:
    """A look has brought all that is due to the front, and less was taken: what is due in between is next."""
    schedule = Schedule(indexed=indexed)
    for number in (0, 2, 4, 6):
        getattr(schedule, ways[0])((float(number), number, b""))
    schedule.take(schedule.due(9.0, 1))
    for number in order:
        getattr(schedule, ways[1])((float(number), number, b""))
    taken: list[Entry] = []
    while due := schedule.due(9.0, 3):
        schedule.take(due)
        taken += due
    assert [number for _, number, _ in taken] == [1, 2, 3, 4, 5, 6, 7]


class _Headers(dict[str, str]):
    """A dict that can be referred to weakly."""


def _with(headers: _Headers) -> Body:
    return (b"payload", headers, None, 1, 0, 1e9, False, None, None)


@pytest.mark.parametrize("place", ["lane", "heap", "later"])
def test_a_cancelled_message_frees_its_body_at_once(place: str) -> None:
    """Nothing but a pair of numbers is left of it, wherever it waited."""
    schedule = Schedule(indexed=True)
    put: Callable[[Entry], None] = schedule.put if place == "lane" else schedule.put_back
    headers = _Headers()
    gone = weakref.ref(headers)
    put((1e9, 1, _with(headers)))
    if place == "later":
        schedule.set_horizon(1.0)
    del headers
    assert gone() is not None
    schedule.lend(1)
    schedule.forget(1)
    gc.collect()
    assert gone() is None


def test_a_lane_whose_messages_were_all_cancelled_serves_again() -> None:
    """Cancelled messages with late due times do not drive what comes after them into the heap."""
    schedule = Schedule(indexed=True)
    numbers = itertools.count()
    for due in range(8, 0, -1):
        cancelled = list(itertools.islice(numbers, 200))
        for number in cancelled:
            schedule.put((due * 1e6, number, b""))
        for number in cancelled:
            schedule.lend(number)
            schedule.forget(number)
    for number in itertools.islice(numbers, 100):
        schedule.put((1.0, number, b""))
    assert not schedule._near.heap
