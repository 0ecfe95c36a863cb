"""What is written down of puts and sends so that it outlives a kill: numbers of messages, in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from localdelay.benchmark.load import NUMBER_BYTES

STORED, SENT = "stored", "sent"


class Record:
    """A file that is only added to, without a buffer: what has been written survives the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    @property
    def add(self) -> Callable[[bytes], None]:
        """Add the number that a payload begins with."""
        file, write = self._file, os.write

        def add(payload: bytes) -> None:
            write(file, payload[:NUMBER_BYTES])

        return add

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)


def numbers(path: Path) -> list[int]:
    """The numbers in such a file; none where there is no file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = len(data) - len(data) % NUMBER_BYTES
    return [int.from_bytes(data[at : at + NUMBER_BYTES], "big") for at in range(0, whole, NUMBER_BYTES)]
