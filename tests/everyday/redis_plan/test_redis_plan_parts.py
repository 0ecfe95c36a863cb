"""The pure parts of plan 1: ids and shards, messages as Redis holds them, the two clocks, the layout."""

from __future__ import annotations

import math
from binascii import crc_hqx
from collections import Counter

import pytest
import trio
from coredis.exceptions import MovedError
from hypothesis import given
from hypothesis import strategies as st

from localdelay import Throttled
from localdelay.brokers.redis_line import Place
from localdelay.brokers.redis_masters import Masters, Nodes, slot_of
from localdelay.redis_plan import RedisUnreachable
from localdelay.redis_plan.bodies import OVERHEAD, decode, encode, note
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.cluster import Cluster
from localdelay.redis_plan.keys import (
    MOST_FORMER,
    MOST_SHARDS,
    RUN,
    Layout,
    Names,
    check_shards,
    lead,
    shard_of,
)
from localdelay.redis_plan.link import Link


def test_ids_of_one_run_share_a_shard() -> None:
    """What an instance puts in a row lies together, and the next run elsewhere: all shards get their part."""
    runs = [{shard_of(f"0123456789ab-{RUN * run + i}", 16) for i in range(RUN)} for run in range(1, 400)]
    assert all(len(shards) == 1 for shards in runs)
    parts = Counter(shards.pop() for shards in runs)
    assert len(parts) == 16
    assert max(parts.values()) < 3 * min(parts.values())


@given(st.text(min_size=1), st.integers(1, MOST_SHARDS))
def test_a_shard_follows_from_the_id(id: str, shards: int) -> None:
    """The same id goes to the same shard, which is one of those that there are."""
    assert shard_of(id, shards) == shard_of(id, shards) < shards


def test_ids_that_callers_chose_are_spread() -> None:
    """Ids of their own that end with a number do not share a shard."""
    assert len({shard_of(f"order-{number}", 16) for number in range(200)}) == 16


def test_an_id_may_be_in_several_places_after_changes() -> None:
    """The likeliest is where it would be put now; then come the places of before, each once."""
    layout = Layout(4, 4, 16, (16, 4, 2))
    shards = layout.shards_of("order-17")
    assert shards[0] == shard_of("order-17", 4)
    assert set(shards) == {shard_of("order-17", count) for count in (4, 16, 2)}
    assert len(shards) == len(set(shards))


def test_a_changed_layout_serves_what_was_there() -> None:
    """Fewer shards: those before are served on, and the number of before is remembered."""
    fewer = Layout(3, 16, 16, (4,)).changed(2)
    assert fewer == Layout(4, 2, 16, (16, 4))
    assert fewer.served == range(16)
    assert fewer.retiring == range(2, 16)
    more = Layout(4, 2, 2, (16, 4)).changed(16)
    assert more == Layout(5, 16, 16, (2, 4))
    assert not more.retiring


def test_the_layout_remembers_a_bounded_number_of_changes() -> None:
    """However often it changes."""
    layout = Layout(1, 1, 1)
    for shards in range(2, 40):
        layout = layout.changed(shards)
    assert len(layout.former) == MOST_FORMER
    assert layout.former[0] == 38


def test_the_layout_comes_back_as_it_was_written() -> None:
    """From the fields of its key; where there is no key there is no layout."""
    names = (b"generation", b"shards", b"top", b"former")
    for layout in (Layout(3, 2, 16, (16, 4)), Layout(3, 2, 16)):
        written = [value if isinstance(value, bytes) else b"%d" % value for value in layout.fields()]
        assert Layout.read(dict(zip(names, written, strict=True))) == layout
    assert Layout.read({}) is None


def test_the_keys_of_a_shard_lie_in_one_slot() -> None:
    """Each has the same hash tag, with the shard in it."""
    for key in Names("orders").of(7):
        assert key.partition(b"{")[2].partition(b"}")[0] == b"orders:7"


@pytest.mark.parametrize(
    ("shards", "error"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), (16385, ValueError)],
)
def test_a_number_of_shards_is_checked(shards: int, error: type[Exception]) -> None:
    """From 1 to 16384."""
    with pytest.raises(error, match="shards must be"):
        check_shards(shards)


def test_the_slot_of_a_key_is_redis_own() -> None:
    """CRC16 of the hash tag, or of all where there is none, as the specification's examples have it."""
    assert slot_of(b"localdelay:{123456789}:due") == slot_of(b"123456789") == 0x31C3 % 16384
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert len({slot_of(b"foo{}{bar}"), slot_of(b"bar"), slot_of(b"foo")}) == 3
    assert slot_of(b"a}{b") == crc_hqx(b"a}{b", 0) % 16384


def test_instances_differ_in_eagerness() -> None:
    """From a quarter to three quarters, and no order of instances that is the same for all shards."""
    tokens = ("one", "two", "three")
    first = Counter(max(tokens, key=lambda token: lead(token, shard)) for shard in range(300))
    assert all(0.25 <= lead(token, shard) <= 0.75 for token in tokens for shard in range(300))
    assert min(first.values()) > 50


