"""A NATS: is there a stream, and does it keep, refuse and delay what it should."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import nats.errors
import trio
from nats.aio.client import Client

from localdelay.brokers.address import Address, host_and_port
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.publisher import in_a_line

_TIMEOUT = 5.0
_AT_ONCE: dict[str, Any] = {
    "allow_reconnect": False,
    "connect_timeout": 2,
    "max_reconnect_attempts": 1,
    "reconnect_time_wait": 0.1,
}
_SCHEDULES_SINCE = (2, 12)


async def look(where: Address) -> list[Finding]:
    """Look at the server and at the stream."""

    def run() -> tuple[str, dict[str, Any] | None]:
        # A loop of its own kind: where trio-asyncio was imported, the policy would make one of that.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(_ask(where))

    version, config = await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    return findings(where.target, version, config)


async def _ask(where: Address) -> tuple[str, dict[str, Any] | None]:
    """The server's version, and what the stream of the subject is set to.

    None: there is no stream; nothing: there is no JetStream.
    """
    client = Client()
    servers = [f"nats://{host_and_port(host, port)}" for host, port in where.hosts]
    user: dict[str, Any] = {}
    if where.username and where.password is None:
        user = {"token": where.username}
    elif where.username:
        user = {"user": where.username, "password": where.password}

    trouble: list[Exception] = []

    async def note(error: Exception) -> None:
        trouble.append(error)

    ask = partial(_request, client)
    try:
        await client.connect(servers, error_cb=note, **_AT_ONCE, **user)
        version = str(client._server_info["version"])  # noqa: SLF001 (the public one drops what is no release)
        names = (await ask("NAMES", {"subject": where.target})).get("streams") or []
        config = (await ask(f"INFO.{names[0]}", {})).get("config") if names else None
    except nats.errors.NoRespondersError:
        return version, {}
    except nats.errors.NoServersError as error:
        raise ConnectionError(in_a_line(trouble[-1] if trouble else error)) from None
    except nats.errors.TimeoutError:
        raise ConnectionError("it does not say which streams there are: may this user ask?") from None
    except (nats.errors.Error, OSError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from None
    finally:
        await client.close()
    return version, config


async def _request(client: Client, verb: str, content: dict[str, Any]) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.STREAM.{verb}", json.dumps(content).encode(), timeout=_TIMEOUT)
    said: dict[str, Any] = json.loads(answer.data)
    return said


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
    if tuple(int(part) for part in version.split("-")[0].split(".")[:2]) < _SCHEDULES_SINCE:
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
    words, parts = pattern.split("."), subject.split(".")
    if words[-1] == ">":
        words, parts = words[:-1], parts[: len(words) - 1] if len(parts) >= len(words) else []
    return len(words) == len(parts) and all(
        word in ("*", part) for word, part in zip(words, parts, strict=True)
    )
