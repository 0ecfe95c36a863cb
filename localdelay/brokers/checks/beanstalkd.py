"""A beanstalkd: does it take jobs, and keep them over a restart."""

from __future__ import annotations

from collections.abc import Mapping

import greenstalk
import trio

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import Finding


async def look(where: Address) -> list[Finding]:
    """Look at the server."""
    stats = await trio.to_thread.run_sync(_stats, where, abandon_on_cancel=True)
    return findings(stats)


def _stats(where: Address) -> Mapping[str, object]:
    try:
        with greenstalk.Client((where.host, where.port)) as client:
            stats: Mapping[str, object] = client.stats()
            return stats
    except OSError:
        raise
    except Exception as error:  # the client expects a beanstalkd: it asserts, takes apart, and reads numbers
        raise ConnectionError("what it says is none of beanstalkd's") from error


def findings(stats: Mapping[str, object]) -> list[Finding]:
    """What its statistics come to. Pure."""
    found = [Finding("tube", True, "made by the first job, where it is not there yet")]
    if f"{stats.get('draining')}" == "true":
        found.append(Finding("jobs", False, "it is draining, and takes none", "restart it"))
    else:
        found.append(Finding("jobs", True, "it takes them"))
    if stats.get("binlog-current-index"):
        found.append(Finding("confirms", True, "a binlog (-b); -f says how soon, -f 0 before it confirms"))
    else:
        said = "in memory alone: a restart loses what it has confirmed"
        found.append(Finding("confirms", False, said, "start it with -b DIRECTORY -f 0"))
    return [*found, Finding("native delay", True, "whole seconds")]
