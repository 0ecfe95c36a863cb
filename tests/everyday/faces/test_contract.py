"""What a queue does in every world: Trio, threads and asyncio, with uvloop and in anyio programs, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.face_scenes import ANYWHERE, flushed_and_recovered
from tests.kit.faces import FACES, Face, Scene

every_face = pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)


@pytest.mark.parametrize("scene", ANYWHERE, ids=lambda scene: scene.__name__)
@every_face
def test_every_face_does_it_alike(face: Face, scene: Scene) -> None:
    """Each scene says in its docstring what must be so."""
    face.play(scene)


@every_face
def test_every_face_keeps_a_journal(face: Face, tmp_path: Path) -> None:
    """Likewise."""
    face.play(lambda face: flushed_and_recovered(face, tmp_path / "journal"), waits_for_threads=True)
