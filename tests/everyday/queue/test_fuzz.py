"""What people and files give, with mistakes in it: clear errors only, in time, in bounded memory.

What is fed is mostly what is right, with a few mistakes in it: noise alone is refused too early to find
anything. Brokers have a file of their own.
"""

from __future__ import annotations

import json
import math
import re
import socket
import tracemalloc
import zlib
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from localdelay import Message, arguments
from localdelay.benchmark import hlog
from localdelay.brokers import kafka_producer, open_broker, opening, without_secrets
from localdelay.brokers.address import hide_secrets
from localdelay.brokers.nats_answers import answer_error as nats_error
from localdelay.lateness import Latencies
from localdelay.message import number_of
from localdelay.queue.admission import stamp
from localdelay.relay import lines
from localdelay.relay.framing import Splitter
from localdelay.relay.lines import cut_off, record
from localdelay.units import format_duration, format_size, parse_duration, parse_size
from tests.kit.fuzzing import (
    fuzzed,
    in_time,
    is_clear,
    mistaken,
    one_of_words,
    pieces,
    some_cuts,
    some_messages,
)

# --- relay: lines and records

_SECRET = "s3cr3t-in-a-payload"
NOW = CLOCK, WALL = 500.0, datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([0, 120, -1, 0.5, -0.0, 1e308, 10**400, True, None, "2m", "1e999d", "9" * 70, [], {}]),
    st.sampled_from(["2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
    st.floats(),
    st.text(max_size=5),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.none(), max_size=2),
)
_keys = st.sampled_from([*sorted(lines.KNOWN), lines.CUT_OFF, "more"])
_objects = st.builds(
    lambda found, payload: json.dumps({"payload": payload, **found}).encode(),
    st.dictionaries(_keys, _values, max_size=4),
    st.sampled_from(["x", "ä\ud800", "\x00", _SECRET]),
)
_records = some_messages.map(lambda message: record(message, *NOW)[:-1])
_deep = st.sampled_from([b"[" * 3000, b'{"a":' * 3000, b'{"payload":' + b"[" * 900 + b"]" * 900 + b"}"])
_long = st.integers(1, 200).map(lambda size: b"x" * size)
_line = st.one_of(*[mistaken(_objects | _records)] * 6, _long, st.binary(max_size=10), _deep)


@fuzzed(400)
@given(
    st.lists(st.tuples(_line, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])), max_size=5),
    some_cuts,
    st.sampled_from([64, 1 << 20]),
    st.sampled_from([None, 1.5]),
)
def test_lines_are_messages_or_wrong(
    given_lines: list[tuple[bytes, bytes]], cuts: list[int], longest: int, delay: float | None
) -> None:
    """A line is a message that `put` takes and that is read back from its record, or it is wrong."""
    data = b"".join(line + end for line, end in given_lines)
    splitter = Splitter(longest)
    with in_time():
        found = [line for piece in pieces(data, cuts) for line in splitter.feed(piece)] + splitter.end()
        *ended, last = data.split(b"\n")
        expected = [line.removesuffix(b"\r") for line in ended] + [last] * bool(last)
        assert found == [line if len(line) <= longest else None for line in expected]
        for parse in (lines.json_lines(delay), lines.text(1.5)):
            for line in found:
                if line is not None:
                    _check_line(line, parse)


def _check_line(line: bytes, parse: lines.Parse) -> None:
    try:
        payload, options = parse(line)
    except lines.WrongLine as error:
        assert is_clear(error)
        assert _SECRET not in str(error)
        return
    wall = datetime.fromtimestamp(WALL, UTC)
    due = arguments.execute_at(CLOCK, options.get("delay"), options.get("at"), wall=wall)
    assert CLOCK <= due < math.inf
    message, *_ = stamp(7, payload, due, options.get("id"), options.get("headers"), None, None)
    _check_record(message, *NOW)


@fuzzed(200)
@given(some_messages, st.floats(-1e15, 1e15), st.floats(0, 3e11), st.none() | st.text(max_size=20))
def test_a_record_is_read_back(message: Message, clock: float, wall: float, error: str | None) -> None:
    """Whatever message was taken in, at whatever time: its line gives the same one, not earlier."""
    _check_record(message, clock, wall, error)


def _check_record(message: Message, clock: float, wall: float, error: str | None = None) -> None:
    line = record(message, clock, wall, error)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    payload, options = lines.json_lines(None)(line[:-1])
    assert (payload, options["id"]) == (message.payload, message.id)
    assert options.get("headers", {}) == message.headers
    left = message.execute_at - clock
    if "at" in options:
        at = options["at"] - datetime.fromtimestamp(0, UTC)
        exact = at.days * 86_400 + at.seconds + Fraction(at.microseconds, 10**6)
        # Of one float; the sum of two is rounded once.
        assert exact >= Fraction(wall + left) - Fraction(math.ulp(wall + left))
    else:
        assert options["delay"] >= left


