"""What a fallback does in every world: Trio, threads and asyncio; `tests/broker` plays it with Redis."""

from __future__ import annotations

import pytest

from tests.kit.fallback_scenes import ANYWHERE, IN_MEMORY
from tests.kit.fallbacks import InThreads, OnAsyncio, OnTrio, Scene, World


@pytest.mark.parametrize("scene", [*ANYWHERE, *IN_MEMORY], ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("world", [OnTrio(), InThreads(), OnAsyncio()], ids=lambda world: world.name)
def test_every_world_plays_it_alike(world: World, scene: Scene) -> None:
    """Each scene says in its docstring what must be so."""
    world.play(scene)
