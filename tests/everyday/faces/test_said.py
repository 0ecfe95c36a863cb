"""What every world says of itself: never silent where messages or minutes are at stake."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from localdelay import Message, RetryPolicy
from tests.kit.faces import FACES, Face

every_face = pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)


@every_face
def test_a_bug_in_a_send_is_a_warning_with_its_traceback(face: Face, caplog: Any) -> None:
    """The first failure shows the line that is wrong; later ones are no warnings, and no payload is shown."""
    caplog.set_level(logging.DEBUG)
    failed: list[int] = []

    def send(message: Any) -> None:
        if message.attempt < 3:
            failed.append(message.attempt)
            message.paylod  # noqa: B018 (it is the bug)

    async def scene(face: Face) -> None:
        async with face.open(send, retry=RetryPolicy(wait_initial=0.01, wait_jitter=0.0)) as queue:
            queue.put_nowait(b"secret", delay=0.0)

    face.play(scene)
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    line = warning.getMessage()
    assert failed == [1, 2]
    assert "'Message' object has no attribute 'paylod'" in line
    assert "message.paylod  # noqa" in line
    assert "secret" not in caplog.text


@every_face
def test_leaving_a_block_that_waits_is_said(face: Face, caplog: Any) -> None:
    """At once, with how many messages it waits for."""
    sent: list[Message] = []

    async def scene(face: Face) -> None:
        async with face.open(sent.append) as queue:
            for _ in range(3):
                queue.put_nowait(b"1234", delay=0.7)

    face.play(scene)
    assert len(sent) == 3
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "waits for the sends of 3 messages (12 B): " in line
