"""The scripts in `lua/`. Each is atomic, and touches the layout key alone, or the four keys of one shard.

    due     sorted set: ids that wait; score: when, in microseconds of Redis's own TIME
    leases  sorted set: ids that an instance has claimed; score: until when the claim holds
    bodies  hash: id to message, of both
    state   hash: bytes of all bodies, and the generation in which the shard was closed to puts

What others must know goes out as news on one channel: `shard time next-due next-end token`, which says when
the first message of the shard is due and when its first lease ends, at that time; -1 where there is none.
What is removed is named by its id and its execute-at: an instance that comes late, for it was frozen, must
not remove another message that was put under the same id meanwhile.

A Redis that is out of memory refuses a write that may take more, unless the script has written already; so
what claims, confirms and gives back begins with a removal. Only putting is refused.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import TypeAlias

Script: TypeAlias = tuple[bytes, bytes]
"""A script, and the name that Redis knows it by."""

_LUA = files(__package__) / "lua"


def _script(*names: str) -> Script:
    text = b"".join((_LUA / f"{name}.lua").read_bytes() for name in names)
    return text, sha1(text, usedforsecurity=False).hexdigest().encode()


PUT = _script("shard", "put")
TAKE = _script("shard", "take")
SHUT = _script("shard", "shut")
LOOK = _script("shard", "look")
LAYOUT = _script("layout")
