"""What the queue sends with: the broker's own send, or nothing, with the meter in front of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from localdelay.benchmark.meter import Meter
from localdelay.benchmark.result import Settings
from localdelay.brokers import Broker
from localdelay.message import Message
from localdelay.queue.batch import BatchPolicy

_BATCH_BYTES = 1_000_000


def senders(meter: Meter, broker: Broker | None, settings: Settings) -> dict[str, Any]:
    """The arguments of `open_delay_queue` that say how to send."""
    if settings.batch is None:
        return {"send": _send_nothing(meter) if broker is None else _send(meter, broker.send)}
    most = max(_BATCH_BYTES, settings.batch * settings.size)
    return {
        "send_batch": _send_batch(meter, None if broker is None else broker.send_batch),
        "batch": BatchPolicy(max_messages=settings.batch, max_bytes=most),
    }


def _send_nothing(meter: Meter) -> Callable[[Message], Awaitable[None]]:
    begin = meter.begin

    async def send(message: Message) -> None:
        begin(message)
        meter.sent += 1

    return send


def _send(
    meter: Meter, send_one: Callable[[Message], Awaitable[None]]
) -> Callable[[Message], Awaitable[None]]:
    async def send(message: Message) -> None:
        meter.begin(message)
        try:
            await send_one(message)
        except BaseException as error:
            meter.fail((message,), error)
            raise
        meter.end((message,))

    return send


def _send_batch(
    meter: Meter, send_many: Callable[[Sequence[Message]], Awaitable[None]] | None
) -> Callable[[Sequence[Message]], Awaitable[None]]:
    async def send_batch(messages: Sequence[Message]) -> None:
        meter.begin_batch(messages)
        try:
            if send_many is not None:
                await send_many(messages)
        except BaseException as error:
            meter.fail(messages, error)
            raise
        meter.end(messages)

    return send_batch
