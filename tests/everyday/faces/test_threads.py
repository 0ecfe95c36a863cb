"""The queue and the fallback in a threaded program, on the real clock: no promise depends on it."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
import trio.lowlevel

from localdelay import (
    Message,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimit,
    RetryPolicy,
    threads,
)
from tests.kit.conserving import conserved
from tests.kit.waiting import until


class Sent:
    """A blocking send that keeps what it gets."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.messages: list[Message] = []
        self.threads: set[str] = set()
        self._hold = hold

    def __call__(self, message: Message) -> None:
        if self._hold is not None:
            self._hold.wait(20)
        self.messages.append(message)
        self.threads.add(threading.current_thread().name)

    def ids(self) -> Counter[str]:
        return Counter(message.id for message in self.messages)


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_an_async_send_runs_on_the_loop() -> None:
    """It is a Trio function, in the queue's own thread."""
    seen: list[str] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(threading.current_thread().name)

    with threads.open_delay_queue(send, capacity=5, workers=1) as queue:
        queue.put_nowait(b"", delay=0.0)
    assert seen == ["localdelay"]


def test_eight_threads_and_eighty_thousand_messages() -> None:
    """Whatever the threads do to one another, each message that was accepted is sent once."""
    each = 10_000
    counts: Counter[int] = Counter()

    async def send_batch(messages: list[Message]) -> None:
        counts.update(int(message.payload) for message in messages)

    def produce(first: int) -> None:
        for number in range(first, first + each):
            queue.put(b"%d" % number, delay=(number % 100) / 1000)

    with threads.open_delay_queue(send_batch=send_batch, capacity=20_000, workers=4) as queue:
        producers = [in_thread(lambda first=i * each: produce(first)) for i in range(8)]
        while any(producer.is_alive() for producer in producers):
            assert conserved(queue.statistics()).pending <= 20_000
            threading.Event().wait(0.05)
    assert conserved(queue.statistics()).sent == 8 * each
    assert len(counts) == 8 * each
    assert set(counts.values()) == {1}


def test_a_put_may_wait_so_long_and_no_longer() -> None:
    """Where no room comes meanwhile it raises QueueFull, at once where it must not wait at all."""
    release = threading.Event()
    with threads.open_delay_queue(Sent(release), capacity=1, workers=2) as queue:
        queue.put_nowait(b"", delay=0.0)
        for timeout, said in ((0, "of 1 messages"), (0.05, r"no room within 0\.05 s")):
            with pytest.raises(QueueFull, match=said):
                queue.put(b"no", delay=0.0, timeout=timeout)
        # More than a thread can wait is no end at all.
        waiting = in_thread(lambda: queue.put(b"", delay=0.0, timeout=1e10))
        until(lambda: queue.statistics().puts_waiting == 1)
        release.set()
        waiting.join(20)
    assert conserved(queue.statistics()).accepted == 2


def test_a_drain_that_meets_the_end_of_the_block_ends() -> None:
    """Whichever comes first: neither hangs, and the thread does not crash."""
    for _ in range(60):
        with threads.open_delay_queue(Sent(), capacity=10, workers=1) as queue:
            draining = in_thread(functools.partial(drain, queue))
        draining.join(20)
        assert not draining.is_alive()


def drain(queue: threads.DelayQueue) -> None:
    with contextlib.suppress(QueueClosed):
        queue.drain(grace=1.0)


