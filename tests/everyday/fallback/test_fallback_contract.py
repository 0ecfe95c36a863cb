"""What a fallback does in every world: Trio, threads and asyncio; `tests/broker` plays it with Redis."""

from __future__ import annotations

import inspect
import os
import signal
from functools import partial

import pytest

from localdelay import QueueClosed, RateLimit, Route
from localdelay.arguments import NOT_GIVEN
from tests.kit.fallback_scenes import ANYWHERE, IN_MEMORY
from tests.kit.fallbacks import WORLDS, Scene, Stage, World

every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@pytest.mark.parametrize("scene", [*ANYWHERE, *IN_MEMORY], ids=lambda scene: scene.__name__)
@every_world
def test_every_world_plays_it_alike(world: World, scene: Scene) -> None:
    """Each scene says in its docstring what must be so."""
    world.play(scene)


@every_world
def test_a_fallback_shares_the_limit_of_each_key_with_its_queue(world: World) -> None:
    """It takes its queue's key where it is given none."""
    world.play(_share)


async def _share(world: World) -> None:
    options = {"key": lambda message: message.payload[:1], "limit": RateLimit(1e-6, burst=1)}
    async with world.stage(options, limit=NOT_GIVEN) as stage:
        routes = [(await stage.publish(name)).route for name in (b"a", b"b", b"a", b"b")]
        assert routes == [Route.PRIMARY, Route.PRIMARY, Route.LOCAL, Route.LOCAL]
        await stage.publish(b"c", 0.0)
        await world.now(stage.queue.put(b"c", delay=0.0))
        await world.now(stage.queue.put(b"d", delay=0.0))
        await stage.until(lambda: bool(stage.sent))
        assert [message.payload for message in stage.sent] == [b"d"]  # of `c` a publish has had the token


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing can be forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@every_world
@pytest.mark.parametrize("call", ["publish", "cancel"])
def test_a_forked_child_publishes_and_cancels_nothing(world: World, call: str) -> None:
    """It raises `QueueClosed`, though another thread had the locks."""
    world.play(partial(_fork, call=call))


async def _fork(world: World, call: str) -> None:
    async with world.stage(cancels=True) as stage:
        router = stage.fallback._router
        with router.lock, router.gates.only._lock, router.handles._lock:
            child = os.fork()
            if not child:
                _end_as_a_child_should(stage, call)
        assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 (it ends at once)
        await stage.publish()
        assert len(stage.primary.calls) == 1


def _end_as_a_child_should(stage: Stage, call: str) -> None:
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        fallback = stage.fallback
        called = fallback.cancel("order 7") if call == "cancel" else fallback.publish(b"p", delay=300.0)
        if inspect.iscoroutine(called):
            called.send(None)
    except QueueClosed:
        status = len(stage.primary.calls)
    finally:
        os._exit(status)
