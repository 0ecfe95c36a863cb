"""Lines into messages and back: what is read, what is refused, and that errors tell no payload."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdelay import Message
from localdelay.message import add_terms
from localdelay.relay.lines import Options, WrongLine, cut_off, json_lines, record, text

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW = CLOCK, _ = 500.0, NOON.timestamp()


def parse(line: str | bytes, delay: float | None = None) -> tuple[bytes, Options]:
    return json_lines(delay)(line.encode() if isinstance(line, str) else line)


def refused(line: str | bytes) -> str:
    with pytest.raises(WrongLine) as error:
        parse(line)
    return str(error.value)


@pytest.mark.parametrize("line", [b"", b"hello", b" a b ", b"\xff\x00\r", b'{"payload": 1}'])
def test_text_is_the_payload_as_it_is(line: bytes) -> None:
    """Whatever the bytes are, they are the message, due after the delay for all."""
    assert text(2.5)(line) == (line, {"delay": 2.5})


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ('{"payload": "x", "delay": 2}', (b"x", {"delay": 2.0})),
        ('{"payload": "x", "delay": 0}', (b"x", {"delay": 0.0})),
        ('{"payload": "x", "delay": "2m"}', (b"x", {"delay": 120.0})),
        ('{"payload": "", "delay": 1}', (b"", {"delay": 1.0})),
        (
            '{"payload": "h\\u00e4\\n\\u0000\\ud83d\\ude00", "delay": 1}',
            ("hä\n\0😀".encode(), {"delay": 1.0}),
        ),
        ('{"payload": "hä", "delay": 1}', ("hä".encode(), {"delay": 1.0})),
        ('{"payload_base64": "/wA=", "delay": 1}', (b"\xff\x00", {"delay": 1.0})),
        ('{"payload": "x", "at": "2026-01-31T12:00:00Z"}', (b"x", {"at": NOON})),
        ('{"payload": "x", "at": "2026-01-31T13:00:00.000000+01:00"}', (b"x", {"at": NOON})),
        ('{"payload": "x", "at": "20260131T120000+0000"}', (b"x", {"at": NOON})),
        ('{"payload": "x", "delay": 1, "id": "a b"}', (b"x", {"delay": 1.0, "id": "a b"})),
        (
            '{"payload": "x", "delay": 1, "headers": {"a": "b", "": ""}}',
            (b"x", {"delay": 1.0, "headers": {"a": "b", "": ""}}),
        ),
        ('{"payload": "x", "delay": 1, "headers": {}}', (b"x", {"delay": 1.0, "headers": {}})),
        ('{"payload": "x", "delay": 1, "error": {"any": ["thing"]}}', (b"x", {"delay": 1.0})),
        (' \t{"payload": "x", "delay": 1} \r', (b"x", {"delay": 1.0})),
        ('\ufeff{"payload": "x", "delay": 1}', (b"x", {"delay": 1.0})),
    ],
)
def test_json_lines(line: str, parsed: tuple[bytes, Options]) -> None:
    """A payload, a time, and if there are any an id and headers."""
    assert parse(line) == parsed


def test_the_delay_for_all() -> None:
    """It is for the lines that say nothing of when, and for no others."""
    assert parse('{"payload": "x"}', 5.0) == (b"x", {"delay": 5.0})
    assert parse('{"payload": "x", "delay": 1}', 5.0) == (b"x", {"delay": 1.0})
    assert parse('{"payload": "x", "at": "2026-01-31T12:00:00Z"}', 5.0) == (b"x", {"at": NOON})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "is no JSON: Expecting value at character"),
        ("secret", "is no JSON: Expecting value at character 1"),
        ('{"payload": "secret"', "is no JSON: Expecting ',' delimiter at character 21"),
        ('{"payload": "secret", "delay": 1} {}', "is no JSON: Extra data at character 35"),
        ('{"payload": "sec\tret", "delay": 1}', "is no JSON: Invalid control character at at character 17"),
        (b'{"payload": "secret\xff", "delay": 1}', "is no UTF-8 from byte 20 on"),
        ('"secret"', "must be a JSON object, not a string"),
        ("[1]", "must be a JSON object, not an array"),
        ("NaN", "NaN is no JSON"),
        ("[" * 100_000, "is nested too deeply, or has a number"),
        ("9" * 5000, "is nested too deeply, or has a number with too many digits"),
        ("{}", "delay or at must be there, where no delay is given for all lines"),
        ('{"delay": 1}', "exactly one of payload and payload_base64 must be there"),
        (
            '{"payload": "secret", "payload_base64": "", "delay": 1}',
            "exactly one of payload and payload_base64 must be there",
        ),
        ('{"payload": null, "delay": 1}', "payload must be a string, not null"),
        ('{"payload": {"secret": 1}, "delay": 1}', "payload must be a string, not an object"),
        ('{"payload": "secret\\ud800", "delay": 1}', "payload must be text that UTF-8 can carry"),
        ('{"payload_base64": "c2VjcmV0?", "delay": 1}', "payload_base64 must be base64"),
        ('{"payload_base64": "c2Vj cmV0", "delay": 1}', "payload_base64 must be base64"),
        ('{"payload_base64": "QQ==QQ==", "delay": 1}', "payload_base64 must be base64"),
        ('{"payload_base64": "sécret", "delay": 1}', "payload_base64 must be base64"),
        ('{"payload_base64": [], "delay": 1}', "payload_base64 must be a string, not an array"),
        ('{"payload": "x", "delay": -1}', "delay must be finite and at least 0, not -1.0"),
        ('{"payload": "x", "delay": 1e999}', "delay must be finite and at least 0, not inf"),
        ('{"payload": "x", "delay": 1' + "0" * 400 + "}", "delay must be finite and at least 0, not inf"),
        ('{"payload": "x", "delay": NaN}', "NaN is no JSON"),
        (
            '{"payload": "x", "delay": true}',
            "delay must be a number of seconds or a string, not true or false",
        ),
        ('{"payload": "x", "delay": null}', "delay must be a number of seconds or a string, not null"),
        ('{"payload": "x", "delay": "soon"}', "delay: 'soon' is no duration; write 120, 120s, 2m"),
        ('{"payload": "x", "delay": "-1s"}', "delay: a duration can't be negative, as '-1s' is"),
        ('{"payload": "x", "delay": "\\ud800"}', "delay: '\\ud800' is no duration"),
        (
            '{"payload": "x", "delay": 1, "at": "2026-01-31T12:00:00Z"}',
            "only one of delay and at may be there",
        ),
        ('{"payload": "x", "at": 1769860800}', "at must be a string, not a number"),
        ('{"payload": "x", "at": "soon"}', "at must be a time as in 2026-01-31T12:00:00Z"),
        ('{"payload": "x", "at": "2026-01-31T12:00:00"}', "at must have an offset, as in"),
        ('{"payload": "x", "at": "\\ud800"}', "at must be a time as in"),
        ('{"payload": "x", "delay": 1, "id": 7}', "id must be a string, not a number"),
        ('{"payload": "x", "delay": 1, "id": "a\\n"}', "id must be a string of one or more printable"),
        ('{"payload": "x", "delay": 1, "id": "\\ud800"}', "id must be a string of one or more printable"),
        (
            '{"payload": "x", "delay": 1, "headers": ["a"]}',
            "headers must be an object of strings, not an array",
        ),
        (
            '{"payload": "x", "delay": 1, "headers": {"a": 1}}',
            "headers must be an object of strings: 'a' is a number",
        ),
        (
            '{"payload": "x", "delay": 1, "headers": {"\\ud800": ""}}',
            "headers must be text that UTF-8 can carry",
        ),
        ('{"payload": "x", "delay": 1, "headers": {"a": "\\udfff"}}', "headers must be text that UTF-8 can"),
        ('{"payload": "x", "delay": 1, "headers": {"a": "1", "a": "2"}}', "'a' is there twice"),
        ('{"payload": "secret", "delay": 1, "payload": "secret"}', "'payload' is there twice"),
        ('{"payload": "x", "delay": 1, "color": "red"}', "'color' is no key that is known"),
        ('{"payload": "x", "delay": 1, "\\ud800\\u001b": 1}', "'\\ud800\\x1b' is no key that is known"),
        ('{"payload": "x", "delay": 1, "' + "k" * 5000 + '": 1}', f"'{'k' * 40}...' is no key that is known"),
        ('{"cut_off": "secret"}', "cut_off is half a line, that a stop has cut off: make it whole"),
        ('{"cut_off_base64": "secret"}', "cut_off is half a line, that a stop has cut off"),
    ],
)
def test_wrong_lines(line: str | bytes, said: str) -> None:
    """What is wrong is said, in a line that a terminal can show, and nothing of the payload."""
    reason = refused(line)
    assert reason.startswith(said)
    assert "secret" not in reason
    assert reason.isprintable()
    assert len(reason) < 200


def test_many_keys_are_no_work() -> None:
    """The longest line that is all names, with one of them twice, is refused in no time."""
    names = [f'"{number}":0' for number in range(100_000)]
    assert refused("{" + ",".join([*names, names[-1]]) + "}") == "'99999' is there twice"


_TOKENS = [
    "null",
    "1e999",
    "NaN",
    "payload",
    '"payload":',
    '"delay":',
    '"at":',
    '"id":',
    '"headers":{',
    '"x"',
]
_scraps = st.one_of(
    st.sampled_from([*'{}[],:"\\ -1', "\\u", "d800", '"2026-01-31T12:00:00Z"', *_TOKENS]), st.text(max_size=3)
)


@given(st.lists(_scraps, max_size=20).map("".join))
def test_nothing_but_wrong_lines_comes_out(line: str) -> None:
    """Whatever the line is, it is a message or it is wrong: no other exception."""
    try:
        json_lines(1.0)(line.encode(errors="surrogatepass"))
    except WrongLine as error:
        assert str(error).isprintable()


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)
_keys = st.sampled_from(
    ["payload", "payload_base64", "delay", "at", "id", "headers", "expires", "error", "more"]
)


@given(st.dictionaries(_keys, _json))
def test_any_object_is_a_message_or_wrong(found: dict[str, Any]) -> None:
    """Values of any type under the known keys: a message or a wrong line, and what is taken is right."""
    try:
        payload, options = json_lines(1.0)(json.dumps(found).encode())
    except WrongLine:
        return
    assert isinstance(payload, bytes)
    assert options.keys() <= {"delay", "at", "id", "headers", "expires"}
    assert min(options.get("delay", 0.0), options.get("expires", 0.0)) >= 0


_text = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    payload=st.one_of(st.binary(max_size=20), _text.map(str.encode)),
    id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable),
    headers=st.dictionaries(_text, _text, max_size=3),
    left=st.floats(-1e6, 1e8),
)
def test_what_is_written_is_read_back(payload: bytes, id: str, headers: dict[str, str], left: float) -> None:
    """The same payload, id and headers; and never due earlier, and later by a microsecond at the most."""
    message = Message(id, payload, CLOCK + left, MappingProxyType(headers))
    line = record(message, *NOW)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read, options = parse(line[:-1])
    assert (read, options["id"], options.get("headers", {})) == (payload, id, headers)
    late = (options["at"] - NOON).total_seconds() - left
    # Floats of a Unix time are a quarter of a microsecond apart.
    assert -5e-7 <= late <= 1.5e-6


def test_a_record() -> None:
    """Text where it is text, else base64; the time of the wall clock; and what went wrong."""
    message = Message("a", "hä\n".encode(), 620.5, MappingProxyType({"k": "v"}), 3)
    assert json.loads(record(message, *NOW)) == {
        "payload": "hä\n",
        "at": "2026-01-31T12:02:00.500000+00:00",
        "id": "a",
        "headers": {"k": "v"},
    }
    expires = Message("a", b"", 500.0)
    add_terms(expires, (7.5, None))
    assert (
        parse(record(expires, *NOW)[:-1])[1]["expires"] == json.loads(record(expires, *NOW))["expires"] == 7.5
    )
    assert json.loads(record(Message("a", b"\xff", 500.0), *NOW, "It failed: \udcff")) == {
        "payload_base64": base64.b64encode(b"\xff").decode(),
        "at": "2026-01-31T12:00:00.000000+00:00",
        "id": "a",
        "error": "It failed: \udcff",
    }


@pytest.mark.parametrize("left", [1e12, 1e18, 1e300])
def test_a_time_that_no_calendar_has(left: float) -> None:
    """A message that is due after the year 9999 is written with the delay that is left."""
    _, options = parse(record(Message("a", b"x", 500.0 + left), *NOW)[:-1])
    assert options == {"delay": pytest.approx(left), "id": "a"}


@pytest.mark.parametrize("half", [b"half", b"h\xc3", b'{"payload": "x'])
def test_half_a_line_is_kept_and_refused(half: bytes) -> None:
    """All of its bytes are in the record, which is no message."""
    found = json.loads(cut_off(half))
    kept = found["cut_off"].encode() if "cut_off" in found else base64.b64decode(found["cut_off_base64"])
    assert kept == half
    assert "cut_off" in refused(cut_off(half)[:-1])


def test_offsets_at_the_ends_of_the_calendar() -> None:
    """The first and the last moment that can be written, in any zone, are times as any other."""
    for at in ("0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"):
        for offset in ("-23:59", "+23:59", "Z"):
            _, options = parse(json.dumps({"payload": "", "at": at + offset}))
            assert abs((options["at"] - NOON).total_seconds()) > 1e10
