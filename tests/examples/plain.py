"""Plain functions, as views and commands of Django's call them: `publish_delayed(topic, body, delay)`.

The queue is opened by the first call in each process, so it does not matter who forks, and it drains when the
process exits. `python plain.py ORDER...` takes some orders.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import flask_app

import localdelay
from localdelay import threads

_lock = threading.Lock()
_of: tuple[int, threads.Fallback] | None = None


def fallback() -> threads.Fallback:
    """The fallback of this process."""
    global _of
    with _lock:
        if _of is None or _of[0] != os.getpid():  # a child's first call: what it inherited is its parent's
            queue = threads.start_delay_queue(send, capacity=24_000, workers=20, drain_on_exit=20.0)
            _of = os.getpid(), threads.Fallback(flask_app.publish_delayed, queue)
        return _of[1]


def publish_delayed(topic: str, body: bytes, delay: float) -> str:
    """Publish to a topic after so many seconds; the message's id."""
    return fallback().publish(body, delay=delay, headers={"topic": topic}).message.id


def send(message: localdelay.Message) -> None:
    """Publish what is due; `message.headers["topic"]` says where to, were there more than one."""
    flask_app.send(message)


def delayed(topic: str, delay: float) -> Callable[[Callable[..., bytes]], Callable[..., str]]:
    """A decorator: what the function returns is published after so many seconds."""

    def decorate(function: Callable[..., bytes]) -> Callable[..., str]:
        @functools.wraps(function)
        def publish(*args: Any, **kwargs: Any) -> str:
            return publish_delayed(topic, function(*args, **kwargs), delay)

        return publish

    return decorate


@delayed("orders", delay=1.0)
def close_order(order: int) -> bytes:
    """A function of yours."""
    return b"close order %d if it is unpaid" % order


if __name__ == "__main__":
    for number in sys.argv[1:]:
        print(close_order(int(number)), flush=True)
