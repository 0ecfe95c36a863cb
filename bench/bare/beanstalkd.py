"""greenstalk as it is meant to be used: a blocking client, and so a connection and a thread for each."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from urllib.parse import unquote, urlsplit

import greenstalk

from bench.bare import Sent, in_tasks, on_asyncio

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


@on_asyncio
async def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """The same in asyncio's threads, a batch at a time: each has a connection of its own."""
    parts = urlsplit(url)
    own = threading.local()

    def connect() -> None:
        address = (parts.hostname or "", parts.port or 11300)
        own.client = greenstalk.Client(address, encoding=None, use=unquote(parts.path[1:]))

    def publish() -> None:
        for _ in range(batch):
            own.client.put(payload)

    with ThreadPoolExecutor(min(at_once, MOST_THREADS), initializer=connect) as pool:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, pool, publish)
        return await in_tasks(in_thread, count=count // batch, at_once=at_once)
