"""Programs that exit, or fork, with a queue in a thread of its own: a program each, on the real clock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import os, sys, time
from localdelay import threads

def send(message):
    print("sent", message.payload.decode(), flush=True)

opened = threads.open_delay_queue(send, capacity=10, workers=2{options})
queue = opened.__enter__()
{body}
"""


def run(body: str, options: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(options=options, body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )


def test_an_exit_with_messages_pending_is_loud() -> None:
    """Two lines: what is pending, and that it is lost."""
    done = run("queue.put(b'12345', delay=60)")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "the interpreter exits with 1 messages of 5 bytes pending",
        "1 messages of 5 bytes are lost: the interpreter exits",
    ]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_exit_drains_if_it_was_told_to(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes due in time is sent; the rest is lost, and said to be."""
    monkeypatch.setitem(globals(), "PROGRAM", PROGRAM.replace("def send", f"{kind} send"))
    done = run("queue.put(b'soon', delay=0.3); queue.put(b'late', delay=60)", options=", drain_on_exit=1.0")
    assert done.stdout == "sent soon\n"
    assert done.stderr.splitlines()[0] == "the interpreter exits with 2 messages of 8 bytes pending"
    assert done.stderr.splitlines()[-1] == "1 messages of 4 bytes are lost: the interpreter exits"


def test_an_exit_without_messages_says_nothing() -> None:
    """There is nothing to say."""
    done = run("queue.put(b'x', delay=0)\nwhile not queue.statistics().sent:\n    time.sleep(0.01)")
    assert (done.stdout, done.stderr, done.returncode) == ("sent x\n", "", 0)


def test_a_fork_is_loud_and_its_child_has_no_queue() -> None:
    """The messages stay with the parent; in the child a put raises QueueClosed instead of hanging."""
    done = run(
        """
        queue.put(b'x', delay=0.5)
        if os.fork() == 0:
            try:
                queue.put(b'y', delay=0)
            except Exception as error:
                print(type(error).__name__, flush=True)
            opened.__exit__(None, None, None)
            os._exit(0)
        os.wait()
        opened.__exit__(None, None, None)
        if os.fork() == 0:
            with threads.open_delay_queue(send, capacity=1, workers=1) as another:
                another.put(b'z', delay=0)
            os._exit(0)
        os.wait()
        """
    )
    assert done.stdout == "QueueClosed\nsent x\nsent z\n"
    assert "the process forks with 1 messages of 1 bytes pending: they stay with the parent" in done.stderr