@fuzzed(200)
@given(st.binary(max_size=50) | _line)
def test_half_a_line_is_never_read_as_a_message(half: bytes) -> None:
    """What a stop has cut off is kept, and refused as such."""
    if len(half) < 10_000:
        with pytest.raises(lines.WrongLine, match="cut_off"):
            lines.json_lines(1.0)(cut_off(half)[:-1])


@pytest.mark.parametrize("begin", [b"[", b'{"payload":', b'{"a":[', b'[{"b":'])
def test_nested_to_no_end(begin: bytes) -> None:
    """JSON a hundred thousand levels deep is a wrong line, and no confirmation."""
    with in_time():
        with pytest.raises(lines.WrongLine, match="nested too deeply"):
            lines.json_lines(1.0)(begin * 100_000)
        assert nats_error(b"", begin * 100_000) is not None


def test_an_endless_line_takes_no_memory() -> None:
    """Of a line without an end no more is kept than may be, and what comes after it is read."""
    splitter = Splitter(1000)
    chunk = b"x" * 65_536
    tracemalloc.start()
    try:
        found = [line for _ in range(500) for line in splitter.feed(chunk)]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert found == [None]
    assert splitter.feed(b"\nnext\n") == [b"next"]


# --- durations, sizes, ids

_numbers = st.one_of(
    st.from_regex(r"[+-]?[0-9]{0,6}\.?[0-9]{0,6}(e[+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(
        ["1e999", "1e-999", "1e400", "9" * 59, "1" + "0" * 5000, "nan", "inf", "0x10", "1_000", "١"]
    ),
)
_units = st.sampled_from(
    ["", "us", "µs", "ms", "s", "m", "min", "h", "d", "B", "kB", "KiB", "TB", "tib", "S", "İ"]
)
_blanks = st.sampled_from(["", "", " ", "\t", "\n", "\x00", "\u2003", "\ud800"])
_quantities = st.builds("".join, st.tuples(_blanks, _numbers, _blanks, _units, _blanks)) | st.text(max_size=8)
_SECONDS = {"us": -6, "µs": -6, "ms": -3, "": 0, "s": 0}


@fuzzed(800)
@given(_quantities)
def test_durations_and_sizes(text: str) -> None:
    """Each is a number that can be used and shown, or a ValueError that quotes what is wrong."""
    with in_time():
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            assert is_clear(error)
        else:
            assert 0 <= seconds < math.inf
            assert len(format_duration(seconds)) < 450
            plain = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)(us|µs|ms|s|)", text)
            if plain:
                assert seconds == float(Fraction(plain[1]) * Fraction(10) ** _SECONDS[plain[2]])
        try:
            size = parse_size(text)
        except ValueError as error:
            assert is_clear(error)
        else:
            assert size >= 0
            assert format_size(size)


@fuzzed(300)
@given(st.from_regex(r"[0-9a-f]{0,13}-?[0-9]{0,20}") | st.text(max_size=30) | st.just("a-" + "9" * 5000))
def test_ids(id: str) -> None:
    """Any text is the id of a message of this process, or it is not."""
    number = number_of(id)
    assert number is None or number >= 0


# --- brokers' URLs

_SCHEMES = ["kafka", "amqp", "amqps", "redis", "rediss", "beanstalkd", "nats"]
_words = st.sampled_from(
    ["user", "hunter2", "p%40ss", "s%2Fw", "a+b", "sw\nord", "t\tab", "%ff", "%", "", "ünï", "@"]
)
_hosts = one_of_words(
    "host host:1 host:0 h:99999 h:-1 h:x [::1]:1 [::1 127.0.0.1:1 a,b:2 , . é a..b h%00 [v1.x] xn--a"
) | st.sampled_from(["", " ", "h\x00st", "x" * 64, "h\nst", "\ud800", "\u2100"])
_targets = one_of_words("orders a.b a@b a/b * %00 %2F ü a#b a:b") | st.sampled_from(
    ["", "a b", "a\nb", "x" * 250, "\u2028"]
)
_options = one_of_words(
    "vhost=a db=1 db=x db=٣ sasl.p%61ssword=hunter2 ssl.key.password=a%26b+c acks=0 x=%ff = a=b=c x"
) | st.sampled_from(["db=" + "9" * 5000, "delivery.timeout.ms=²", "sasl.password=hunter2"])
_right_urls = st.builds(
    lambda scheme, user, host, target, options: (
        f"{scheme}://{user}{host}/{target}" + (f"?{'&'.join(options)}" if options else "")
    ),
    st.sampled_from([*_SCHEMES, *_SCHEMES, "http", "NATS", ""]),
    st.just("") | st.lists(_words, min_size=1, max_size=2).map(lambda words: ":".join(words) + "@"),
    st.just("host") | _hosts,
    st.just("orders") | _targets,
    st.just([]) | st.lists(_options, max_size=3),
)


