"""What the journal costs, beside a bare sqlite3 loop and the disk itself: `python -m bench.journal`.

Every sample is a process of its own, the samples take turns within a run, every other run goes backwards, and
the figures are medians over the runs. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import attrs
import click
import trio

from localdelay import DelayQueue, Message, SqliteJournal, open_delay_queue
from localdelay.benchmark.process import resident_bytes

from . import samples
from .figures import Figure
from .samples import (
    BODY_BYTES,
    Result,
    body,
    distribution,
    facts,
    heading,
    medians,
    ms,
    or_failed,
    progress,
    show,
    shown,
    table_option,
)

_HOUR = 3600.0
_GROUP = 64
_PENDING_GROUPS = 64
_BLOCK = 4096
_WORKERS = 128
"""A worker takes nothing new until its last removal is written: so many are the most removals of a commit."""
_FILLED_AT_ONCE = 1000
_HIGH_IS_BEST = frozenset({"rate", "puts", "removals", "rows", "commits", "syncs"})


@attrs.frozen
class Settings:
    """What is run."""

    runs: int = 3
    alone: int = 4_000
    """Messages of one producer."""
    together: int = 200_000
    """Messages of all the 64 producers."""
    seconds: float = 8.0
    """For the steady state; the bare loop and the disk get a quarter of it."""
    recovered: int = 1_000_000


QUICK = Settings(runs=1, alone=500, together=20_000, seconds=2.0, recovered=100_000)


async def _send(_: Message) -> None:
    pass


async def _produce(queue: DelayQueue, numbers: Iterator[int], delay: float, took: array[float]) -> None:
    for number in numbers:
        began = time.perf_counter()
        await queue.put(body(number), delay=delay)
        took.append(time.perf_counter() - began)


def puts(directory: str, producers: int, durability: Literal["fsync", "os"], messages: int) -> Result:
    """Puts of messages that are due in an hour, one after the other by each producer."""
    took = array("d")
    numbers = iter(range(messages))

    async def main() -> Result:
        journal = SqliteJournal(f"{directory}/puts", durability)
        async with open_delay_queue(_send, capacity=messages, workers=1, journal=journal) as queue:
            began, cpu = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(producers):
                    nursery.start_soon(_produce, queue, numbers, _HOUR, took)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            commits = queue.statistics().commit_time.count
            await queue.drain(0.0)
        found = distribution(took)
        return {
            "rate": messages / seconds,
            "p50": found.p50,
            "p99": found.p99,
            "group": messages / commits,
            "cpu_us": 1e6 * cpu / messages,
        }

    return trio.run(main)


def steady(directory: str, producers: int, seconds: float, delay: float) -> Result:
    """Puts of messages that are due soon, and are sent and removed, all at the same time."""
    took = array("d")
    numbers = count()

    async def main() -> Result:
        journal = SqliteJournal(f"{directory}/steady")
        async with (
            open_delay_queue(_send, capacity=10_000_000, workers=_WORKERS, journal=journal) as queue,
            trio.open_nursery() as nursery,
        ):
            for _ in range(producers):
                nursery.start_soon(_produce, queue, numbers, delay, took)
            await trio.sleep(3 * delay)
            before, began, first = queue.statistics(), time.perf_counter(), len(took)
            await trio.sleep(seconds)
            after, ended, last = queue.statistics(), time.perf_counter(), len(took)
            nursery.cancel_scope.cancel()
        found = distribution(took[first:last])
        put, sent = after.accepted - before.accepted, after.sent - before.sent
        return {
            "puts": put / (ended - began),
            "removals": sent / (ended - began),
            "rows": (put + sent) / (ended - began),
            "p50": found.p50,
            "p99": found.p99,
        }

    return trio.run(main)


def fill(directory: str, messages: int) -> Result:
    """A journal of pending messages, put through a queue, and its bytes over their payloads'."""
    path = Path(directory) / "filled"

    def times() -> float:
        files = (path, Path(f"{path}-wal"))
        return sum(file.stat().st_size for file in files if file.exists()) / (messages * BODY_BYTES)

    async def main() -> Result:
        async with open_delay_queue(
            _send, capacity=messages, workers=1, journal=SqliteJournal(path, "os")
        ) as queue:
            for number in range(messages):
                queue.put_nowait(body(number), delay=_HOUR)
                if number % _FILLED_AT_ONCE == 0:
                    await queue.flush()
            await queue.flush()
            while_open = times()
            await queue.drain(0.0)
        return {"open": while_open, "closed": times()}

    return trio.run(main)


