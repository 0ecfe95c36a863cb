"""What pika's errors mean: throttled, never possible, or a lost connection; and what it logs of them."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pika.exceptions
from pika.adapters.blocking_connection import ReturnedMessage

from localdelay.brokers.broker import ConnectionLost
from localdelay.errors import PermanentSendError, Throttled

logger = logging.getLogger("localdelay.brokers.amqp")

_CONTENT_TOO_LARGE = 311
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_PRECONDITION_FAILED = 406
_RESOURCE_ERROR = 506
_REFUSALS = frozenset({_CONTENT_TOO_LARGE, _ACCESS_REFUSED, _NOT_FOUND, _PRECONDITION_FAILED})
_LONGEST_REASON = 500  # characters


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's: `Throttled`, `PermanentSendError`, or a `ConnectionError`.

    Or the error itself, where it is none of these.
    """
    match error:
        case pika.exceptions.NackError():
            return Throttled("basic.nack: the queue does not take it, as when it is full")
        case pika.exceptions.ConnectionBlockedTimeout():
            return Throttled(f"connection.blocked: {reason(error)}")
        case pika.exceptions.UnroutableError():
            return PermanentSendError(f"basic.return: {_returned(error.messages)}")
        case pika.exceptions.ChannelClosed():
            # The limit of queues comes as a precondition that failed, told by its text alone.
            limited = error.reply_code == _PRECONDITION_FAILED and "queue limit in vhost" in error.reply_text
            if limited or error.reply_code == _RESOURCE_ERROR:
                return Throttled(reason(error))
            return PermanentSendError(reason(error)) if error.reply_code in _REFUSALS else error
        case pika.exceptions.ShortStringTooLong() | pika.exceptions.UnsupportedAMQPFieldException():
            return PermanentSendError(f"AMQP can't carry it: {type(error).__name__}")
        case pika.exceptions.AMQPConnectionError():
            return ConnectionError(f"the connection to RabbitMQ was lost: {reason(error)}")
    return error


def _returned(messages: list[ReturnedMessage]) -> str:
    told = {f"{one.method.reply_text}, there is no queue {one.method.routing_key!r}" for one in messages}
    return "; ".join(sorted(told))


def lost(error: BaseException) -> ConnectionError:
    """For what was under way on a connection or a channel that is no more."""
    closed = isinstance(error, pika.exceptions.ChannelClosed)
    what = "RabbitMQ has closed the channel" if closed else "the connection to RabbitMQ was lost"
    told = ConnectionLost(f"{what}: {reason(error)}")
    told.__cause__ = error
    return told


def reason(error: BaseException) -> str:
    """What has really gone wrong, out of what pika wraps it into, in one line."""
    while (inner := _wrapped(error)) is not None:
        error = inner
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        told = f"{error.reply_code} {error.reply_text}"
    else:
        told = ": ".join(str(part) for part in error.args) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            told = error.strerror
    return " ".join(told.split())[:_LONGEST_REASON]


def _wrapped(error: BaseException) -> BaseException | None:
    several = getattr(error, "exceptions", ())
    first = error.args[0] if len(error.args) == 1 else None
    for inner in (getattr(error, "exception", None), several[-1] if several else None, first):
        if isinstance(inner, BaseException):
            return inner
    return None


_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("localdelay.brokers.amqp", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that pika logs inside this block is more than debugging."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class _Quiet(logging.Filter):
    """Takes what pika logs of these connections over into our own log, as debugging.

    They get over what pika calls an error, and who publishes gets an exception. Other users of pika in the
    same program are not concerned.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or not _quiet.get():
            return True
        logger.debug("%s: %s", record.name, record.getMessage())
        return False


_filter = _Quiet()
for _name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "pika"]:
    logging.getLogger(_name).addFilter(_filter)
