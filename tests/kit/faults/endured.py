"""5,000 messages a second in real time, a fault every few seconds: nothing is lost, and nothing grows."""

from __future__ import annotations

import time
from random import Random

from tests.kit.faults.counting import count, in_redis
from tests.kit.faults.gauges import not_flat, said
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, directory, redis
from tests.kit.faults.victim import Orders
from tests.kit.faults.victims import Child, epoch, read_log
from tests.kit.servers.redis import RedisServer

# In batches: 5,000 a second sent one by one take most of a processor, and then nothing is caught up.
_WORKERS, _BATCH = 4, 100
_TASKS = 64
_END_TIMEOUT = 120.0
_KINDS = ("frozen", "throttled", "killed")


def real(fault: str, scale: Scale, *, journal: bool = False, rate: float = 5_000.0) -> Row:
    """Ten seconds, or five minutes."""
    draws, watch = scale.random(fault), Watch()
    seconds, pauses = (300.0, (2.0, 5.0)) if scale.long else (10.0, (0.8, 1.4))
    with redis() as server, directory() as place:
        url, log = server.fresh(), place / "accepted"
        orders = Orders(
            url=url,
            log=str(log),
            name="run",
            epoch=epoch(),
            seed=draws.randrange(1 << 30),
            ends="drained",
            seconds=seconds,
            rate=rate,
            tasks=_TASKS,
            workers=_WORKERS,
            batch=_BATCH,
            high=1.0,
            journal=str(place / "journal") if journal else None,
            sample_every=0.25,
        )
        kinds: list[str] = []
        with Child("tests.kit.faults.victim", orders) as victim:
            victim.wait_ready()
            ends = time.monotonic() + seconds - 1.0
            while time.monotonic() < ends:
                time.sleep(draws.uniform(*pauses))
                kinds.append(_KINDS[len(kinds) % len(_KINDS)])
                _break(server, url, kinds[-1], draws)
            told = victim.report(_END_TIMEOUT)
        accepted = read_log(log)
        counted = count(accepted, in_redis(server, url))
    # How many were put in the time is the machine's business, too, and is reported.
    return Row.of(
        fault,
        counted,
        watch,
        cycles=len(kinds),
        accepted=len(accepted),
        allowed_duplicates=_WORKERS * _BATCH * kinds.count("killed"),
        notes=f"{len(accepted) / seconds:,.0f} a second were put, late by {counted.latest:.1f} s at most; "
        f"{said(told['samples'])}",
        wrong=not_flat(told["samples"]),
    )


def _break(server: RedisServer, url: str, kind: str, draws: Random) -> None:
    if kind == "frozen":
        server.freeze()
        time.sleep(draws.uniform(0.1, 0.6))
        server.thaw()
    elif kind == "killed":
        server.kill()
        time.sleep(draws.uniform(0.0, 0.3))
        server.restart()
    else:
        with server.throttled(url):
            time.sleep(draws.uniform(0.1, 0.5))
