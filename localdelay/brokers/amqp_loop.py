"""pika's loop on Trio's, without a thread; and what pika logs there."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import select
from collections.abc import Callable, Iterator
from typing import Any

import trio
from pika.adapters.select_connection import EPollPoller, IOLoop, KQueuePoller

logger = logging.getLogger("localdelay.brokers.amqp")


class Loop(IOLoop):  # type: ignore[misc]  # pika has no types
    """pika's loop, for a Trio task that waits in its place.

    It waits until the descriptor of pika's epoll, or kqueue, is readable, and has pika do what there is to
    do without waiting. A thread would cost two hops a message: with one message at a time under way it
    carries two thirds of what pika alone does, and this more than four fifths.
    """

    def __init__(self) -> None:
        super().__init__()
        self._timer_added = trio.Event()
        self.activate_poller()

    @staticmethod
    def _get_poller(*arguments: Any, **named: Any) -> Any:
        # Whatever SELECT_TYPE says: the other pollers have no descriptor.
        return (EPollPoller if hasattr(select, "epoll") else KQueuePoller)(*arguments, **named)

    def fileno(self) -> int:
        """The descriptor that is readable when there is something to do."""
        poller = self._poller._poll if hasattr(select, "epoll") else self._poller._kqueue  # noqa: SLF001
        return int(poller.fileno())

    async def wait_for_timer(self) -> None:
        """Wait until one of its timers has run out."""
        await trio.lowlevel.checkpoint()
        while (remaining := super()._get_remaining_interval()) != 0:
            self._timer_added = trio.Event()
            with trio.move_on_after(math.inf if remaining is None else remaining):
                await self._timer_added.wait()

    def call_later(self, delay: float, callback: Callable[[], object]) -> object:
        """Override: a timer of pika's."""
        self._timer_added.set()
        return super().call_later(delay, callback)

    def turn(self) -> None:
        """Do all that there is to do."""
        self.poll()
        self.process_timeouts()

    def _get_remaining_interval(self) -> float:
        return 0.0  # it never waits itself


_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("localdelay.brokers.amqp", default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that pika logs inside this block is more than debugging; in tasks begun there neither."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class _Quiet(logging.Filter):
    """Takes what pika logs of these connections over into our own log, as debugging.

    They get over what pika calls an error, and who publishes gets an exception. Other users of pika in the
    same program are not concerned.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or not _quiet.get():
            return True
        logger.debug("%s: %s", record.name, record.getMessage())
        return False


_filter = _Quiet()
for _name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "pika"]:
    logging.getLogger(_name).addFilter(_filter)
