"""How a threaded service tests what it publishes: with a primary that refuses, and without a broker."""

import localdelay
from localdelay import threads


def place(fallback: threads.Fallback, order: int) -> None:
    """A function of yours."""
    fallback.publish(b"close order %d if it is unpaid" % order, delay=120.0)


def test_an_order_that_is_refused_is_held() -> None:
    """It waits for its time, and nothing has been sent."""
    sent: list[bytes] = []

    def send(message: localdelay.Message) -> None:
        sent.append(message.payload)

    def refuse(message: localdelay.Message, delay: float) -> None:
        raise localdelay.Throttled("429")

    with threads.open_delay_queue(send, capacity=10, workers=1) as queue:
        place(threads.Fallback(refuse, queue), 7)
        [held] = queue.messages()
        assert held.payload == b"close order 7 if it is unpaid"
        assert sent == []
        assert queue.reschedule(held.id, delay=0.01)  # rather than wait for two minutes
    assert sent == [b"close order 7 if it is unpaid"]
