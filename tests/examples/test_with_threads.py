"""How a threaded service tests what it publishes: with a clock that it moves, and no broker."""

from localdelay import threads
from localdelay.testing import MovableClock, RecordingSender, ThrottledPrimary


def place(fallback: threads.Fallback, order: int) -> None:
    """A function of yours."""
    fallback.publish(b"close order %d if it is unpaid" % order, delay=120.0)


def test_an_order_that_is_refused_is_closed_on_time() -> None:
    """Two minutes later, and in none of real time."""
    clock = MovableClock()
    sender, primary = RecordingSender(clock=clock), ThrottledPrimary(limit=0, clock=clock)
    with threads.open_delay_queue(sender, capacity=10, workers=1, clock=clock) as queue:
        place(threads.Fallback(primary.blocking, queue), 7)
        clock.advance(119.0)
        assert sender.payloads == []
        clock.advance(1.0)
        assert sender.payloads == [b"close order 7 if it is unpaid"]
