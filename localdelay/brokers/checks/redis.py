"""A Redis: does it take writes, keep what it has taken, and is the key a stream."""

from __future__ import annotations

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import NO_DELAY, Finding
from localdelay.brokers.redis_line import reached
from localdelay.brokers.redis_masters import masters_of


async def look(where: Address) -> list[Finding]:
    """Look at the server, and at the key of the stream."""
    masters, stream = masters_of(where)
    place = await masters.owner(stream.encode())
    async with reached(place, fit=False) as line:
        told, kind = await line.told(), await line.asked(b"TYPE", stream.encode())
    return findings(
        told, kind and kind.decode(), stream, may_evict=place.evicting, most=where.count("max_length", 0)
    )


def findings(
    told: dict[str, str], kind: str | None, stream: str, *, may_evict: bool, most: int
) -> list[Finding]:
    """What the server's INFO and the type of the key come to. Pure."""
    if told.get("role") == "slave":
        return [Finding("role", False, "a replica, which takes no writes", "give the primary's address")]
    policy = told.get("maxmemory_policy")
    found = [Finding("role", True, "a primary")] if told else []
    if kind is None:
        found.append(Finding("stream", None, "this user may not see what the key holds"))
    elif kind in ("stream", "none"):
        there = "a stream" if kind == "stream" else "not there yet: the first message makes it"
        found.append(Finding("stream", True, there))
    else:
        change = f"publish to another key, or remove this one: DEL {stream}"
        found.append(Finding("stream", False, f"the key holds a {kind}, and no stream", change))
    if policy is None:
        found.append(Finding("eviction", None, "it does not say what its maxmemory-policy is"))
    elif policy == "noeviction":
        found.append(Finding("eviction", True, "noeviction: it refuses when it is full"))
    else:
        said = f"{policy}: it may evict what it has confirmed"
        change = "" if may_evict else "CONFIG SET maxmemory-policy noeviction (and in redis.conf)"
        found.append(Finding("eviction", None if may_evict else False, said, change))
    if "aof_enabled" not in told:
        found.append(Finding("confirms", None, "it does not say whether it has anything on disk"))
    elif told["aof_enabled"] == "0":
        said = "in memory alone: a restart loses what it has confirmed"
        change = "CONFIG SET appendonly yes (and in redis.conf)"
        found.append(Finding("confirms", False, said, change))
    else:
        found.append(Finding("confirms", True, "an append-only file; appendfsync says how soon"))
    if told.get("cluster_enabled") == "1":
        if told.get("connected_slaves", "0") != "0":
            found.append(Finding("replica", True, "there is one, which takes over where this master dies"))
        else:
            change = "redis-cli --cluster add-node HOST:PORT NODE --cluster-slave"
            found.append(Finding("replica", False, "none: without this master nothing is taken", change))
    if most:
        said = f"?max_length={most}: Redis drops the oldest entries, read or not"
        found.append(Finding("overflow", None, said))
    return [*found, NO_DELAY]
