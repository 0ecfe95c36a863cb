"""Orders that are closed unless they are paid: FastAPI, RabbitMQ by aio-pika, uvicorn's workers.

AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ uvicorn --workers 2 fastapi_app:app
"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import fastapi
from aio_pika.abc import AbstractChannel

import localdelay
from localdelay import aio

UNPAID_AFTER = 2.0  # seconds


class Orders:
    """The queue `orders`, and one queue in front of it for each delay."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._delays: set[str] = set()

    async def send(self, message: localdelay.Message) -> None:
        """Publish at once; returns when RabbitMQ has confirmed it."""
        await self._publish("orders", message)

    async def publish_delayed(self, message: localdelay.Message, delay: float) -> None:
        """Publish into the queue of this delay, whose messages expire into `orders`."""
        seconds = math.ceil(delay)
        name = f"orders.after.{seconds}s"
        if name not in self._delays:
            arguments: dict[str, str | int] = {
                "x-message-ttl": seconds * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "orders",
                "x-max-length": 100_000,
                "x-overflow": "reject-publish",
            }
            await self._channel.declare_queue(name, durable=True, arguments=arguments)
            self._delays.add(name)
        try:
            await self._publish(name, message)
        except aio_pika.exceptions.PublishError:  # the queue has gone: declare it anew next time
            self._delays.discard(name)
            raise
        except aio_pika.exceptions.DeliveryError as error:  # a nack: the queue is full
            raise localdelay.Throttled(f"{name} is full") from error

    async def _publish(self, queue: str, message: localdelay.Message) -> None:
        body = aio_pika.Message(message.payload, message_id=message.id, delivery_mode=2)
        await self._channel.default_exchange.publish(body, queue)


@asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """A connection and a queue for each worker process, as long as it lives."""
    async with await aio_pika.connect_robust(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.declare_queue("orders", durable=True)
        orders = Orders(channel)
        async with aio.open_delay_queue(orders.send, capacity=24_000, workers=100) as queue:
            app.state.fallback = aio.Fallback(orders.publish_delayed, queue)
            yield
            # uvicorn has answered what it had accepted; what is due by then is sent, on the open connection.
            await queue.drain(grace=20.0)


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/orders/{order}")
async def create(order: int) -> dict[str, str]:
    """Take an order."""
    receipt = await app.state.fallback.publish(b"close order %d if it is unpaid" % order, delay=UNPAID_AFTER)
    return {"route": receipt.route.name, "id": receipt.message.id}
