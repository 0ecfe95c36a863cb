"""What a caller gets wrong is seen by a type checker, before the program runs."""

from __future__ import annotations

from pathlib import Path

from tests.kit.programs import python

PROGRAM = """
from localdelay import Message, RateLimit, aio, threads


def send(message: Message) -> None: ...


async def send_on_loop(message: Message) -> None: ...


with threads.open_delay_queue(send, capacity=5, workers=1, limit=RateLimit(1.0), send_timeout=None) as queue:
    queue.put(b"", delay=1.0)
threads.open_delay_queue(send, capacity="5", workers=1)  # wrong: capacity
threads.open_delay_queue(send, workers=1)  # wrong: capacity
threads.open_delay_queue(send, capacity=5, workers=1, colour="red")  # wrong: colour
aio.open_delay_queue(send_on_loop, capacity=5, workers=1, send_timeout=1)
aio.open_delay_queue(send_on_loop, capacity=5, workers=1, send_timeout="1")  # wrong: send_timeout
aio.open_delay_queue(send_on_loop, capacity=5, workers=1, recover_rte=1)  # wrong: recover_rte
aio.open_delay_queue(send, capacity=5, workers=1)  # wrong: Coroutine
"""


def test_wrong_options_of_the_faces_are_seen(tmp_path: Path) -> None:
    """By name, at the line that is wrong, and nothing else is complained of."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = python(
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(program),
        timeout=250,
        cwd=tmp_path,
    )
    wrong = {
        number: line.rpartition(": ")[2]
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# wrong: " in line
    }
    seen: dict[int, str] = {}
    for line in done.stdout.splitlines():
        if ": error: " in line:
            number = int(line.split(":")[1])
            seen[number] = seen.get(number, "") + line
    assert seen.keys() == wrong.keys(), done.stdout
    for number, name in wrong.items():
        assert name in seen[number]
