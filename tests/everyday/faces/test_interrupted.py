"""What a handler of signals, or a finalizer, calls in the midst of the same in its own thread."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from localdelay import AdaptiveLimit, Message, Route, Throttled, threads
from localdelay.portal.blocking import Leaving


def test_a_publish_in_the_midst_of_a_publish_ends() -> None:
    """Whatever lock that holds: it can be taken twice, or the thread would wait for itself for ever."""
    limit = AdaptiveLimit()
    routes: list[Route] = []

    def publish_delayed(message: Message, delay: float) -> str:
        if message.payload == b"refused":
            raise Throttled
        return "handle"

    def key(message: Message) -> str:
        return "a"

    with threads.open_delay_queue(lambda _: None, capacity=99, workers=1, limit=limit) as queue:
        plain = threads.Fallback(publish_delayed, queue, cancel_delayed=lambda *_: None)
        keyed = threads.Fallback(publish_delayed, queue, key=key, limit=AdaptiveLimit())
        keyed.publish(b"", delay=300.0)
        router = plain._router
        assert router.gates.only is not None
        assert router.handles is not None
        locks = [
            queue.remote.intake.lock,
            router.lock,
            router.gates.only._lock,
            router.handles._lock,
            limit._lock,
            keyed._router.lock,
            keyed._router.gates.of(Message(0, b"", 0.0))._lock,
        ]

        def interrupted() -> None:
            with ExitStack() as held:
                for lock in locks:
                    held.enter_context(lock)
                for fallback in (plain, keyed):
                    payloads = (b"taken", b"refused", b"limited")
                    routes.extend(fallback.publish(payload, delay=300.0).route for payload in payloads)

        thread = threading.Thread(target=interrupted, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        queue.drain(0.0)
    assert routes == [Route.PRIMARY, Route.LOCAL, Route.LOCAL] * 2


def test_a_call_that_is_left_in_the_midst_of_another_ones_leaving_is_left() -> None:
    """Likewise."""
    leaving, let_go = Leaving("publish_delayed", 0.01), threading.Event()
    told: list[str] = []

    def interrupted() -> None:
        with leaving._lock:
            try:
                leaving.call(let_go.wait, 20)
            except TimeoutError as error:
                told.append(str(error))

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(20)
    let_go.set()
    assert told == ["publish_delayed took longer than 0.01 s"]
