"""A RabbitMQ: is the queue there, does it keep and refuse what it should, may this user delay.

AMQP has no question for how a queue was declared. But whoever declares it otherwise is told, one argument at
a time, what it has: a declaration changes nothing of a queue that is there, which is looked for first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any, TypeAlias

import pika
import pika.exceptions
import trio

from localdelay.brokers.address import Address
from localdelay.brokers.amqp import parameters_of
from localdelay.brokers.amqp_delays import delay_arguments
from localdelay.brokers.amqp_errors import quiet, reason
from localdelay.brokers.checks.finding import Finding

Argument: TypeAlias = "str | int | bool"

_NOT_FOUND = 404
_TOLD = re.compile(
    r"inequivalent arg '(?P<name>.+?)' for queue .* but current is "
    r"(?:none|(?:the value )?'(?P<value>.*?)'(?: of type '(?P<type>.*?)')?)$"
)
_PROPERTIES = ("durable", "auto_delete", "exclusive")
_MOST_TOLD = 30
_BOUNDED = '{"x-max-length": 1000000, "x-overflow": "reject-publish"}'
_POLICY = '{"overflow": "reject-publish"}'
_CHECKED = 60_000
"""Milliseconds, of a delay queue that is declared to see whether it may be; it goes with its connection."""


async def look(where: Address) -> list[Finding]:
    """Look at the queue."""
    return await trio.to_thread.run_sync(_look, where, abandon_on_cancel=True)


def _look(where: Address) -> list[Finding]:
    queue = where.target
    try:
        with quiet(), closing(pika.BlockingConnection(parameters_of(where))) as connection:
            refusal = _refused(connection, queue, passive=True)
            if refusal is not None:
                return [not_there(queue, refusal.reply_code, refusal.reply_text)]
            declared, may_delay = _declared(connection, queue), _may_delay(connection, queue)
    except pika.exceptions.AMQPError as error:
        raise ConnectionError(reason(error)) from None
    is_quorum = where.options.get("delay_queue") == "quorum"
    return findings(queue, declared, may_delay=may_delay, delays_by_quorum=is_quorum)


def _refused(connection: Any, queue: str, **how: object) -> pika.exceptions.ChannelClosed | None:
    """Declare a queue; why the broker does not, if so."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, **how)
    except pika.exceptions.ChannelClosed as error:
        return error
    channel.close()
    return None


def _declared(connection: Any, queue: str) -> dict[str, Argument] | None:
    """How a queue was declared; None where this user may not know."""
    properties: dict[str, Argument] = {"durable": True}
    arguments: dict[str, Argument] = {}
    for _ in range(_MOST_TOLD):
        refusal = _refused(connection, queue, **properties, arguments=arguments)
        if refusal is None:
            return {**properties, **arguments}
        if not learnt(refusal.reply_text, properties, arguments):
            return None
    return None


def learnt(text: str, properties: dict[str, Argument], arguments: dict[str, Argument]) -> bool:
    """Note what a refusal tells of how a queue was declared; False where it tells nothing. Pure."""
    told = _TOLD.search(text)
    if told is None or told["value"] is None:
        return False
    value: Argument = told["value"]
    if told["type"] is None or told["type"] == "bool":
        value = told["value"] == "true"
    elif told["type"] not in ("longstr", "shortstr"):
        value = int(told["value"])
    (properties if told["name"] in _PROPERTIES else arguments)[told["name"]] = value
    return True


def _may_delay(connection: Any, queue: str) -> bool:
    arguments = delay_arguments(queue, _CHECKED, "classic")
    return _refused(connection, f"localdelay.{queue}.check", exclusive=True, arguments=arguments) is None


def not_there(queue: str, code: int, text: str) -> Finding:
    """What it means that the queue can't be asked for. Pure."""
    if code != _NOT_FOUND:
        return Finding("queue", False, " ".join(text.split()), "see to it that this user may use it")
    change = f"rabbitmqadmin declare queue name={queue} durable=true arguments='{_BOUNDED}'"
    return Finding("queue", False, "not there: what is published would come back", change)


def findings(
    queue: str, declared: Mapping[str, Argument] | None, *, may_delay: bool, delays_by_quorum: bool
) -> list[Finding]:
    """What the declaration of a queue comes to; None where it can't be seen. Pure."""
    found = [Finding("queue", True, "there")]
    limit = None
    if declared is None:
        found.append(Finding("confirms", None, "publisher confirms; how it was declared can't be seen"))
        found.append(Finding("overflow", None, "can't be seen either"))
    else:
        found.append(_confirms(declared))
        limits = ("x-max-length", "x-max-length-bytes")
        limit = next((f"{name}={declared[name]}" for name in limits if name in declared), None)
        found.append(_overflow(queue, limit, declared.get("x-overflow")))
    if not may_delay:
        change = f"let it configure, write and read localdelay.{queue}.*, by rabbitmqctl set_permissions"
        found.append(Finding("native delay", False, "this user may not declare queues that delay", change))
    elif limit is not None and not delays_by_quorum:
        said = "a queue for each delay; what leaves it while this is full is lost without ?delay_queue=quorum"
        found.append(Finding("native delay", None, said))
    else:
        found.append(Finding("native delay", True, "a queue for each delay, which this user may declare"))
    return found


def _confirms(declared: Mapping[str, Argument]) -> Finding:
    if declared.get("durable"):
        return Finding("confirms", True, "publisher confirms, of a durable queue")
    said = "the queue is not durable: a restart loses what it has confirmed"
    return Finding("confirms", False, said, "delete it, and declare it durable")


def _overflow(queue: str, limit: str | None, declared: Argument | None) -> Finding:
    if limit is None:
        return Finding("overflow", None, "no length was declared; a policy's can't be seen from here")
    if str(declared).startswith("reject-publish"):
        return Finding("overflow", True, f"it refuses when it is full ({limit}, {declared})")
    said = f"it drops the oldest when it is full ({limit})"
    if declared is not None:  # which goes before any policy
        return Finding("overflow", False, said, f"delete it, and declare it with {_BOUNDED}")
    change = f"rabbitmqctl set_policy {queue} '^{queue}$' '{_POLICY}' --apply-to queues"
    return Finding("overflow", False, f"{said}, if no policy says otherwise: that can't be seen", change)
