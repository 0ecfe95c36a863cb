"""Programs that exit, or fork, with a queue in a thread of its own: a program each, on the real clock."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.kit.programs import python

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
    return python("-c", program, env={**os.environ, "PYTHONWARNINGS": "default"})


def test_an_exit_with_messages_pending_is_loud() -> None:
    """Two lines: what is pending, and that it is lost."""
    done = run("queue.put(b'12345', delay=60)")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "the interpreter exits with 1 message (5 B) pending",
        "the interpreter exits, and loses 1 message (5 B)",
    ]


def test_an_exit_may_drain_for_any_time() -> None:
    """Also for more than a thread can wait."""
    done = run("queue.put(b'x', delay=0.3)", options=", drain_on_exit=1e10")
    assert done.stdout == "sent x\n"
    assert done.stderr == "the interpreter exits with 1 message (1 B) pending\n"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_exit_drains_if_it_was_told_to(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes due in time is sent; the rest is lost, and said to be."""
    monkeypatch.setitem(globals(), "PROGRAM", PROGRAM.replace("def send", f"{kind} send"))
    done = run("queue.put(b'soon', delay=0.3); queue.put(b'late', delay=60)", options=", drain_on_exit=1.0")
    assert done.stdout == "sent soon\n"
    assert done.stderr.splitlines()[0] == "the interpreter exits with 2 messages (8 B) pending"
    assert done.stderr.splitlines()[-1] == "the interpreter exits, and loses 1 message (4 B)"


def test_an_exit_without_messages_says_nothing() -> None:
    """There is nothing to say."""
    done = run("queue.put(b'x', delay=0)\nwhile not queue.statistics().sent:\n    time.sleep(0.01)")
    assert (done.stdout, done.stderr, done.returncode) == ("sent x\n", "", 0)


CHILD = """
import asyncio, os, trio
import localdelay
from localdelay import aio, threads

async def send(message):
    print("sent", message.payload.decode(), flush=True)

async def primary(message, delay):
    raise localdelay.Throttled("429")

async def now(result):
    return await result if hasattr(result, "__await__") else result

async def each(queue, fallback):
    for name, call in {{
        "put_nowait": lambda: queue.put_nowait(b"y", delay=0),
        "put": lambda: queue.put(b"y", delay=0),
        "publish": lambda: fallback.publish(b"y", delay=0),
        "drain": lambda: queue.drain(1.0),
        "cancel": lambda: queue.cancel("x"),
        "reschedule": lambda: queue.reschedule("x", delay=0),
        "flush": lambda: queue.flush(),
        "pause": lambda: queue.pause(),
    }}.items():
        try:
            await now(call())
        except localdelay.QueueClosed as error:
            assert "forked child" in str(error) and "post_fork" in str(error), error
            assert "worker_process_init" in str(error), error
            print(name, flush=True)

{body}
"""

IN_CHILD = {
    "trio": """
    async def main():
        async with localdelay.open_delay_queue(send, capacity=9, workers=2, journal={journal}) as queue:
            fallback = localdelay.Fallback(primary, queue)
            await queue.put(b"x", delay=1.0, id="x")
            if os.fork() == 0:
                try:  # its first step is its last: the child runs no loop
                    each(queue, fallback).send(None)
                except StopIteration:
                    pass
                os._exit(0)
            await trio.to_thread.run_sync(os.wait)
    trio.run(main)
    """,
    "aio": """
    async def main():
        async with aio.open_delay_queue(send, capacity=9, workers=2, journal={journal}) as queue:
            fallback = aio.Fallback(primary, queue)
            await queue.put(b"x", delay=1.0, id="x")
            if os.fork() == 0:
                try:  # its first step is its last: from Python 3.12 on a child has no running loop
                    each(queue, fallback).send(None)
                except StopIteration:
                    pass
                os._exit(0)
            await asyncio.to_thread(os.wait)
    asyncio.run(main())
    """,
    "threads": """
    with threads.open_delay_queue(send, capacity=9, workers=2, journal={journal}) as queue:
        def refuse(message, delay):
            raise localdelay.Throttled("429")
        fallback = threads.Fallback(refuse, queue)
        queue.put(b"x", delay=1.0, id="x")
        if os.fork() == 0:
            try:
                each(queue, fallback).send(None)
            except StopIteration:
                pass
            os._exit(0)
        os.wait()
    """,
}


@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize("world", [*IN_CHILD])
def test_in_a_forked_child_the_first_call_fails(world: str, journal: bool, tmp_path: Path) -> None:
    """Each of them, with words that say where to open a queue instead; the parent sends, once."""
    body = textwrap.dedent(IN_CHILD[world]).format(
        journal=repr(str(tmp_path / "journal")) if journal else None
    )
    program = CHILD.format(body=body)
    done = python("-c", program)
    calls = ["put_nowait", "put", "publish", "drain", "cancel", "reschedule", "flush", "pause"]
    assert done.stdout.splitlines() == [*calls, "sent x"], done.stderr
    assert "Traceback" not in done.stderr


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
    assert "the process forks with 1 message (1 B) pending: they stay with the parent" in done.stderr
