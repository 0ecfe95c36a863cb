"""greenstalk as it is meant to be used: a blocking client, and so a connection and a thread for each."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import ExitStack
from urllib.parse import unquote, urlsplit

import greenstalk

from bench.bare import Sent

# More threads than this send no more than these do: they wait for each other and for one core of the server.
MOST_THREADS = 8


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `bench.bare.Bare`. greenstalk has no batches: one is put after the other on a connection."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 11300)
    tube = unquote(parts.path[1:])
    publishes = itertools.repeat(batch, count // batch)
    times: list[float] = []

    def publish(client: greenstalk.Client[bytes]) -> None:
        put = client.put
        for messages in publishes:  # a C iterator: threads may share it
            begun = time.perf_counter()
            for _ in range(messages):
                put(payload)
            times.append(time.perf_counter() - begun)

    with ExitStack() as clients:
        threads = [
            threading.Thread(
                target=publish,
                args=(clients.enter_context(greenstalk.Client(address, encoding=None, use=tube)),),
            )
            for _ in range(min(at_once, MOST_THREADS))
        ]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
    return Sent(seconds, times)
