"""Orders that are closed unless they are paid: Flask, RabbitMQ by pika, gunicorn's workers with threads.

AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ gunicorn --config gunicorn_settings.py flask_app:app
"""

import math
import os
import threading

import flask
import pika

import localdelay
from localdelay import threads

UNPAID_AFTER = 2.0  # seconds
LOST = (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)

app = flask.Flask(__name__)
here = threading.local()  # pika's connections are not to be shared among threads


class Worker:
    """The queue of one worker process. It is opened after the fork: threads don't survive one."""

    def open(self) -> None:
        """Open the queue; gunicorn's `post_fork`."""
        self._queue = threads.start_delay_queue(send, capacity=24_000, workers=20)
        self.fallback = threads.Fallback(publish_delayed, self._queue)

    def close(self) -> None:
        """Send what is due within 20 s; gunicorn's `worker_exit`, with a `graceful_timeout` over that."""
        self._queue.drain(grace=20.0)
        self._queue.close()


worker = Worker()


@app.post("/orders/<int:order>")
def create(order: int) -> dict[str, str]:
    """Take an order."""
    receipt = worker.fallback.publish(b"close order %d if it is unpaid" % order, delay=UNPAID_AFTER)
    return {"route": receipt.route.name, "id": receipt.message.id}


def send(message: localdelay.Message) -> None:
    """Publish at once; returns when RabbitMQ has confirmed it."""
    publish_or_connect("orders", message)


def publish_delayed(message: localdelay.Message, delay: float) -> None:
    """Publish into the queue of this delay, whose messages expire into `orders`."""
    seconds = math.ceil(delay)
    arguments: dict[str, str | int] = {
        "x-message-ttl": seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "orders",
        "x-max-length": 100_000,
        "x-overflow": "reject-publish",
    }
    try:
        publish_or_connect(f"orders.after.{seconds}s", message, arguments)
    except pika.exceptions.NackError as error:  # the queue is full
        raise localdelay.Throttled("the queue is full") from error


def publish_or_connect(
    queue: str, message: localdelay.Message, arguments: dict[str, str | int] | None = None
) -> None:
    """Publish; where this thread's connection was lost meanwhile, once more on a new one."""
    if hasattr(here, "channel"):
        try:
            return publish(queue, message, arguments)
        except pika.exceptions.UnroutableError:  # the queue has gone: declare it anew next time
            here.delays.discard(queue)
            raise
        except LOST:  # after an idle while, say
            del here.channel
    here.delays = set()
    here.channel = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
    here.channel.confirm_delivery()
    here.channel.queue_declare("orders", durable=True)
    return publish(queue, message, arguments)


def publish(queue: str, message: localdelay.Message, arguments: dict[str, str | int] | None) -> None:
    """Publish on this thread's channel."""
    if arguments is not None and queue not in here.delays:
        here.channel.queue_declare(queue, durable=True, arguments=arguments)
        here.delays.add(queue)
    properties = pika.BasicProperties(message_id=message.id, delivery_mode=2)
    here.channel.basic_publish("", queue, message.payload, properties, mandatory=True)