def recover(directory: str, messages: int) -> Result:
    """From the opening of a queue on that journal until it can be used."""

    async def main() -> Result:
        before = resident_bytes()
        began, cpu = time.perf_counter(), time.process_time()
        journal = SqliteJournal(f"{directory}/filled")
        async with open_delay_queue(_send, capacity=messages, workers=1, journal=journal) as queue:
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            after = resident_bytes()
            recovered = queue.statistics().recovered
            await queue.drain(0.0)
        assert recovered == messages
        return {
            "rate": messages / seconds,
            "cpu_us": 1e6 * cpu / messages,
            "resident": None if before is None or after is None else (after - before) / messages,
        }

    return trio.run(main)


def bare(directory: str, seconds: float) -> Result:
    """Commits of 64 inserts and 64 deletes in a table like the journal's, with its settings, and no more."""
    with closing(sqlite3.connect(f"{directory}/bare", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {_BLOCK}")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE messages (key INTEGER PRIMARY KEY, due REAL, attempt INTEGER, id TEXT, "
            "headers BLOB, payload BLOB, dead TEXT, checksum INTEGER)"
        )
        commits, began = 0, time.perf_counter()
        while (ended := time.perf_counter()) < began + seconds:
            first = commits * _GROUP
            keys = range(first, first + _GROUP)
            gone = range(first - _PENDING_GROUPS * _GROUP, first - (_PENDING_GROUPS - 1) * _GROUP)
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO messages VALUES (?, ?, 1, ?, NULL, ?, NULL, 0)",
                [(key, 1e9 + key, f"0123456789ab-{key}", body(key)) for key in keys],
            )
            connection.executemany("DELETE FROM messages WHERE key = ?", [(key,) for key in gone])
            connection.execute("COMMIT")
            commits += 1
    rate = commits / (ended - began)
    return {"commits": rate, "rows": rate * 2 * _GROUP}


def disk(directory: str, seconds: float) -> Result:
    """How often a second 4 KiB can be appended to a file and confirmed by the disk."""
    block, done = os.urandom(_BLOCK), 0
    with Path(directory, "disk").open("wb", buffering=0) as file:
        began = time.perf_counter()
        while (ended := time.perf_counter()) < began + seconds:
            file.write(block)
            os.fdatasync(file.fileno())
            done += 1
    return {"syncs": done / (ended - began)}


SAMPLES: dict[str, Callable[..., Result]] = {
    sample.__name__: sample for sample in (puts, steady, fill, recover, bare, disk)
}


def plan(settings: Settings) -> list[tuple[str, str, dict[str, Any]]]:
    """The samples of a run: (name, kind, arguments)."""
    both: tuple[Literal["fsync", "os"], ...] = ("fsync", "os")
    amounts = ((64, settings.together), (1, settings.alone))
    short = settings.seconds / 4
    return [
        ("disk", "disk", {"seconds": short}),
        ("bare", "bare", {"seconds": short}),
        ("steady", "steady", {"producers": 64, "seconds": settings.seconds, "delay": 1.0}),
        *(
            (f"{durability}, {producers}", "puts", {"producers": producers, "durability": durability, **more})
            for producers, messages in amounts
            for durability in both
            for more in ({"messages": messages},)
        ),
        ("recover", "recover", {"messages": settings.recovered}),
    ]


