"""What a process holds: memory, open files, tasks."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from localdelay.benchmark.process import resident_bytes

MEGABYTE = 1_000_000
_GROWTH = 1.1
_SPARE = {"resident": 8 * MEGABYTE, "files": 2, "tasks": 2}


def begin_peak() -> int:
    """Forget the peak so far, and return what is resident now, in bytes."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes() or 0


def peak() -> int:
    """The most that was resident, in bytes, since `begin_peak`, or since the start where that can't be."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def gauges(workers: int) -> dict[str, int]:
    """What is held now; the tasks are those besides so many workers."""
    return {
        "resident": resident_bytes() or 0,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": trio.lowlevel.current_statistics().tasks_living - workers,
    }


def not_flat(samples: Sequence[Mapping[str, int]]) -> list[str]:
    """What has grown between the second third of the samples and the last: the first is warm-up."""
    third = len(samples) // 3
    if not third:
        return [f"only {len(samples)} samples"]
    wrong = []
    for name, spare in _SPARE.items():
        before = max(sample[name] for sample in samples[third:-third])
        after = max(sample[name] for sample in samples[-third:])
        if after > before * (_GROWTH if name == "resident" else 1) + spare:
            wrong.append(f"{name} has grown from {before:,} to {after:,}")
    return wrong


def said(samples: Sequence[Mapping[str, int]]) -> str:
    """The middle and the end, for the table."""
    middle, end = samples[len(samples) // 2], samples[-1]
    resident = f"{middle['resident'] / MEGABYTE:.0f} -> {end['resident'] / MEGABYTE:.0f} MB"
    return f"{resident}, files {middle['files']} -> {end['files']}, tasks {middle['tasks']} -> {end['tasks']}"
