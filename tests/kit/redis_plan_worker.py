"""One instance of a queue in Redis in a process of its own, for tests that kill and freeze it.

    python tests/kit/redis_plan_worker.py URL FILE LEASE SKEW MESSAGES

It appends a line to FILE for each send: the id, and by how many seconds the real clock of this machine, which
is Redis's too, was past what the payload says. Its own `time.time` is wrong by SKEW seconds. It puts MESSAGES
messages of its own, and writes `ready` when it has; it ends at the end of its standard input.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime

import trio

from localdelay import Message
from localdelay.redis_plan import RedisDelayQueue, RedisTuning, open_redis_delay_queue


def real_time() -> float:
    """The time of this machine, whatever `time.time` says."""
    return time.clock_gettime(time.CLOCK_REALTIME)


async def put_all(queue: RedisDelayQueue, count: int) -> None:
    async def put(number: int) -> None:
        due = real_time() + 0.5 + number % 20 / 10
        payload = f"{due:.6f}".encode()
        if number % 2:
            await queue.put(payload, at=datetime.fromtimestamp(due, UTC))
        else:
            # A little later than what the payload says, for the time that passes until the call.
            await queue.put(payload, delay=due - real_time() + 0.001)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(put, number)


async def main(url: str, path: str, lease: float, skew: float, count: int) -> None:
    actual = time.time
    time.time = lambda: actual() + skew
    lines = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def send(message: Message) -> None:
        late = real_time() - float(message.payload)
        os.write(lines, f"{message.id} {late:.6f}\n".encode())

    tuning = RedisTuning(lease=lease, claim_ahead=0.5, confirm_within=0.05)
    async with open_redis_delay_queue(send, url=url, workers=10, tuning=tuning) as queue:
        await put_all(queue, count)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
