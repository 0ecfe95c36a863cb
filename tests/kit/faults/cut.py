"""The network to the broker cut: held back, slow, reset, swallowed, refused."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from random import Random
from urllib.parse import urlsplit

import trio

from localdelay.brokers import Broker, open_broker
from tests.kit.faults import broken, underway
from tests.kit.faults.broken import CONFIRM_TIMEOUT
from tests.kit.faults.counting import count, in_broker
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, directory
from tests.kit.faults.scale import broker as server_of
from tests.kit.servers.network import Network, network_to
from tests.kit.servers.process import Server

_READ_TIMEOUT = 100.0


def _open(name: str, port: int, url: str) -> AbstractAsyncContextManager[Broker]:
    return open_broker(f"{name}://127.0.0.1:{port}{urlsplit(url).path}", confirm_timeout=CONFIRM_TIMEOUT)


def cut(fault: str, scale: Scale, *, name: str, cycles: int, journal: bool) -> Row:
    """Each of the things that networks do, in turn, `cycles` of them in all; then read the broker."""
    draws, watch = scale.random(fault), Watch()
    with server_of(name) as server, directory() as place:
        url = server.fresh()
        port = urlsplit(url).port
        assert port is not None

        async def main() -> underway.Books:
            async with network_to(port) as network, _open(name, network.port, url) as broker:
                happens = partial(_happens, network, draws, cycles)
                if name == "kafka":  # whose clients go by the addresses that it tells them, past the network
                    happens = partial(_cuts, server, draws, cycles)
                return await underway.under_way(
                    broker, happens, journal=place / "journal" if journal else None, draws=draws
                )

        books = trio.run(main)
        expected = len(books.accepted.keys() - books.dead)
        counted = count(books.accepted, in_broker(server, url, expected, _READ_TIMEOUT), told=books.dead)
    return broken.row_of(fault, cycles, books, counted, watch)


async def _cuts(server: Server, draws: Random, cycles: int) -> None:
    """The server cuts all connections, and takes none for a while; what it holds it keeps."""
    for _ in range(cycles):
        await trio.sleep(draws.uniform(0.2, 0.5))
        await trio.to_thread.run_sync(server.kill)
        await trio.sleep(draws.uniform(0.2, 1.5))
        await trio.to_thread.run_sync(server.restart)
    await trio.sleep(0.3)


async def _happens(network: Network, draws: Random, cycles: int) -> None:
    kinds = ("held", "reset", "slow", "swallowed", "refused", "held for long")
    for cycle in range(cycles):
        await trio.sleep(draws.uniform(0.2, 0.5))
        kind = kinds[cycle % len(kinds)]
        if kind == "reset":
            network.reset()
        elif kind == "slow":
            network.delay = draws.uniform(0.05, 0.3)
            await trio.sleep(0.8)
            network.delay = 0.0
        elif kind == "swallowed":
            network.swallows = True
            await trio.sleep(draws.uniform(0.2, 1.5))
            network.reset()
            network.swallows = False
        elif kind == "refused":
            network.refuses = True
            network.reset()
            await trio.sleep(draws.uniform(0.2, 0.8))
            network.refuses = False
        else:
            network.hold()
            await trio.sleep(CONFIRM_TIMEOUT * (0.5 if kind == "held" else draws.uniform(1.3, 2.0)))
            network.flow()
    await trio.sleep(0.3)
