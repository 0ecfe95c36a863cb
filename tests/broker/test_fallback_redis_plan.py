"""A fallback before a queue in Redis does what one does before a queue in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import localdelay
from localdelay import Message
from localdelay.redis_plan import RedisTuning, open_redis_delay_queue
from tests.kit.faces import Face
from tests.kit.fallback_scenes import ANYWHERE
from tests.kit.fallbacks import Scene, World
from tests.kit.servers.redis import RedisServer


class OnRedis(World):
    """`localdelay.Fallback` with a `RedisDelayQueue`, on the real clock: a crash here loses nothing."""

    name = "redis"
    in_memory = False

    def __init__(self, server: RedisServer) -> None:
        super().__init__(Face(), localdelay.Fallback)
        self._server = server

    def play(self, scene: Scene) -> None:
        self.face.play(lambda _: scene(self), waits_for_threads=True)

    def opened(self, sent: list[Message], *, capacity: int, **options: Any) -> Any:
        async def send(message: Message) -> None:
            sent.append(message)

        url = self._server.fresh()
        tuning = RedisTuning(confirm_within=0.02, linger=0.0, claim_ahead=60.0)
        return open_redis_delay_queue(send, url=url, shards=4, tuning=tuning, **options)


@pytest.mark.parametrize("scene", ANYWHERE, ids=lambda scene: scene.__name__)
def test_redis_plays_it_alike(scene: Scene, start_server: Callable[[str], RedisServer]) -> None:
    """Each scene says in its docstring what must be so."""
    OnRedis(start_server("redis")).play(scene)
