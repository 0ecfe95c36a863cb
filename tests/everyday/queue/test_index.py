"""The index of what waits, beside a dict."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from localdelay import open_delay_queue
from localdelay.entry import Body
from localdelay.queue.bodies import Index
from localdelay.testing import RecordingSender

_numbers = st.integers(0, 200)
_runs = st.builds(lambda first, count: list(range(first, first + count)), _numbers, st.integers(1, 100))
_some = st.lists(_numbers, min_size=1, max_size=20, unique=True)
_operations = st.lists(
    st.tuples(st.sampled_from(["put all", "get all", "drop all", "pop"]), st.one_of(_runs, _some)),
    max_size=30,
)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(operations=_operations)
def test_the_index_does_what_a_dict_does(operations: list[tuple[str, list[int]]]) -> None:
    """Numbers in a row, across pages and in any order; and nothing is left of a page that is empty."""
    index = Index()
    model: dict[int, Body] = {}
    for step, (name, numbers) in enumerate(operations):
        if name == "put all":
            fresh = [number for number in numbers if number not in model]
            if fresh:
                bodies: list[Body] = [b"%d in step %d" % (number, step) for number in fresh]
                index.put_all(fresh, bodies)
                model.update(zip(fresh, bodies, strict=True))
        elif name == "get all":
            assert index.get_all(numbers) == [model.get(number) for number in numbers]
        elif name == "drop all":
            there = [number for number in numbers if number in model]
            if there:
                index.drop_all(there)
                for number in there:
                    del model[number]
        else:
            assert index.pop(numbers[0]) == model.pop(numbers[0], None)
        assert all(index.get(number) == model.get(number) for number in range(310))
        assert sum(page[-1] for page in index._pages.values()) == len(model)
        assert all(page[-1] == sum(body is not None for body in page[:-1]) for page in index._pages.values())
        assert all(page[-1] for page in index._pages.values())


async def test_queues_that_share_a_process_have_numbers_close_together(autojump_clock: Any) -> None:
    """However many queues there are, and however their puts alternate, pages are full."""
    async with AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(open_delay_queue(RecordingSender(), capacity=1000, workers=1))
            for _ in range(10)
        ]
        for _ in range(320):
            for queue in queues:
                queue.put_nowait(b"", delay=1)
        for queue in queues:
            assert queue.statistics().pending == 320
            index = queue._schedule._living.index
            assert index is not None
            assert len(index._pages) == 10
        ids = [message.id for queue in queues for message in queue.messages()]
        assert len(set(ids)) == 3200
