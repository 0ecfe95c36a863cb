"""RocketMQ's driver without a RocketMQ: what errors mean, what travels, and where its client's log goes."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from localdelay import DelayNotSupported, Message, PermanentSendError, Throttled
from localdelay.brokers import open_broker
from localdelay.brokers.address import Address
from localdelay.brokers.rocketmq import classified, driver_at
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from tests.kit.commands import run

NOWHERE = "rocketmq://127.0.0.1:1/orders"


def driver(**options: str):  # type: ignore[no-untyped-def]
    return driver_at(Address("rocketmq", (("host", 1),), "orders", options=options))


def of(name: str, text: str, code: int | None = None) -> Exception:
    from rocketmq.v5 import exception

    kind = getattr(exception, name)
    made: Exception = kind(text) if code is None else kind(text, code)
    return made


def grpc_error(code: grpc.StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details="failed to connect")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (("InternalErrorException", "timer message is under flow control", 50001), Throttled),
        (("TooManyRequestsException", "[OVERLOAD]system busy", 42900), Throttled),
        (("InternalErrorException", "[TIMEOUT_CLEAN_QUEUE]broker busy", 50001), Throttled),
        (("InternalErrorException", "accurate timer message is not enabled", 50001), PermanentSendError),
        (("BadRequestException", "the delay time is too large", 40012), PermanentSendError),
        (("NotFoundException", "No topic route info", 40402), PermanentSendError),
        (("RequestHeaderFieldsTooLargeException", "too large", 43101), PermanentSendError),
        (("IllegalArgumentException", "message body is none."), PermanentSendError),
        (("ProxyTimeoutException", "slow", 50401), TimeoutError),
    ],
)
def test_what_errors_mean(error: tuple[str, str, int], kind: type[Exception]) -> None:
    """By code, and by the words where one code has several."""
    failure = classified(of(*error))
    assert isinstance(failure, kind)
    assert error[1] in str(failure)


def test_what_grpc_says() -> None:
    """Nobody is there, or it does not answer; the rest stays as it is."""
    assert isinstance(classified(grpc_error(grpc.StatusCode.UNAVAILABLE)), ConnectionError)
    assert isinstance(classified(grpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)), TimeoutError)
    for error in (
        grpc_error(grpc.StatusCode.INTERNAL),
        RuntimeError("x"),
        of("InternalErrorException", "x", 50001),
    ):
        assert classified(error) is error


async def test_what_travels() -> None:
    """Id, attempt and execute-at are properties beside the message's own; the id is the key, too."""
    message = Message("m", b"body", 0.0, {"Trace": "ü", ID: "mine"}, attempt=3)
    content = driver().encode(message, None, 0.0)
    assert (content.topic, content.body, content.keys) == ("orders", b"body", {"m"})
    properties = dict(content.properties)
    assert properties.pop(EXECUTE_AT)
    assert properties == {ID: "m", ATTEMPT: "3", "Trace": "ü"}
    assert not content.delivery_timestamp


async def test_delays_are_whole_seconds_rounded_up() -> None:
    """Never early, less than a second late; none is an ordinary message; a day is the most unless told."""
    message = Message("m", b"body", 0.0)
    due = time.time() + 1.5
    content = driver(delay_topic="later").encode(message, 1.5, 0.0)
    assert content.topic == "later"
    assert isinstance(content.delivery_timestamp, int)
    assert math.ceil(due) <= content.delivery_timestamp <= due + 1.1
    now = driver(delay_topic="later").encode(message, 0.0, 0.0)
    assert (now.topic, now.delivery_timestamp) == ("orders", None)
    with pytest.raises(DelayNotSupported, match="86400"):
        driver().encode(message, 86_401.0, 0.0)
    assert driver(max_delay="172800").encode(message, 86_401.0, 0.0).delivery_timestamp


@pytest.mark.parametrize(
    ("options", "says"), [("max_delay=soon", "max_delay"), ("tls=off", "tls"), ("acks=1", "option")]
)
async def test_options_that_can_not_be(options: str, says: str) -> None:
    """They are named, before anything is connected."""
    with pytest.raises(ValueError, match=says):
        async with open_broker(f"{NOWHERE}?{options}"):
            pass


LOOKS = "import os; from localdelay.brokers.rocketmq_client import client; print(os.environ['HOME'])"


def test_its_client_writes_no_log_in_the_home(tmp_path: Path) -> None:
    """Whoever else imports it gets a directory there; here the home stays as it was, and is given back."""
    environ = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOOKS], env=environ, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_rocketmq_is_not_told_to_make_a_topic() -> None:
    """Somebody else listens there, and hangs up: it could not be looked, and nothing is to be changed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            with suppress(OSError):  # the test has ended
                while True:
                    listening.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        result = run("check", f"rocketmq://127.0.0.1:{listening.getsockname()[1]}/orders")
        listening.shutdown(socket.SHUT_RDWR)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no connection to RocketMQ" in result.stderr
    assert "updateTopic" not in result.stderr
