"""A process that puts is killed, or stopped, at random moments, again and again on one journal file."""

from __future__ import annotations

import signal
import time
from typing import Literal

from tests.kit.faults.counting import Count, count, in_redis
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, directory, redis
from tests.kit.faults.victim import NOWAIT_TASKS, Orders
from tests.kit.faults.victims import Child, epoch, read_begun, read_cancelled, read_log
from tests.kit.servers.redis import RedisServer

_WORKERS, _WORKERS_OF_BATCHES = 20, 4
_TASKS = 16
_DRAIN_TIMEOUT = 120.0
_GRACE = 0.3


def killed(
    fault: str,
    scale: Scale,
    *,
    kills: int,
    by: signal.Signals = signal.SIGKILL,
    batch: int | None = None,
    journal: bool = True,
    durability: Literal["os", "fsync"] = "fsync",
    rate: float = 2_000.0,
    low: float = 0.0,
    high: float = 2.0,
) -> Row:
    """So many kills, each 0.3 to 1.5 s after the queue was opened; then a run that drains all.

    By SIGTERM it has a grace shorter than most delays, and nobody to hand back to: the rest is spooled.
    Without a journal it reports what was lost, which shows that it can.
    """
    draws, watch, wrong = scale.random(fault), Watch(), []
    workers = _WORKERS if batch is None else _WORKERS_OF_BATCHES
    with redis() as server, directory() as place:
        url, log = server.fresh(), place / "accepted"

        def orders(name: str, ends: str, seconds: float) -> Orders:
            return Orders(
                url=url,
                log=str(log),
                name=name,
                epoch=epoch(),
                seed=draws.randrange(1 << 30),
                ends=ends,
                seconds=seconds,
                rate=rate,
                tasks=_TASKS,
                low=low,
                high=high,
                workers=workers,
                batch=batch,
                grace=_GRACE if ends == "stopped" else None,
                journal=str(place / "journal") if journal else None,
                durability=durability,
                catch_up_rate=draws.choice([None, 5_000.0]) if journal else None,
                cancels=True,
            )

        for number in range(kills):
            ends = "drained" if by == signal.SIGKILL else "stopped"
            with Child("tests.kit.faults.victim", orders(f"run{number}", ends, 1e9)) as victim:
                victim.wait_ready()
                time.sleep(draws.uniform(0.3, 1.5))
                if by == signal.SIGKILL:
                    _kill(victim, server, draws.uniform(0.1, 0.3) if number % 3 == 2 else 0.0)
                    continue
                victim.signal(by)
                told = victim.report(_DRAIN_TIMEOUT)
                if told["remaining"] or told["pending"] or not told["spooled"]:
                    wrong.append(f"what is left is to be spooled: {told}")
        with Child("tests.kit.faults.victim", orders("last", "drained", 0.0)) as victim:
            victim.wait_ready()
            told = victim.report(_DRAIN_TIMEOUT)
        accepted = read_log(log)
        cancelled, in_doubt = read_cancelled(log)
        counted = count(
            {key: id for key, id in accepted.items() if key not in in_doubt},
            in_redis(server, url),
            told=cancelled,
            begun=read_begun(log),
        )
    return Row.of(
        fault,
        counted,
        watch,
        cycles=kills,
        accepted=len(accepted),
        allowed_duplicates=workers * kills * (batch or 1),
        notes=f"{counted.cut_off} arrived whose put was cut off; of {len(cancelled)} that were cancelled "
        f"{counted.both} arrived; {told['recovered']} recovered in the end",
        wrong=(*wrong, *_too_many(counted, kills), *_left(told)),
    )


def _kill(victim: Child, server: RedisServer, frozen: float) -> None:
    """With a broker that has been frozen for so long, all workers are in the middle of a send."""
    if frozen:
        server.freeze()
        time.sleep(frozen)
    victim.kill()
    if frozen:
        server.thaw()


def _too_many(counted: Count, kills: int) -> list[str]:
    # One put of each task may be under way at a kill, and 20 that were not flushed of those that do not wait.
    most = kills * (_TASKS - NOWAIT_TASKS + NOWAIT_TASKS * 20)
    wrong = [f"{counted.cut_off} arrived whose put was cut off"] * (counted.cut_off > most)
    # It is forgotten with the next commit: what was cancelled in the moment of a kill may come back.
    return wrong + [f"{counted.both} arrived that were cancelled"] * (counted.both > kills)


def _left(told: dict[str, object]) -> list[str]:
    left = {name: told[name] for name in ("spooled", "dead", "pending") if told[name]}
    return [f"the last run left something: {left}"] * bool(left)