def test_ctrl_c_at_the_end_of_a_block_ends_the_queue_at_once() -> None:
    """It does not wait until all that is pending is sent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.get_ident()
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            threads.open_delay_queue(Sent(), capacity=10, workers=1) as queue,
        ):
            queue.put(b"", delay=3600.0)
            threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert conserved(queue.statistics()).pending == 1


def test_a_drain_is_cut_short_in_the_midst_of_a_put() -> None:
    """As by a handler of signals, which runs in a thread that may hold any lock."""
    with threads.open_delay_queue(print, capacity=10, workers=1) as queue:

        def put() -> None:
            with queue.remote.intake.lock:
                queue.cut_short()

        thread = in_thread(put)
        thread.join(10)
        assert not thread.is_alive()


def test_a_drain_from_inside_a_send_says_so() -> None:
    """It would wait for itself."""
    errors: list[str] = []

    def send(message: Message) -> None:
        try:
            queue.drain()
        except RuntimeError as error:
            errors.append(str(error))

    with threads.open_delay_queue(send, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=0.0)
    assert errors == ["drain was called from inside a send or a hand-back, for which it would wait"]


def test_sends_that_hang_cost_other_messages_no_attempt() -> None:
    """While every thread is held by a call that was given up, the rest waits for one."""
    hold = threading.Event()
    sent: list[bytes] = []

    def send(message: Message) -> None:
        if message.payload == b"hangs":
            hold.wait(20)
        sent.append(message.payload)

    with threads.open_delay_queue(
        send,
        capacity=20,
        workers=2,
        send_timeout=0.05,
        retry=RetryPolicy(attempts=2, wait_initial=0.02, wait_jitter=0.0, wait_max=0.05),
    ) as queue:
        for payload in (b"hangs", b"hangs", b"1", b"2", b"3"):
            queue.put_nowait(payload, delay=0.0)
        until(lambda: queue.statistics().failures == 2)
        for _ in range(3):
            statistics = conserved(queue.statistics())
            assert (statistics.waiting, statistics.sending, statistics.retrying) == (3, 0, 2)
            threading.Event().wait(0.03)
        hold.set()
    assert {b"1", b"2", b"3"} <= set(sent)
    assert conserved(queue.statistics()).failures == 2


def test_what_only_threads_are_asked_is_checked_by_name() -> None:
    """As in the contract what all faces are asked."""
    with pytest.raises(ValueError, match="drain_on_exit"):
        with threads.open_delay_queue(Sent(), capacity=1, workers=1, drain_on_exit=-1):
            pass
    with threads.open_delay_queue(Sent(), capacity=1, workers=1) as queue:
        with pytest.raises(ValueError, match="timeout"):
            queue.put(b"", delay=1.0, timeout=-1)


def test_on_its_own_loop_it_says_so_instead_of_hanging() -> None:
    """An async send that asks the queue for something, or for room in it, would wait for itself."""
    errors: list[Exception] = []

    async def send(message: Message) -> None:
        for call in (queue.statistics, queue.flush, queue.drain, lambda: queue.put(b"", delay=0.0)):
            try:
                call()
            except Exception as error:  # noqa: BLE001 (looked at below)
                errors.append(error)

    with threads.open_delay_queue(send, capacity=1, workers=1) as queue:
        queue.put_nowait(b"", delay=0.0)
        until(lambda: queue.statistics().sent == 1)
        queue.put_nowait(b"", delay=60.0, id="open still")
        queue.cancel("open still")
    assert [type(error) for error in errors] == [*[RuntimeError] * 3, QueueFull]


def test_a_primary_is_called_in_the_thread_that_publishes() -> None:
    """Where there is no time limit, at which its caller could leave it; an async one would run nowhere."""
    names: list[str] = []

    def primary(message: Message, delay: float) -> None:
        names.append(threading.current_thread().name)

    async def elsewhere(message: Message, delay: float) -> None:
        pass

    with threads.open_delay_queue(Sent(), capacity=1, workers=1) as queue:
        fallback = threads.Fallback(primary, queue, publish_timeout=None)
        in_thread(lambda: fallback.publish(b"", delay=60.0)).join()
        fallback.publish(b"", delay=60.0)
        assert names[1] == "MainThread" != names[0]
        with pytest.raises(TypeError, match="ordinary function"):
            threads.Fallback(elsewhere, queue)


def test_under_gevent_it_says_what_not_to_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own thread can't run on what gevent puts in the place of select, threads and queues."""
    monkey = SimpleNamespace(is_module_patched=lambda name: name == "select")
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with (
        pytest.raises(RuntimeError, match=r"patch_all\(select=False, thread=False, queue=False\)"),
        threads.open_delay_queue(print, capacity=1, workers=1),
    ):
        pass


def test_queues_on_loops_of_their_own_share_a_limit() -> None:
    """Each loop's clock has a zero of its own, and yet no more goes than the limit lets through."""
    limit = RateLimit(20.0, burst=10)
    times: list[float] = []

    def send(message: Message) -> None:
        times.append(time.monotonic())

    with (
        threads.open_delay_queue(send, capacity=20, workers=1, limit=limit) as one,
        threads.open_delay_queue(send, capacity=20, workers=1, limit=limit) as other,
    ):
        for _ in range(20):
            one.put(b"", delay=0.0)
            other.put(b"", delay=0.0)
        until(lambda: len(times) > 20)
        one.drain(0.0)
        other.drain(0.0)
    times.sort()
    assert times[20] - times[0] >= 0.5


def test_a_queue_that_an_error_has_ended_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for its thread: what is put afterwards is refused, and the log says what has happened."""

    class Exits:
        def on_event(self, event: object) -> None:
            sys.exit("enough")

    def send(message: Message) -> None:
        raise PermanentSendError

    queue = threads.start_delay_queue(send, capacity=1, workers=1, listener=Exits())
    queue.put(b"", delay=0.0)
    until(queue.remote.ended.done)
    assert "the queue has ended by an error: SystemExit('enough')" in caplog.messages
    with pytest.raises(QueueClosed):
        queue.put(b"", delay=0.0)
    with pytest.raises(SystemExit):
        queue.close()


def test_an_interrupt_of_the_call_to_the_loop_silences_no_later_one() -> None:
    """Ctrl-C or a time limit may come just when a put wakes the loop: the next put wakes it, for both."""
    sent = Sent()
    with threads.open_delay_queue(sent, capacity=9, workers=1) as queue:
        intake = queue.remote.intake
        post = intake._post
        until(lambda: queue.remote.queue.core.pending.schedule.alarm.until == math.inf)  # the loop sleeps

        def interrupted(_: object) -> None:
            intake._post = post
            raise KeyboardInterrupt

        intake._post = interrupted
        with pytest.raises(KeyboardInterrupt):
            queue.put(b"1", delay=0.0)
        queue.put(b"2", delay=0.0)
        until(lambda: len(sent.messages) == 2)


@pytest.mark.parametrize("heard", [False, True])
def test_an_interrupt_of_a_put_that_waits_for_room_leaves_its_place(*, heard: bool) -> None:
    """Whether or not the loop has heard of it: others find room afterwards, and its id is free."""
    with threads.open_delay_queue(Sent(), capacity=1, workers=1) as queue:
        first = queue.put(b"", delay=60.0)
        token = queue.remote._token

        def interrupted(*args: object) -> None:
            queue.remote._token = token
            if heard:
                token.run_sync_soon(*args)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        queue.remote._token = SimpleNamespace(run_sync_soon=interrupted)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            queue.put(b"", delay=60.0, id="a")
        assert queue.cancel(first.id)

        def is_free() -> bool:
            with contextlib.suppress(QueueFull, ValueError):  # the loop may need a turn more
                queue.put_nowait(b"", delay=60.0, id="a")
                return True
            return False

        until(is_free)
        assert conserved(queue.statistics()).accepted == 2
        queue.drain(0.0)
