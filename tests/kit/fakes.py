"""What several test modules publish through."""

from __future__ import annotations

import trio

from localdelay import Message


class Primary:
    """A delayed publish that raises what it is told to, and takes the rest."""

    def __init__(self, *errors: Exception | None, duration: float = 0.0) -> None:
        self._errors = list(errors)
        self._duration = duration
        self.calls: list[tuple[float, Message, float]] = []
        """(when it was called, message, delay) of every call, in order."""

    async def __call__(self, message: Message, delay: float) -> None:
        self.calls.append((trio.current_time(), message, delay))
        await trio.sleep(self._duration)
        error = self._errors.pop(0) if len(self._errors) > 1 else self._errors[0] if self._errors else None
        if error is not None:
            raise error
