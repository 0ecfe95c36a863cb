"""Files that a command is told to write."""

from __future__ import annotations

import os
from pathlib import Path


def parse_output(text: str) -> Path:
    """A file that can be written: better to know before a long run than after it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{text!r} is no file in a directory that there is")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text!r} can't be written")
    return path
