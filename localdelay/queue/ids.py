"""The ids of pending messages: those that callers chose, and those that are numbers underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from localdelay import arguments
from localdelay.entry import CHOSEN_ID, Body, Entry, chosen_id
from localdelay.message import number_of


class Ids:
    """Finds the number of a pending message by its id.

    Most messages have no id but their number, so only the ids that callers chose are kept. `find` gives
    the body of the pending message with a number, wherever it is.
    """

    def __init__(self, find: Callable[[int], Body | None]) -> None:
        self._find = find
        self._chosen: dict[str, int] = {}

    def number(self, id: str) -> int | None:
        """The number of the pending message with this id, or None. Raises if it cannot be an id."""
        arguments.check_id(id)
        if id in self._chosen:
            return self._chosen[id]
        number = number_of(id)
        body = None if number is None else self._find(number)
        return None if body is None or chosen_id(body) is not None else number

    def is_chosen(self, id: str) -> bool:
        """Whether a caller chose this id for a message that is pending. In any thread."""
        return id in self._chosen

    def take(self, number: int, body: Body) -> None:
        """Keep the id that was chosen for this message, if there is one, until `free`."""
        chosen = chosen_id(body)
        if chosen is not None:
            self._chosen[chosen] = number

    def take_all(self, entries: Sequence[Entry]) -> None:
        """The same for many, which all have an id that was chosen."""
        bodies = map(itemgetter(2), entries)
        self._chosen.update(zip(map(itemgetter(CHOSEN_ID), bodies), map(itemgetter(1), entries), strict=True))

    def free_all(self, entries: Iterable[Entry]) -> None:
        """These messages are finished."""
        if self._chosen:
            for _, _, body in entries:
                self.free(body)

    def clear(self) -> None:
        """No message is pending any more."""
        self._chosen.clear()

    def free(self, body: Body) -> None:
        """The message is finished: its id may be used again."""
        chosen = chosen_id(body)
        if chosen is not None:
            self._chosen.pop(chosen, None)  # a journal may bring back two with one id
