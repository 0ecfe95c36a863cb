"""Programs that are run to their end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def ran(*command: str | Path, timeout: float = 200.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program, and return what it has printed and its exit code."""
    options = {"check": False, **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def python(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same for this Python."""
    return ran(sys.executable, *args, **options)
