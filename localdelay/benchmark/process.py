"""What the process takes, and what it runs on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import attrs

_STATM = Path("/proc/self/statm")


@attrs.frozen
class Machine:
    """The facts that the figures depend on."""

    cores: int
    """Those that this process may use."""
    system: str
    python: str
    trio: str
    localdelay: str


def machine() -> Machine:
    """This machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return Machine(allowed or 1, platform.system(), python, version("trio"), version("localdelay"))


def resident_bytes() -> int | None:
    """Memory that this process holds at the moment; None where the system does not tell."""
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
