"""Which shard a message belongs to, what its keys are called, and how many shards there are. Pure.

Every key of a shard has the hash tag `{name:shard}`, so that on a Redis Cluster they lie in one slot. An id
says which shard it belongs to, for a given number of shards.

Ids that localdelay makes (a prefix of the process and a number) go to shards in runs of 256: what one
instance puts within a short time lies in one shard, and one script puts, claims or confirms all of it. An id
that the caller chose goes to a shard of its own.
"""

from __future__ import annotations

import re
import zlib
from functools import cache

import attrs

from localdelay import arguments

RUN = 256
"""So many messages in a row of one instance go to the same shard."""
MOST_SHARDS = 16384
MOST_FORMER = 8

_OURS = re.compile(r"([0-9a-f]{12})-([1-9][0-9]{0,15})")


@attrs.frozen
class Layout:
    """How many shards there are. Each change has a number of its own, the generation."""

    generation: int
    shards: int
    """New messages go to the shards from 0 to this."""
    top: int
    """The shards from 0 to this may hold messages: more than `shards` while some are emptied."""
    former: tuple[int, ...] = ()
    """What `shards` was before, latest first, each once: a message may still be where it was put then."""

    @classmethod
    def read(cls, fields: dict[bytes, bytes]) -> Layout | None:
        """What the layout key says; None where there is none."""
        if b"shards" not in fields:
            return None
        former = tuple(int(count) for count in fields.get(b"former", b"").split(b",") if count)
        return cls(int(fields[b"generation"]), int(fields[b"shards"]), int(fields[b"top"]), former)

    def fields(self) -> tuple[int, int, int, bytes]:
        """What the layout key is to say."""
        return self.generation, self.shards, self.top, ",".join(map(str, self.former)).encode()

    def changed(self, shards: int) -> Layout:
        """The layout with another number of shards."""
        former = [count for count in dict.fromkeys((self.shards, *self.former)) if count != shards]
        top = max(self.top, self.shards, shards)
        return Layout(self.generation + 1, shards, top, tuple(former[:MOST_FORMER]))

    @property
    def served(self) -> range:
        """The shards that may hold messages."""
        return range(self.top)

    @property
    def retiring(self) -> range:
        """The shards that are to be emptied."""
        return range(self.shards, self.top)

    def shards_of(self, id: str) -> list[int]:
        """Where a message with this id may be, the likeliest first."""
        return [*dict.fromkeys(shard_of(id, count) for count in (self.shards, *self.former))]


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


def check_shards(shards: int) -> int:
    """A number of shards."""
    if arguments.count("shards", shards) > MOST_SHARDS:
        raise ValueError(f"shards must be from 1 to {MOST_SHARDS}, not {shards}")
    return shards


class Names:
    """The names of the keys of a group of shards."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.layout, self.channel = self._keys(name, "layout", "news")

    @cache  # noqa: B019 (these live as long as their queue)
    def of(self, shard: int) -> list[bytes]:
        """The keys of a shard: due, leases, bodies, state."""
        return self._keys(f"{self._name}:{shard}", "due", "leases", "bodies", "state")

    def _keys(self, tag: str, *parts: str) -> list[bytes]:
        return [f"localdelay:{{{tag}}}:{part}".encode() for part in parts]
