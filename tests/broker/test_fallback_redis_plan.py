"""A fallback before a queue in Redis does what one does before a queue in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import localdelay
from localdelay import Message
from localdelay.fallback.publishing import BaseFallback
from localdelay.redis_plan import RedisTuning, open_redis_delay_queue
from tests.kit.fallback_scenes import ANYWHERE
from tests.kit.fallbacks import Primary, Scene, World
from tests.kit.servers.redis import RedisServer


class OnRedis(World):
    """`localdelay.Fallback` with a `RedisDelayQueue`, on the real clock: a crash here loses nothing."""

    name = "redis"
    in_memory = False

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def play(self, scene: Scene) -> None:
        trio.run(scene, self)

    def opened(self, sent: list[Message], *, capacity: int, **options: Any) -> Any:
        async def send(message: Message) -> None:
            sent.append(message)

        url = self._server.fresh()
        tuning = RedisTuning(confirm_within=0.02, linger=0.0, claim_ahead=60.0)
        return open_redis_delay_queue(send, url=url, shards=4, tuning=tuning, **options)

    def fallback(self, primary: Primary, queue: Any, **options: Any) -> BaseFallback[Any, Any, Any]:
        return localdelay.Fallback(primary.call_async, queue, **options)


@pytest.mark.parametrize("scene", ANYWHERE, ids=lambda scene: scene.__name__)
def test_redis_plays_it_alike(scene: Scene, start_server: Callable[[str], RedisServer]) -> None:
    """Each scene says in its docstring what must be so."""
    OnRedis(start_server("redis")).play(scene)
