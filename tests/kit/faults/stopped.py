"""SIGTERM with a grace shorter than the delays, and no journal: what is not due goes to a delayed primary."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.kit.faults.counting import Arrival, arrival_of, count, in_broker
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch, broker, directory
from tests.kit.faults.victim import Orders
from tests.kit.faults.victims import Child, epoch, read_begun, read_log

_LOW, _HIGH = 0.2, 7.0
_PUTTING = 1.5
_GRACE = 3.0
_RATE = 400.0
_END_TIMEOUT = 150.0
_ANY_NUMBER = 1 << 30
_SLACK = 2.0
"""Seconds that a broker may be late, one more where its delays are whole seconds; it is read so long."""
_PATIENCE = 100.0
"""Seconds after which what is due and not there is lost; less, and a busy machine's delay would be a loss."""
_HAND_BACKS_IN_FLIGHT = 100
_SETTLE = 0.5


def sigterm(fault: str, scale: Scale, *, primary: str, cycles: int, second: bool = False) -> Row:
    """Stop a process that puts, `cycles` times; with `second`, once more in the middle of its drain."""
    draws, watch = scale.random(fault), Watch()
    accepted: dict[str, str] = {}
    arrivals: list[Arrival] = []
    meanwhile: list[Arrival] = []
    told_of: set[str] = set()
    begun: set[str] = set()
    wrong: list[str] = []
    sums = dict.fromkeys(("sent", "handed_back", "remaining"), 0)
    with broker(primary) as server, directory() as place, ThreadPoolExecutor(1) as reader:
        for cycle in range(cycles):
            url, log = server.fresh(), place / f"accepted{cycle}"
            orders = Orders(
                url=url,
                log=str(log),
                name=f"run{cycle}",
                epoch=epoch(),
                seed=draws.randrange(1 << 30),
                ends="stopped",
                rate=_RATE,
                low=_LOW,
                high=_HIGH,
                grace=_GRACE,
                hand_back=True,
            )
            reading = None
            with Child("tests.kit.faults.victim", orders) as victim:
                victim.wait_ready()
                if primary != "nats":
                    # It tells when a message came; with the others only who reads them meanwhile can know.
                    span = _PUTTING + _HIGH + _SLACK
                    reading = reader.submit(server.read, url, _ANY_NUMBER, span)
                time.sleep(draws.uniform(0.7, 1.0) * _PUTTING)
                victim.signal(signal.SIGTERM)
                if second:
                    time.sleep(draws.uniform(0.02, 0.3))
                    victim.signal(signal.SIGTERM)
                all_due = time.monotonic() + _HIGH
                told = victim.report(_END_TIMEOUT)
            logged = read_log(log)
            names = {id: key for key, id in logged.items()}
            remaining = {names.get(id, id) for id in told["remaining"]}
            if told["sent"] + told["handed_back"] + len(remaining) < 1 or told["pending"] != len(remaining):
                wrong.append(f"the report does not add up: {told}")
            # How many remain is the machine's business: what came due at the end of the grace was cut off in
            # its send, and one that is busy does not get all hand-backs done. They are reported.
            if not (second or (told["sent"] and told["handed_back"])):
                wrong.append(f"{len(remaining)} remained although the primary takes everything")
            for name in sums:
                sums[name] += len(remaining) if name == "remaining" else told[name]
            accepted |= logged
            begun |= read_begun(log)  # the signal cuts a producer off between a put and its line
            told_of |= remaining
            if reading is not None:
                meanwhile += map(arrival_of, reading.result())
            # By their number alone nobody can tell when all are there: some of `remaining` may come too.
            time.sleep(max(0.0, all_due + _SETTLE - time.monotonic()))
            arrivals += in_broker(server, url, len(logged.keys() - remaining), _PATIENCE)
    counted = count(accepted, arrivals, told=told_of, begun=begun)
    early = max(counted.early, count(accepted, meanwhile).early)  # who has read again knows the later time
    # Of a hand-back that is cut off nobody knows whether it was taken: it is in `remaining`, and may arrive.
    if counted.both > cycles * (orders.workers + _HAND_BACKS_IN_FLIGHT):
        wrong.append(f"{counted.both} remained, and arrived")
    return Row.of(
        fault,
        counted,
        watch,
        cycles=cycles,
        accepted=len(accepted),
        early=early,
        notes=", ".join(f"{value} {name.replace('_', ' ')}" for name, value in sums.items())
        + f", {counted.both} of these arrived" * bool(counted.both),
        wrong=wrong,
    )
