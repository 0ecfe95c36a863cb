"""What was being sent when the process ended: it may be why, and goes last, alone, one at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from localdelay import Message, RetryPolicy, open_delay_queue
from localdelay.journal.record import Record
from localdelay.queue import admission
from tests.kit.faces import FACES, Face
from tests.kit.journals import Disk, until
from tests.kit.programs import ran

PROGRAM = """
import os, signal, sys
import trio
import localdelay
from localdelay import aio, threads

world, path, attempts = sys.argv[1:]
options = dict(
    capacity=20, workers=3, journal=path, retry=localdelay.RetryPolicy(attempts=int(attempts) or None)
)

def act(message):
    os.write(1, b"%s %d\\n" % (message.payload, message.attempt))  # a line, whatever other threads write
    if message.payload == b"poison":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where it is out of memory

async def send(message):
    act(message)

async def bury(message, error):
    print("dead", message.payload.decode(), error, flush=True)

def due(queue):
    return [queue.put(name, delay=0.0) for name in (b"a", b"poison", b"b", b"c", b"d")]

async def on_trio():
    async with localdelay.open_delay_queue(send, on_dead_letter=bury, **options) as queue:
        if not queue.statistics().recovered and not os.path.exists(path + "-begun"):
            open(path + "-begun", "w").close()
            queue.pause()
            for put in due(queue):
                await put
            queue.resume()

async def on_asyncio():
    async with aio.open_delay_queue(send, on_dead_letter=bury, **options) as queue:
        if not os.path.exists(path + "-begun"):
            open(path + "-begun", "w").close()
            await queue.pause()
            for put in due(queue):
                await put
            await queue.resume()

def in_threads():
    def blocking_bury(message, error):
        print("dead", message.payload.decode(), error, flush=True)
    with threads.open_delay_queue(act, on_dead_letter=blocking_bury, **options) as queue:
        if not os.path.exists(path + "-begun"):
            open(path + "-begun", "w").close()
            queue.pause()
            due(queue)
            queue.resume()

if world == "trio":
    trio.run(on_trio)
elif world == "aio":
    import asyncio
    asyncio.run(on_asyncio())
else:
    in_threads()
"""


@pytest.mark.parametrize("world", ["trio", "aio", "threads"])
def test_a_message_that_kills_its_process_is_given_up_after_its_attempts(world: str, tmp_path: Path) -> None:
    """Five starts, three kills, and it is dead; all else is sent, what was beside it perhaps twice."""
    outputs: list[list[str]] = []
    codes: list[int] = []
    for _ in range(5):
        command = [sys.executable, "-c", PROGRAM, world, str(tmp_path / "journal"), "3"]
        run = ran(*command)
        outputs.append(run.stdout.splitlines())
        codes.append(run.returncode)
    assert codes == [-9, -9, -9, 0, 0], outputs
    lines = [line for output in outputs for line in output]
    assert [line for line in lines if line.startswith("poison")] == ["poison 1", "poison 2", "poison 3"]
    assert {line[0] for line in lines if line[:2] in ("a ", "b ", "c ", "d ")} == {*"abcd"}
    for output in outputs[1:3]:  # last, each time: whatever else there was has been sent by then
        assert output[-1].startswith("poison")
    assert outputs[3] == ["dead poison the process ended each time that it was sent, 3 times"]
    assert outputs[4] == []


def test_a_message_that_kills_its_process_keeps_nothing_else_from_being_sent(tmp_path: Path) -> None:
    """Without attempts it is tried at every start, after all else."""
    journal = tmp_path / "journal"
    command = [sys.executable, "-c", PROGRAM, "trio", str(journal), "0"]
    outputs = []
    for _ in range(4):
        run = ran(*command)
        assert run.returncode == -9
        outputs.append(run.stdout.splitlines())
    assert [output[-1] for output in outputs[1:]] == ["poison 2", "poison 3", "poison 4"]
    assert {line[0] for output in outputs for line in output[:-1]} | {outputs[0][-1][0]} >= {*"abcd"}
    assert len(outputs[3]) == 1


def crashed(disk: Disk) -> Disk:
    """What a process would find that begins after this one was killed now."""
    again = Disk()
    again.rows, again.sending = dict(disk.rows), set(disk.sending)
    return again


async def test_the_attempt_is_on_disk_before_the_send() -> None:
    """What a crash at any moment of a send finds has that message in flight; after its end it has not."""
    disk = Disk()
    found: list[tuple[list[str], list[str]]] = []

    async def send(message: Message) -> None:
        found.append(([*disk.ids], [record.id for record in crashed(disk).open() if record.sending]))

    async with open_delay_queue(send, capacity=9, workers=1, journal=disk) as queue:
        queue.pause()
        for name in "ab":
            await queue.put(b"", delay=0.0, id=name)
        queue.resume()
    assert found == [(["a", "b"], ["a"]), (["b"], ["b"])]
    assert set(disk.sending) == set()


async def test_they_go_last_alone_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After all that is overdue, in batches of their own, that with the fewest attempts first."""
    disk = Disk()
    gate = trio.Event()

    async def hang(messages: Sequence[Message]) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with open_delay_queue(send_batch=hang, capacity=99, workers=1, journal=disk) as queue:
            for name in ("x", "y"):
                await queue.put(b"", delay=0.0, id=name)
            await until(lambda: len(disk.sending) >= 1)
            await queue.put(b"", delay=0.01, id="late")
            for name in "abc":
                await queue.put(b"", delay=0.02, id=name)
            before = crashed(disk)
            scope.cancel()
    before.sending = {key for key, row in before.rows.items() if row.id in ("x", "y")}
    key = next(key for key, row in before.rows.items() if row.id == "x")
    before.rows[key] = before.rows[key]._replace(attempt=7)
    batches: list[list[tuple[str, int]]] = []
    at_work = 0

    async def send_batch(messages: Sequence[Message]) -> None:
        nonlocal at_work
        at_work += 1
        batches.append([(message.id, message.attempt) for message in messages])
        if messages[0].id in ("x", "y"):
            assert at_work == 1
        await gate.wait()
        at_work -= 1

    await trio.sleep(0.1)
    async with open_delay_queue(send_batch=send_batch, capacity=99, workers=3, journal=before) as queue:
        assert queue.statistics().recovered == 6
        assert (queue.statistics().pending, len(queue.messages())) == (6, 6)
        await until(lambda: batches)
        await trio.sleep(0.05)
        assert [id for batch in batches for id, _ in batch] == ["late", "a", "b", "c"]
        gate.set()
    assert batches[-2:] == [[("y", 2)], [("x", 8)]]
    assert queue.statistics().sent == 6


