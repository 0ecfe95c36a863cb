"""A Redis for the tests of queues in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kit.servers.redis import RedisServer


@pytest.fixture
def redis(start_server: Callable[[str], RedisServer]) -> RedisServer:
    return start_server("redis")


@pytest.fixture
def own_redis(redis: RedisServer) -> Iterator[RedisServer]:
    """A server that the test may spoil."""
    one = RedisServer()
    one.start()
    yield one
    one.stop()
