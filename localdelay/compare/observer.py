"""What Redis says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:  # it comes with an extra, and the plans in memory have to work without it
    from localdelay.redis_plan.link import Link

_OWN = frozenset({"info", "hello", "client", "config", "subscribe", "ping", "script"})
"""What observing and connecting take."""
_AT_ONCE = 1000


@attrs.frozen
class Seen:
    """Redis at one instant, since it was started."""

    calls: Mapping[str, int]
    """Calls of each command, those inside of scripts too, without what observing takes."""
    cpu: float
    """Seconds of processor time."""
    memory: int
    """Bytes in use."""

    @property
    def total(self) -> int:
        """All calls."""
        return sum(self.calls.values())

    def calls_since(self, before: Seen) -> dict[str, int]:
        """What was called since then."""
        grown = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        return {name: count for name, count in grown.items() if count > 0}


async def look(link: Link) -> Seen:
    """Ask it."""
    return seen(_text(await link.call(b"INFO", b"everything")))


def seen(info: str) -> Seen:
    """What INFO's answer says. Pure."""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    calls: dict[str, int] = {}
    for name, value in fields.items():
        if name.startswith("cmdstat_"):
            # A subcommand is `config|get`.
            command = name.removeprefix("cmdstat_").partition("|")[0]
            if command not in _OWN:
                first = value.partition(",")[0]
                calls[command] = calls.get(command, 0) + int(first.removeprefix("calls="))
    cpu = float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])
    return Seen(calls, cpu, int(fields["used_memory"]))


def version(info: str) -> str:
    """Redis's version, of INFO's answer. Pure."""
    return next(
        (line.partition(":")[2] for line in info.splitlines() if line.startswith("redis_version:")), "?"
    )


async def version_of(link: Link) -> str:
    """Ask for its version."""
    return version(_text(await link.call(b"INFO", b"server")))


async def remove(link: Link, token: str) -> None:
    """Remove all keys with this in their names."""
    cursor = b"0"
    while True:
        cursor, keys = await link.call(b"SCAN", cursor, b"MATCH", f"*{token}*".encode(), b"COUNT", _AT_ONCE)
        if keys:
            await link.call(b"UNLINK", *keys)
        if int(cursor) == 0:
            return


def _text(answer: object) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
