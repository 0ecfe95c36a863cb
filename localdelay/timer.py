"""Waiting until an instant on Trio's clock, or until somebody calls."""

from __future__ import annotations

import trio


class TrioTimer:
    """Trio's own deadlines: exact on a virtual clock, good to a millisecond on the system's.

    One task waits at a time. That it woke says nothing: what is due is decided by `trio.current_time()`.
    """

    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None

    async def sleep_until(self, when: float) -> None:
        """Return at `when` (seconds on Trio's clock; may be infinite), or earlier if `wake` is called."""
        with trio.CancelScope(deadline=when) as self._scope:
            await trio.sleep_forever()

    def wake(self) -> None:
        """End the wait of the sleeping task, if there is one."""
        if self._scope is not None:
            self._scope.cancel()