@given(
    st.binary(max_size=100),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.integers(1, 5),
)
def test_a_message_comes_back_as_it_was_stored(
    payload: bytes, headers: dict[str, str] | None, attempt: int
) -> None:
    """Payload, headers and attempt."""
    stored = decode(bytes(8) + encode(payload, headers, attempt))
    assert (stored.payload, stored.headers or None, stored.attempt) == (payload, headers or None, attempt)
    assert (stored.due, stored.failures, stored.alone) == (0, 0, False)


def test_what_has_failed_is_written_over_the_head() -> None:
    """As the return script does it: the rest stays."""
    value = bytes(8) + encode(b"payload", {"a": "ü"}, 1)
    stored = decode(value[:8] + note(7, 9, alone=True) + value[16:])
    assert (stored.attempt, stored.failures, stored.alone) == (7, 9, True)
    assert (stored.payload, stored.headers) == (b"payload", {"a": "ü"})


def test_endless_retries_do_not_overflow() -> None:
    """The counts stop at what four bytes hold."""
    stored = decode(bytes(8) + note(2**40, 2**40, alone=False) + bytes(4))
    assert (stored.attempt, stored.failures, stored.alone) == (2**31 - 1, 2**31 - 1, False)


@pytest.mark.parametrize("value", [b"", b"x" * (OVERHEAD - 1), bytes(16) + b"\0\0\0\5{}"])
def test_what_is_no_message_is_refused(value: bytes) -> None:
    """Somebody else may have written there."""
    with pytest.raises(ValueError, match="message"):
        decode(value)


def test_redis_clock_is_bounded_by_the_quickest_reply() -> None:
    """The instant is never before the true one, and as close as the best reply of the last seconds."""
    clock = RedisClock()
    start = 1_800_000_000_000_000
    for redis, late in ((0, 0.5), (1_000_000, 0.001), (2_000_000, 0.3)):
        clock.observe(start + redis, redis / 1e6 + late)
    assert clock.local(start + 4_000_000) == pytest.approx(4.001)
    assert clock.redis(4.001) == pytest.approx(start + 4_000_000, abs=2)


def test_redis_clock_may_be_set() -> None:
    """After two periods nothing is left of what was compared before."""
    clock = RedisClock()
    start = 1_800_000_000_000_000
    clock.observe(start, 0.0)
    for second in range(1, 12):  # set back by three seconds
        clock.observe(start + (second - 3) * 1_000_000, float(second))
    assert clock.local(start + 9_000_000) == pytest.approx(12.0)
    clock.observe(start + 100_000_000, 50.0)  # set forward, and heard of again after a long time
    assert clock.local(start + 101_000_000) == pytest.approx(51.0)


def test_another_redis_has_another_clock() -> None:
    """After a new connection what was compared before counts no more."""
    clock = RedisClock()
    start = 1_800_000_000_000_000
    clock.observe(start, 0.0)
    clock.forget()
    assert clock.local(start) == pytest.approx(0.0)
    clock.observe(start - 2_000_000, 1.0)  # it is three seconds slower
    assert clock.local(start) == pytest.approx(3.0)


def test_unreachable_is_both_throttled_and_a_connection_error() -> None:
    """A fallback holds the message, and whoever catches connection errors catches it."""
    error = RedisUnreachable("there is no connection")
    assert isinstance(error, Throttled)
    assert isinstance(error, ConnectionError)
    assert error.retry_after is None
    assert str(error) == "there is no connection"
    assert math.isfinite(RedisUnreachable("soon", retry_after=1.0).retry_after or math.inf)


async def test_nodes_that_send_a_call_to_each_other_are_not_hammered(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """What they say is followed at once, and then fifty times a second, until they agree or it takes long."""
    cluster = Cluster(Nodes([Place("127.0.0.1", 1)]), b"", 1.0, 1.0)
    link = Link(Masters([Place("127.0.0.1", 2)]), b"", 1.0, 1.0)
    monkeypatch.setattr(cluster, "_link_at", lambda place: link)
    cluster._slots[:] = [link] * len(cluster._slots)
    asked: list[float] = []
    agree_at = trio.current_time() + 0.5

    async def call(*_: object, **how: bool) -> bytes:
        await trio.lowlevel.checkpoint()
        asked.append(trio.current_time())
        if asked[-1] < agree_at:
            raise MovedError("7 127.0.0.1:2")
        return b"reply"

    monkeypatch.setattr(link, "call", call)
    assert await cluster.call(b"HLEN", b"{a}") == b"reply"
    assert asked[2] == asked[0]
    assert len(asked) == 3 + 25
    agree_at = math.inf
    with pytest.raises(RedisUnreachable, match="is moving this slot"):
        await cluster.call(b"HLEN", b"{a}")
    assert len(asked) <= 28 + 60
