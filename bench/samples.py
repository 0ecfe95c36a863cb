"""What all the bench commands share: a sample in a process of its own, what several come to, and on what."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from localdelay.benchmark import process

ROOT = Path(__file__).resolve().parent.parent
HELD_P99 = 0.010
"""Seconds. A rate is held if lateness and the generator's own error both stay under this at p99, and
everything was put and sent."""
_WORST = {"early", "unsent"}
_TIMEOUT = 600.0
"""Seconds for a sample."""
_SCHEDSTAT = Path("/proc/self/schedstat")

Result: TypeAlias = dict[str, Any]
RunSample: TypeAlias = Callable[[str, dict[str, Any]], Result]


def in_process(kind: str, arguments: dict[str, Any]) -> Result:
    """Run one sample in a fresh interpreter."""
    command = [sys.executable, "-m", "bench.scenarios", kind, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT)
    answer: Result = json.loads(done.stdout)
    return answer


def waited_for_a_core() -> float | None:
    """Seconds that this process could have run and others ran instead, where Linux tells."""
    if not _SCHEDSTAT.exists():
        return None
    return int(_SCHEDSTAT.read_text().split()[1]) / 1e9


def medians(results: list[Result]) -> Result:
    """Figure by figure the median over the runs; the worst of what should be 0; None stays None."""
    combined: Result = {}
    for name, first in results[0].items():
        values = [result[name] for result in results]
        if isinstance(first, dict):
            combined[name] = medians(values)
        elif first is None:
            combined[name] = None
        else:
            combined[name] = max(values) if name in _WORST else statistics.median(values)
    return combined


def is_held(result: Result) -> bool:
    """Whether this sample of an open loop kept up; see `HELD_P99`."""
    in_time = result["lateness"]["p99"] < HELD_P99 and result["put_lateness"]["p99"] < HELD_P99
    return in_time and not result["unsent"] and not result["early"]


def ratio(value: float, base: float) -> float | None:
    """The one over the other; None where the other is 0."""
    return value / base if base else None


def machine() -> Result:
    """The facts that the figures depend on."""
    known = process.machine()
    return {
        "cores": os.cpu_count(),
        "cores_allowed": known.cores,
        "system": platform.platform(terse=True),
        "python": known.python,
        "trio": known.trio,
        "localdelay": known.localdelay,
    }