def found(*rows: tuple[str, float], sending: str) -> Disk:
    """A journal with messages by their ids, due so many seconds from now; one was being sent."""
    disk, now = Disk(), time.time()
    disk.rows = {key: Record(key, now + due, 1, id, None, b"") for key, (id, due) in enumerate(rows, start=1)}
    disk.sending = {key for key, row in disk.rows.items() if row.id == sending}
    return disk


async def test_they_do_not_wait_for_what_is_far_from_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much else comes back first, and though the workers sleep until that is due by then."""
    monkeypatch.setattr(admission, "_CHUNK", 1)
    disk = found(*((f"far {number}", 3600.0) for number in range(9)), ("x", -1.0), sending="x")
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)

    async with open_delay_queue(send, capacity=99, workers=3, journal=disk) as queue:
        await until(lambda: sent == ["x"])
        await queue.drain(0.0)


async def test_they_have_their_turn_where_what_was_overdue_is_cancelled() -> None:
    """At the time that the last of it had been given, whoever has looked meanwhile."""
    disk = found(("a", -9.0), ("b", -8.0), ("x", -7.0), sending="x")
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)

    async with open_delay_queue(send, capacity=99, workers=3, journal=disk, catch_up_rate=4.0) as queue:
        await until(lambda: sent == ["a"])
        assert queue.cancel("b")
        await queue.put(b"", delay=0.0, id="meanwhile")
        await until(lambda: sent == ["a", "meanwhile", "x"])


async def test_a_suspect_can_be_cancelled_and_is_spooled_by_a_drain() -> None:
    """It is a message like any other, and waits; what a drain with a grace leaves stays in the journal."""
    disk = Disk()

    async def hang(message: Message) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with open_delay_queue(hang, capacity=9, workers=2, journal=disk) as queue:
            for name in ("x", "y"):
                await queue.put(b"", delay=0.0, id=name)
            await until(lambda: len(disk.sending) == 2)
            before = crashed(disk)
            scope.cancel()
    assert set(disk.sending) == set()  # that end was an orderly one
    async with open_delay_queue(hang, capacity=9, workers=2, journal=before) as queue:
        queue.pause()
        await trio.sleep(0.02)
        assert queue.cancel("y") or queue.cancel("x")
        report = await queue.drain(0.05)
        assert (report.spooled, report.remaining) == (1, [])
    assert len(before.rows) == 1


async def test_where_it_cannot_be_written_it_is_sent_all_the_same(conserved: Any) -> None:
    """A full disk stops no send."""
    disk = Disk()
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "full")

    async with open_delay_queue(send, capacity=9, workers=1, journal=disk) as queue:
        queue.pause()
        for name in "ab":
            await queue.put(b"", delay=0.0, id=name)
        write, disk.write = disk.write, fail  # type: ignore[method-assign, assignment]
        queue.resume()
        await until(lambda: sent == ["a", "b"])
        disk.write = write  # type: ignore[method-assign]
    assert conserved(queue).sent == 2
    assert disk.rows == {}


@pytest.mark.parametrize("face", FACES[:3], ids=lambda face: face.name)
def test_what_failed_or_was_paused_is_not_in_flight(face: Face) -> None:
    """Only what is being sent is: a failure ends that, and so does an orderly end."""
    disk = Disk()

    def refuse(message: Message) -> None:
        raise OSError("down")

    async def scene(face: Face) -> None:
        retry = RetryPolicy(wait_initial=100.0, wait_max=100.0)
        async with face.open(refuse, journal=disk, retry=retry) as queue:
            await face.now(queue.put(b"", delay=0.0))

            async def has_failed() -> bool:
                return bool((await face.now(queue.statistics())).retrying)

            await face.until(has_failed)
            await face.until(lambda: not disk.sending)
            assert [record.attempt for record in disk.rows.values()] == [2]
            await face.now(queue.drain(0.0))

    face.play(scene, waits_for_threads=True)
    assert set(disk.sending) == set()
