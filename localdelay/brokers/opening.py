"""A broker by its URL, as in `nats://host:4222/SUBJECT`. Its client is imported when it is asked for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from localdelay.message import Message

_NATS_CLIENT = ("nats", "trio_asyncio")
_FORM = "nats://host:4222/SUBJECT"
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_HIDDEN = "***"


class Broker(Protocol):
    """What every broker has. One that takes batches has `send_batch`, for a sequence of messages, too."""

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once the broker has confirmed it."""


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[Broker]:
    """Connect to the broker at `url`, for the length of an `async with` block.

    `nats://[user:password@]host[:port]/SUBJECT` publishes to that subject of NATS JetStream.
    Raises `ValueError` for a URL that `check_url` refuses, `ModuleNotFoundError` where the broker's extra
    is not installed, and `ConnectionError` where no broker answers. None of them shows a password.
    """
    parts = _split(url)
    try:
        from localdelay.brokers.nats import open_nats
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NATS_CLIENT:
            raise
        raise ModuleNotFoundError("nats:// needs a client: pip install 'localdelay[demo]'") from error
    connected = False
    try:
        async with open_nats(parts._replace(path="").geturl(), subject=unquote(parts.path[1:])) as broker:
            connected = True
            yield broker
    except ConnectionError as error:
        if connected:
            raise
        raise ConnectionError(hide_secrets(str(error), url)) from None


def check_url(url: str) -> None:
    """Raise a `ValueError` unless this is the URL of a broker; it says what is wrong, and no password."""
    _split(url)


def without_secrets(url: str) -> str:
    """A broker's URL, to be shown: without user, password and token."""
    parts = _split(url)
    _, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{_HIDDEN}@{host}").geturl() if at else url


def hide_secrets(text: str, url: str) -> str:
    """The text without anything that stands before the host in the URL."""
    secret, at, _ = url.partition("//")[2].rpartition("@")
    if not at:
        return text
    for hidden in sorted({secret, *secret.split(":", 1)}, key=len, reverse=True):
        for form in (hidden, unquote(hidden)):
            text = text.replace(form, _HIDDEN) if form else text
    return text


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # What the exception says may be a part of a password.
        raise ValueError(f"url must be a broker's, like {_FORM}") from None
    if parts.scheme != "nats":
        raise ValueError(f"url must begin with nats://, the only scheme there is a broker for: {_FORM}")
    if not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url must be a host and a subject, like {_FORM}")
    if not _SUBJECT.fullmatch(unquote(parts.path[1:])):
        raise ValueError(f"url must end with the subject to publish to, like {_FORM}")
    return parts
