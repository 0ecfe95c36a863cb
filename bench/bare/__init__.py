"""The clients without localdelay: what `bench.brokers` compares with. One module a broker."""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen
class Sent:
    """What one run came to."""

    seconds: float
    """From the first publish to the last confirmation; connecting and closing are left out."""
    times: list[float]
    """How long each publish, or each batch, took until it was confirmed, in seconds."""


class Bare(Protocol):
    """`bare` of each module here."""

    def __call__(self, url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
        """Publish `count` messages by the plainest program that a good user of this client would write.

        Each is confirmed. At most `at_once` publishes are under way at any time; with `batch`, each publish
        is one of so many messages, in the way in which this client and its protocol do it best.
        """