@st.composite
def _wrong_urls(draw: st.DrawFn) -> str:
    url = draw(_right_urls)
    at = draw(st.integers(0, len(url)))
    return url[:at] + draw(st.text(max_size=2)) + url[at + draw(st.integers(0, 2)) :]


_urls = st.one_of(_right_urls, _wrong_urls(), st.text(max_size=20))


@fuzzed(800)
@given(_urls)
def test_urls(url: str) -> None:
    """A URL is refused in one line that shows nothing of it, or shows none of its secrets from then on."""
    with in_time():
        try:
            opening.check_url(url)
        except ValueError as error:
            assert is_clear(error)
            assert str(error).startswith("url ")
            assert "hunter2" not in str(error)
            return
        where = opening._parse(url)
    if where is None:
        return
    shown = without_secrets(url)
    assert shown.isprintable() or not url.isprintable()
    secrets = [where.password if where.password is not None else where.username or ""]
    secrets += [value for name, value in where.options.items() if "pass" in name]
    for secret in filter(None, secrets):
        for told in (secret, quote(secret, safe="")):
            hidden = hide_secrets(f"<{told}>", url)
            assert told == "*" or told not in hidden, "a secret is shown"
        if len(secret) > 3 and secret not in f"{where.hosts}{where.target}":
            assert secret not in shown


_look_up = socket.getaddrinfo


class NoProducer:
    """Stands for librdkafka's: no broker is there."""

    def __init__(self, settings: dict[str, Any]) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT, "no broker"))


@fuzzed(60)
@given(_right_urls)
def test_opening_any_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """With no network, opening what was accepted is a ConnectionError of one line, or a ValueError."""

    def nobody(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        named["flags"] = socket.AI_NUMERICHOST
        _look_up(host, port, *rest[:3], **named)  # raises for what is no host at all
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(kafka_producer, "Producer", NoProducer)
    monkeypatch.setattr("ssl.create_default_context", lambda: None)
    try:
        opening.check_url(url)
    except ValueError:
        return

    async def main() -> None:
        with trio.fail_after(60):
            async with open_broker(url):
                raise AssertionError("there is no network")

    with in_time(20):
        try:
            trio.run(main)
        except (ConnectionError, ValueError) as error:
            assert not isinstance(error, UnicodeError)
            assert is_clear(error)
            assert "hunter2" not in str(error)


# --- a run's latencies

_latencies = st.lists(st.integers(0, 3000), max_size=5).map(
    lambda found: Latencies({index: found.count(index) for index in found}, max(found, default=0) / 1e6)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "run.hlog"


@st.composite
def _hlogs(draw: st.DrawFn) -> bytes:
    log = hlog.Log("x", 1.75e9, 0.5, draw(st.lists(_latencies, min_size=1, max_size=3)))
    return hlog.text(log, seconds=1.2).encode()


@fuzzed(300)
@given(data=mistaken(_hlogs()))
def test_logs_of_latencies(path: Path, data: bytes) -> None:
    """A file is read as a run that can be reckoned with, or refused in one line."""
    path.write_bytes(data)
    with in_time():
        try:
            log = hlog.read(path)
        except ValueError as error:
            assert is_clear(error)
            return
        together = Latencies.together(log.intervals)
        assert together.count > 0
        assert together.at(0.5, 1.0)[1] < math.inf
        assert 0 <= log.length < math.inf
        assert 0 <= log.began_at < math.inf


@fuzzed(300)
@given(
    counts=mistaken(st.binary(max_size=12)),
    digits=st.integers(0, 6),
    highest=st.sampled_from([2, 10**6, 2**63]),
)
def test_histograms(counts: bytes, digits: int, highest: int) -> None:
    """A histogram's bytes may say anything: it is one of ours, or a ValueError."""
    head = bytearray(zlib.decompress(b64decode(Latencies({5: 1}, 1e-5).encoded())[8:])[:40])
    head[12:16] = digits.to_bytes(4, "big")
    head[24:32] = highest.to_bytes(8, "big")
    packed = zlib.compress(bytes(head) + counts)
    text = b64encode(b"\x1c\x84\x93\x14" + len(packed).to_bytes(4, "big") + packed).decode()
    with in_time():
        try:
            found = Latencies.decoded(text)
        except ValueError as error:
            assert is_clear(error)
        else:
            assert all(count > 0 for count in found.counts.values())
            assert found.count == sum(found.counts.values())


def test_a_histogram_does_not_fill_the_memory() -> None:
    """One that unpacks to a thousand times its size is refused before it has."""
    bomb = zlib.compress(bytes(100_000_000), 9)
    text = b64encode(b"\x1c\x84\x93\x14" + len(bomb).to_bytes(4, "big") + bomb).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="histogram"):
            Latencies.decoded(text)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
