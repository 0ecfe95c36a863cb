"""Which shard a message belongs to, and what its keys are called. Pure.

Every key of a shard has the hash tag `{name:shard}`, so that on a Redis Cluster they lie in one slot, and
each script deals with one shard alone. An id says which shard it belongs to, for a given number of shards.

Ids that localdelay makes (a prefix of the process and a number) go to shards in runs of 256: what one
instance puts within a short time lies in one shard, and one script puts, claims or confirms all of it. An id
that the caller chose goes to a shard of its own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import attrs

RUN = 256
"""So many messages in a row of one instance go to the same shard."""
LARGEST_ID = 512
"""Bytes."""
MOST_SHARDS = 16384
MOST_FORMER = 8

_OURS = re.compile(r"([0-9a-f]{12})-([1-9][0-9]{0,15})")
_NAME = re.compile(r"[^\s{}\x00-\x1f\x7f]{1,200}")


@attrs.frozen
class Layout:
    """How many shards there are. Each change has a number of its own, the generation."""

    generation: int
    shards: int
    """New messages go to the shards from 0 to this."""
    top: int
    """The shards from 0 to this may hold messages: more than `shards` while some are emptied."""
    former: tuple[int, ...] = ()
    """What `shards` was before, latest first: a message may still be where it was put then."""

    @property
    def served(self) -> range:
        """The shards that may hold messages."""
        return range(max(self.shards, self.top))

    @property
    def retiring(self) -> range:
        """The shards that are to be emptied."""
        return range(self.shards, max(self.shards, self.top))

    def shards_of(self, id: str) -> list[int]:
        """Where a message with this id may be, the likeliest first."""
        counts = dict.fromkeys((self.shards, *self.former))
        return [*dict.fromkeys(shard_of(id, count) for count in counts)]


def shard_of(id: str, shards: int) -> int:
    """The shard that a message with this id is put into when there are so many."""
    ours = _OURS.fullmatch(id)
    key = f"{ours[1]}-{int(ours[2]) // RUN}" if ours else id
    return zlib.crc32(key.encode()) % shards


def lead(token: str, shard: int) -> float:
    """How eager an instance is to claim from a shard: from a quarter to three quarters.

    It claims so large a part of the claim-ahead time before a message is due. So each shard has, without a
    word between them, one instance that comes first, and others that come when that one does not.
    """
    return 0.25 + 0.5 * zlib.crc32(f"{shard}:{token}".encode()) / 2**32


def check_name(name: str) -> str:
    """The name of a group of shards: text without spaces and braces, at most 200 characters."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError("name must be 1 to 200 characters without spaces and braces")
    return name


def check_shards(shards: int) -> int:
    """A number of shards."""
    if isinstance(shards, bool) or not isinstance(shards, int):
        raise TypeError(f"shards must be a whole number, not {type(shards).__name__}")
    if not 1 <= shards <= MOST_SHARDS:
        raise ValueError(f"shards must be from 1 to {MOST_SHARDS}, not {shards}")
    return shards


class Names:
    """The names of the keys of one group of shards."""

    def __init__(self, name: str) -> None:
        self._name = check_name(name)
        self.layout = f"localdelay:{{{name}}}:layout".encode()
        self.channel = f"localdelay:{{{name}}}:news".encode()

    def of(self, shard: int) -> tuple[bytes, bytes, bytes, bytes]:
        """The keys of a shard: due, leases, bodies, state."""
        stem = f"localdelay:{{{self._name}:{shard}}}:"
        due, leases, bodies, state = (f"{stem}{part}".encode() for part in _PARTS)
        return due, leases, bodies, state


_PARTS = ("due", "leases", "bodies", "state")


def layout_of(fields: dict[bytes, bytes]) -> Layout | None:
    """What the layout key says; None where there is none."""
    if b"shards" not in fields:
        return None
    former = fields.get(b"former", b"").split(b",")
    return Layout(
        generation=int(fields[b"generation"]),
        shards=int(fields[b"shards"]),
        top=int(fields[b"top"]),
        former=tuple(int(count) for count in former if count),
    )


def former_text(counts: Iterable[int]) -> bytes:
    """The numbers of shards that there were, as the layout key has them: the latest, each once."""
    return ",".join(str(count) for count in [*dict.fromkeys(counts)][:MOST_FORMER]).encode()
