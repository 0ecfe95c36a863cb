"""When a process that a test has started can be sent a signal."""

from __future__ import annotations

import re
import time
from pathlib import Path
from signal import Signals


def until_it_catches(pid: int, signum: Signals, timeout: float = 100.0) -> None:
    """Wait until it has a handler for this signal: a process that says nothing tells only the kernel."""
    until = time.monotonic() + timeout
    while True:
        (caught,) = re.findall(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if int(caught, 16) >> (signum - 1) & 1:
            return
        assert time.monotonic() < until, f"process {pid} does not catch {signum.name}"
        time.sleep(0.01)
