"""An nsqd: does it let this client in. Of how it keeps what it takes it says nothing on this port."""

from __future__ import annotations

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.nsq import driver_at
from localdelay.brokers.publisher import open_publisher


async def look(where: Address) -> list[Finding]:
    """Look whether it answers."""
    driver = driver_at(where)
    async with open_publisher(driver):
        pass
    said = "in memory up to --mem-queue-size, which can't be seen; 0 with --sync-every=1 keeps all"
    delay = "none that outlives a restart; ?delay=native asks for it all the same"
    if driver.native_delay:
        delay = "asked for, and kept in memory alone: it comes at once, or never, after a restart"
    return [
        Finding("topic", True, "made by the first message, where it is not there yet"),
        Finding("confirms", None, said),
        Finding("native delay", None, delay),
    ]