def measure(
    settings: Settings,
    directory: Path,
    take: Callable[[str, Result], Result],
    progress: Callable[[str], None],
) -> Result:
    """Run everything; what was measured in each run stands beside the medians."""
    runs: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-journal-", dir=directory) as kept:
        progress(f"fill a journal with {settings.recovered:,} messages")
        filled = take("fill", {"directory": kept, "messages": settings.recovered})
        for run in range(settings.runs):
            todo = plan(settings)
            for name, kind, arguments in todo if run % 2 == 0 else reversed(todo):
                progress(f"run {run + 1}/{settings.runs}: {name}")
                with tempfile.TemporaryDirectory(prefix="bench-journal-", dir=directory) as fresh:
                    asked = {"directory": kept if kind == "recover" else fresh, **arguments}
                    result = or_failed(lambda: take(kind, asked), progress)  # noqa: B023
                runs.setdefault(name, []).append(result)
    return {
        "facts": facts("journal"),
        "settings": attrs.asdict(settings),
        **{name: medians(runs[name], _HIGH_IS_BEST) for name, _, _ in plan(settings)},
        "bytes": filled,
        "runs": runs,
    }


def targets(figures: Result) -> list[Figure]:
    """What is aimed at."""
    return [
        Figure("puts/s, 64 producers, fsync", figures["fsync, 64"].get("rate"), at_least=30_000),
        Figure("recovery, messages/s", figures["recover"].get("rate"), at_least=200_000),
        Figure("bytes on disk over payload bytes", max(figures["bytes"].values()), at_most=1.5),
    ]


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    settings, state, recovery = measured["settings"], measured["steady"], measured["recover"]
    yield (
        f"{heading(measured)}; messages of {BODY_BYTES} bytes; medians of {settings['runs']} runs; raw: "
        f"[results/journal.json](results/journal.json)."
    )
    yield ""
    head = ["", "puts/s", "p50", "p99", "messages a commit", "cpu a put", "removals/s", "rows/s"]
    puts = [
        [f"{title}, {durability}", *_puts(measured[f"{durability}, {producers}"]), "", ""]
        for producers, title in ((64, "64 producers"), (1, "1 producer"))
        for durability in ("fsync", "os")
    ]
    removed = [shown(state.get("removals")), shown(state.get("rows"))]
    steady = [f"steady: 64 producers, {_WORKERS} workers", shown(state.get("puts")), *_milliseconds(state)]
    commits = f"bare sqlite3: {_GROUP} inserts and {_GROUP} deletes a commit"
    yield from samples.table(
        head,
        [
            *puts,
            [*steady, "", "", *removed],
            [commits, *[""] * 3, str(2 * _GROUP), "", "", shown(measured["bare"].get("rows"))],
            ["the disk: 4 KiB appended and fdatasync", *[""] * 5, "", shown(measured["disk"].get("syncs"))],
        ],
    )
    yield ""
    at_most = measured["bytes"]
    resident = recovery.get("resident")
    yield (
        f"Recovery of {settings['recovered']:,} messages: {shown(recovery.get('rate'))}/s, "
        f"{shown(recovery.get('cpu_us'), '.1f')} µs of processor time and "
        f"{'unknown' if resident is None else f'{resident:,.0f}'} bytes of resident memory each. Bytes on "
        f"disk over payload bytes: {at_most['open']:.2f} in use, {at_most['closed']:.2f} closed."
    )
    yield from samples.targets(targets(measured))


def _puts(found: Result) -> list[str]:
    group, cpu = shown(found.get("group"), ".1f"), shown(found.get("cpu_us"), ".1f", " µs")
    return [shown(found.get("rate")), *_milliseconds(found), group, cpu]


def _milliseconds(found: Result) -> list[str]:
    return [shown(ms(found.get(share)), ".2f", " ms") for share in ("p50", "p99")]


@click.command()
@click.option("--quick", is_flag=True, help="One small run, to see that it works. It is not saved.")
@click.option("--runs", type=click.IntRange(min=1), help="[default: 3; 1 with --quick]")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="On the disk to measure; /tmp may be none.  [default: the current one]",
)
@table_option
def main(quick: bool, runs: int | None, directory: Path, saved: bool) -> None:
    """Measure puts, recovery and bytes of the journal, beside a bare sqlite3 loop and the disk.

    Writes bench/results/journal.json, and prints the README's table of it.
    """
    settings = QUICK if quick else Settings()
    settings = settings if runs is None else attrs.evolve(settings, runs=runs)
    take = partial(samples.in_process, "journal")
    measured = partial(measure, settings, directory.resolve(), take, progress)
    show("journal", lines, measured, saved=saved, keep=not quick)


if __name__ == "__main__":
    main()
