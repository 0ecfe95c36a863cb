"""A relay whose messages wait in Redis."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from localdelay.relay.run import check
from localdelay.relay.settings import Settings
from tests.kit.redis_queues import until
from tests.kit.relay_stage import Script, Sink, Stage
from tests.kit.servers.redis import RedisServer


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_lines_wait_in_redis(stage: Stage, own_redis: RedisServer) -> None:
    """Each is sent when it is due, with all that it says; the relay ends when Redis has no more."""
    lines = [
        {"payload": "slow", "delay": 1.0},
        {"payload_base64": "/w==", "delay": 0.1, "id": "chosen", "headers": {"k": "v"}},
        {"wrong": 1},
    ]
    sink = Sink()
    script = Script("\n".join(map(json.dumps, lines)).encode())
    began = trio.current_time()
    outcome = await stage.relay(script, sink, format="jsonl", hold=own_redis.fresh(), delay=None)
    assert sink.payloads == [b"\xff", b"slow"]
    assert sink.got[0][1].id == "chosen"
    assert dict(sink.got[0][1].headers) == {"k": "v"}
    assert sink.got[1][0] - began >= 1.0
    assert (outcome.lines, outcome.wrong, outcome.unsent, outcome.input_ended) == (3, 1, 0, True)
    assert outcome.queue is not None
    assert (outcome.queue.sent, outcome.queue.at_risk) == (2, 0)


async def test_a_last_line_that_redis_can_never_hold_is_wrong(stage: Stage, own_redis: RedisServer) -> None:
    """And nothing more: it is not given again when the relay ends."""
    script = Script(b"first\n" + bytes(1024 * 1024 + 1) + b"\n")
    outcome = await stage.relay(script, Sink(), hold=own_redis.fresh(), delay=0.0, max_line=1 << 21)
    assert (outcome.lines, outcome.wrong, outcome.unsent, outcome.input_ended) == (2, 1, 0, True)


async def test_a_stopped_relay_leaves_its_messages_in_redis(stage: Stage, own_redis: RedisServer) -> None:
    """What comes due within the grace is sent; the next relay sends the rest, and nothing is in a file."""
    hold = own_redis.fresh()
    sink = Sink()

    async def stop() -> None:
        stage.stop(signal.SIGTERM)

    script = Script(b"".join(b"%d\n" % number for number in range(20)), stop, ends=False)
    outcome = await stage.relay(script, sink, hold=hold, delay=2.0, grace=0.2)
    assert (sink.payloads, outcome.lines, outcome.unsent, outcome.held) == ([], 20, 0, 20)
    assert not stage.unsent.exists()
    outcome = await stage.relay(Script(b"more\n"), sink, hold=hold, delay=0.0)
    assert outcome.held == 0
    assert sorted(sink.payloads) == sorted([b"more", *(b"%d" % number for number in range(20))])


async def test_lines_wait_while_redis_is_gone(stage: Stage, own_redis: RedisServer) -> None:
    """The input waits, and each line arrives once; what it has not taken when stopped is in the file."""
    sink = Sink()
    hold = own_redis.fresh()

    async def later(do: Callable[[], object]) -> None:
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(do)

    async with trio.open_nursery() as nursery:

        async def outage() -> None:
            await until(lambda: sink.payloads == [b"a"] and not stage.watched.queue.statistics().unconfirmed)
            await trio.to_thread.run_sync(own_redis.kill)
            nursery.start_soon(later, own_redis.restart)

        await stage.relay(Script(b"a\n", outage, b"b\nc\n"), sink, hold=hold, delay=0.1)
    assert sink.payloads == [b"a", b"b", b"c"]

    async with trio.open_nursery() as nursery:

        async def end() -> None:
            await trio.to_thread.run_sync(own_redis.kill)
            nursery.start_soon(later, lambda: trio.from_thread.run_sync(stage.stop, signal.SIGTERM))

        outcome = await stage.relay(Script(end, b"d\ne\n", ends=False), sink, hold=hold, delay=0.1, grace=0.1)
    assert (outcome.lines, outcome.unsent, outcome.held) == (2, 2, None)
    assert [json.loads(line)["payload"] for line in stage.unsent.read_text().splitlines()] == ["d", "e"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hold": "http://h/q"}, "hold must begin with one of redis://"),
        ({"hold": "redis://h/"}, "hold must end with"),
    ],
)
def test_a_wrong_url_is_refused(wrong: dict[str, str], says: str) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=says):
        check(Settings(to="nats://h:1/s", delay=1.0, **wrong))  # type: ignore[arg-type]


def test_there_is_nothing_to_hand_back() -> None:
    """What waits in Redis is safe there."""
    with pytest.raises(ValueError, match="hand_back is for messages in memory"):
        Settings(to="nats://h:1/s", delay=1.0, hold="redis://h/q", hand_back=True)
