"""A Celery task that publishes a delayed message: a queue in each process of the worker's pool.

AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ celery --app celery_app worker --concurrency 2
"""

import os

import celery
from celery.signals import worker_process_init, worker_process_shutdown
from flask_app import publish_delayed, send  # the same two functions, by pika

from localdelay import threads

app = celery.Celery("orders", broker=os.environ["AMQP_URL"])
app.conf.task_ignore_result = True
queue: threads.DelayQueue
fallback: threads.Fallback


@worker_process_init.connect
def open_queue(**_: object) -> None:
    """Open a queue in this process: after the fork."""
    global queue, fallback
    queue = threads.start_delay_queue(send, capacity=24_000, workers=20)
    fallback = threads.Fallback(publish_delayed, queue)


@worker_process_shutdown.connect
def close_queue(**_: object) -> None:
    """Send what is due within 20 s."""
    queue.drain(grace=20.0)
    queue.close()


@app.task(name="create")
def create(order: int) -> None:
    """Take an order."""
    fallback.publish(b"close order %d if it is unpaid" % order, delay=2.0)
