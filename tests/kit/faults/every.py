"""All faults, by name, with how much of each is done."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from tests.kit.faults import broken, cut, endured, filled, killed, soaked, stepped, stopped
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch
from tests.kit.servers.process import NotInstalled

_AT_ONCE = 5

Fault: TypeAlias = Callable[[str, Scale], Row]


def _cycles(fault: Callable[..., Row], short: int, long: int, name: str = "cycles") -> Fault:
    def sized(title: str, scale: Scale) -> Row:
        return fault(title, scale, **{name: long if scale.long else short})

    return sized


_HAPPENINGS: dict[str, tuple[broken.Happening, int, int]] = {
    "killed": (broken.killed, 3, 20),
    "frozen": (broken.frozen, 2, 20),
    "throttling": (broken.throttling, 3, 20),
    "refusing": (broken.refusing, 3, 20),
}

LIGHT: dict[str, Fault] = {
    "SIGTERM, RabbitMQ": _cycles(partial(stopped.sigterm, primary="amqp"), 1, 5),
    "SIGTERM, NATS": _cycles(partial(stopped.sigterm, primary="nats"), 1, 10),
    "SIGTERM, beanstalkd": _cycles(partial(stopped.sigterm, primary="beanstalkd"), 1, 5),
    "SIGTERM twice, NATS": _cycles(partial(stopped.sigterm, primary="nats", second=True), 1, 10),
    **{
        f"Redis {name}{', journal' if journal else ''}": _cycles(
            partial(broken.broken, happening=happening, journal=journal), short, long
        )
        for name, (happening, short, long) in _HAPPENINGS.items()
        for journal in (False, True)
    },
    "network cut, Redis": _cycles(partial(cut.cut, name="redis", journal=False), 6, 60),
    "network cut, Redis, journal": _cycles(partial(cut.cut, name="redis", journal=True), 6, 60),
    "network cut, NATS": _cycles(partial(cut.cut, name="nats", journal=False), 6, 60),
    "network cut, RabbitMQ": _cycles(partial(cut.cut, name="amqp", journal=False), 6, 60),
    "network cut, beanstalkd": _cycles(partial(cut.cut, name="beanstalkd", journal=False), 6, 60),
    "connections cut, Kafka": _cycles(partial(cut.cut, name="kafka", journal=False), 3, 30),
    "clock stepped": _cycles(partial(stepped.under_way, journal=False), 3, 30),
    "clock stepped, journal": _cycles(partial(stepped.under_way, journal=True), 3, 30),
    "clock stepped between runs": stepped.between_runs,
}
"""These wait most of the time."""

HEAVY: dict[str, Fault] = {
    "kill -9": _cycles(killed.killed, 6, 50, "kills"),
    "kill -9, durability os": _cycles(partial(killed.killed, durability="os"), 2, 50, "kills"),
    "kill -9, batches": _cycles(partial(killed.killed, batch=100), 2, 50, "kills"),
    "SIGTERM, journal": _cycles(partial(killed.killed, by=signal.SIGTERM), 2, 15, "kills"),
    "large payloads": filled.too_large,
    "producer too fast": filled.too_fast,
    "soak, virtual hour": soaked.virtual,
    "soak, 5,000/s": endured.real,
    "soak, 5,000/s, journal": partial(endured.real, journal=True),
}
"""These take a processor."""

FAULTS = LIGHT | HEAVY


def run(name: str, scale: Scale) -> Row:
    """Do one of them. What breaks in it is its row's. Raises `NotInstalled`."""
    watch = Watch()
    try:
        return FAULTS[name](name, scale)
    except NotInstalled:
        raise
    except Exception as error:  # noqa: BLE001 (it is in the table)
        traceback.print_exception(error)
        return Row(fault=name, cycles=0, seconds=watch.seconds, wrong=(f"{type(error).__name__}: {error}",))


def run_all(names: Iterable[str], scale: Scale) -> Iterator[Row]:
    """Do several, the light ones five at a time. The rows are in the order of the names."""
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        light = {name: threads.submit(run, name, scale) for name in names if name in LIGHT}
        rows = {name: future.result() for name, future in light.items()}
    for name in names:
        yield rows[name] if name in rows else run(name, scale)
