"""The README and the manuals of the folders, and which of their blocks a test runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "localdelay", "localdelay/brokers", "localdelay/journal", "localdelay/redis_plan")
PAGES = {
    folder: ROOT / folder / "README.md"
    for folder in (*FOLDERS, "localdelay/relay", "tests", "tests/examples", "bench")
}
claimed: set[str] = set()
"""The blocks that were asked for by `block`."""


def text(folder: str) -> str:
    """The page of a folder; "" is the README."""
    return PAGES[folder].read_text(encoding="utf-8")


def blocks(folder: str, language: str) -> list[str]:
    """The blocks of a page in this language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text(folder), flags=re.DOTALL)


def block(folder: str, language: str, word: str) -> str:
    """The only block with this in it. Whoever asks for it runs it: see `test_every_block_is_run`."""
    [found] = [one for one in blocks(folder, language) if word in one]
    claimed.add(found)
    return found
