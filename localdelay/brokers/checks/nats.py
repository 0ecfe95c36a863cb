"""A NATS: is there a stream, and does it keep, refuse and delay what it should."""

from __future__ import annotations

import re
from typing import Any

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.nats import driver_at, has_schedules
from localdelay.brokers.outbox import Outbox
from localdelay.nurseries import bare_nursery


async def look(where: Address) -> list[Finding]:
    """Look at the server and at the stream."""
    outbox = Outbox(lambda error: error, 0, 0)
    async with driver_at(where).connect(outbox) as connection, bare_nursery() as nursery:
        nursery.start_soon(connection.lost)
        try:
            config: dict[str, Any] | None = {}  # there is no JetStream
            if (names := await connection.ask("STREAM.NAMES", {"subject": where.target})) is not None:
                name = next(iter(names.get("streams") or ()), None)  # None: there is no stream
                config = (await connection.ask(f"STREAM.INFO.{name}", {})).get("config") if name else None
        except trio.TooSlowError:
            raise ConnectionError("it does not say which streams there are: may this user ask?") from None
        nursery.cancel_scope.cancel()
    return findings(where.target, f"{connection.info.get('version')}", config)


def findings(subject: str, version: str, config: dict[str, Any] | None) -> list[Finding]:
    """What a server's version and a stream's settings come to. Pure."""
    delayed = f"{subject}.delayed.*"
    subjects = f"--subjects '{subject},{delayed}'"
    if config is None:
        change = f"nats stream add ORDERS {subjects} --storage file --allow-msg-schedules"
        return [Finding("stream", False, f"none holds {subject}", change)]
    if not config:
        return [Finding("stream", False, "the server has no JetStream", "start it with -js, or configure it")]
    name, schedules = config["name"], config.get("allow_msg_schedules")
    edit = f"nats stream edit {name}"
    found = [Finding("stream", True, f"{name} holds {subject}")]
    if config.get("no_ack"):
        found.append(Finding("confirms", False, "it confirms nothing (no_ack)", "make it anew, with --ack"))
    elif config.get("storage") == "memory":
        said = "in memory alone: a restart loses what it has confirmed"
        found.append(Finding("confirms", False, said, f"make {name} anew, with --storage file"))
    else:
        found.append(Finding("confirms", True, "on disk; the server's sync_interval says how soon"))
    limits = [limit for limit in ("max_msgs", "max_bytes") if config.get(limit, -1) > 0]
    if not limits:
        found.append(Finding("overflow", True, "the stream has no limit"))
    elif config.get("discard") == "new":
        found.append(Finding("overflow", True, "it refuses when it is full (discard new)"))
    else:
        said = f"it drops the oldest at its {limits[0]} (discard old)"
        change = "--discard new"
        if schedules:  # NATS knows no stream that has both
            said, change = f"{said}: with schedules it can't refuse", "--max-msgs=-1 --max-bytes=-1"
        found.append(Finding("overflow", False, said, f"{edit} {change}"))
    if config.get("max_age"):
        said = f"messages go after {config['max_age'] / 1e9:g} s, also those that wait for their time"
        found.append(Finding("age", None, said))
    if not has_schedules(version):
        found.append(Finding("native delay", None, f"NATS {version} has none: schedules came with 2.12"))
    elif not schedules:
        said = "the stream allows no schedules"
        needs = " --discard old, and no limits" if config.get("discard") == "new" else ""
        found.append(Finding("native delay", False, said, f"{edit} --allow-msg-schedules{needs}"))
    elif not any(matches(one, f"{subject}.delayed.0") for one in config.get("subjects") or ()):
        found.append(Finding("native delay", False, f"the stream lacks {delayed}", f"{edit} {subjects}"))
    else:
        found.append(Finding("native delay", True, "schedules in the stream"))
    return found


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that a pattern stands for. Pure."""
    expression = re.escape(pattern).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(expression, subject) is not None
