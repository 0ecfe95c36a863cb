"""RocketMQ's official client, as it is imported and run here, and what its errors mean.

The client writes a log below the home of whoever imports it, and takes no setting for that: it is imported
with another home and its log is taken from it, unless the program has imported it before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from importlib import import_module
from typing import Any

from localdelay.brokers.address import Address
from localdelay.errors import PermanentSendError, Throttled

REQUEST_TIMEOUT = 3  # seconds; it tries three times

_CLIENT_LOG = "rocketmq-python-client"
_BUSY = ("flow control", "[OVERLOAD]", "[TIMEOUT_CLEAN_QUEUE]", "[REJECTREQUEST]")
_TOO_MANY = range(42900, 43000)
_PERMANENT = (*range(40000, 40800), *range(41300, 41400), *range(43100, 43200), *range(50100, 50200))
_NO_TIMER = "accurate timer message is not enabled"

_LOOP_LOCK = threading.Lock()


def _imported() -> Any:
    """The client's package, with nothing of it left in the home."""
    if "rocketmq" not in sys.modules:
        home = os.environ.get("HOME")
        with tempfile.TemporaryDirectory() as place:
            os.environ["HOME"] = place
            try:
                import_module("rocketmq")
            finally:
                if home is None:
                    del os.environ["HOME"]
                else:
                    os.environ["HOME"] = home
            log = logging.getLogger(_CLIENT_LOG)
            for handler in log.handlers[:]:
                log.removeHandler(handler)
                handler.close()
            log.setLevel(logging.CRITICAL + 1)  # it may say of a message all that is in it
    return import_module("rocketmq")


client = _imported()
"""The client's package, without its log."""


def own_loop() -> None:
    """Start the loop that all of the client's producers and consumers share, unless it runs.

    It has no setting for it, and would take one of the policy's: where trio-asyncio has been imported, one of
    that, on which it can't receive, and which raises in whatever thread collects its last channel.
    """
    shared = import_module("rocketmq.v5.client.connection").RpcClient
    with _LOOP_LOCK:
        if shared.get_channel_io_loop() is None:
            loop = asyncio.SelectorEventLoop()
            threading.Thread(target=loop.run_forever, name="localdelay-rocketmq-loop", daemon=True).start()
            shared._io_loop = loop  # noqa: SLF001 (there is no other way in)


def producer_of(where: Address) -> Any:
    """A producer, which is to be started; in a thread."""
    own_loop()
    credentials = client.Credentials(where.username or "", where.password or "")
    at = f"{where.host}:{where.port}"
    configuration = client.ClientConfiguration(at, credentials, request_timeout=REQUEST_TIMEOUT)
    return client.Producer(configuration, tls_enable=where.choice("tls", "on") is not None)


class NoTopic(ConnectionError):
    """The broker shows no such topic."""


def why_no_route(producer: Any, topic: str) -> ConnectionError:
    """Why the client finds no topic, which it keeps to itself: the broker is asked once more. In a thread."""
    protocol, settings = import_module("rocketmq.grpc_protocol"), producer.client_configuration
    request = protocol.QueryRouteRequest()
    request.topic.name = topic
    request.topic.resource_namespace = settings.namespace
    request.endpoints.CopyFrom(settings.rpc_endpoints.endpoints)
    asked = producer.rpc_client.query_topic_route_async(
        settings.rpc_endpoints, request, metadata=producer.sign(), timeout=REQUEST_TIMEOUT
    )
    try:
        status = asked.result(REQUEST_TIMEOUT + 1).status
    except Exception as error:  # noqa: BLE001 (whatever it is: it can't be asked)
        return ConnectionError(str(classified(error)) or "it does not say which topics there are")
    if status.code == protocol.Code.TOPIC_NOT_FOUND:
        return NoTopic(status.message)
    return ConnectionError(status.message or f"code {status.code}")


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's: `Throttled`, `PermanentSendError`, or what it is."""
    code, text = getattr(error, "code", None), str(error)
    if callable(code):  # gRPC's own
        status = code().name
        text = f"{status}: {error.details()}"  # type: ignore[attr-defined]
        if status == "UNAVAILABLE":
            return ConnectionError(text)
        return TimeoutError(text) if status == "DEADLINE_EXCEEDED" else error
    if code in _TOO_MANY or any(word in text for word in _BUSY):
        return Throttled(text)
    if _NO_TIMER in text:
        return PermanentSendError(f"{text}: its timer is switched off (timerWheelEnable)")
    if code in _PERMANENT or type(error).__name__ == "IllegalArgumentException":
        return PermanentSendError(text)
    if type(error).__name__ == "ProxyTimeoutException":
        return TimeoutError(text)
    return error
