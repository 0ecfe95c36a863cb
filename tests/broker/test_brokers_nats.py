"""What is special about NATS, against servers that are started here: limits, refusals, streams, users, TLS.

tests/everyday/brokers/test_nats.py has what travels and the native delay, test_nats_connection.py how
connections are lost and left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
import pytest
import trio

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import Broker, nats_line, open_broker
from localdelay.brokers.nats import schedule_subject
from tests.kit.servers.nats import NatsServer, stream_of

SERVER = "nats"

SUBJECT = "orders.due"
OWNER = "owner:secret@"
_OWNER = "{user: owner, password: secret}"


@pytest.fixture
def own(server: NatsServer, begin: Callable[[NatsServer], NatsServer]) -> Callable[..., NatsServer]:
    """`own(...)` is a running server of the test's own; there is a program for it, since `server` runs."""
    return lambda **settings: begin(NatsServer(durable=False, **settings))


def message(id: str, payload: bytes = b"payload", **fields: object) -> Message:
    return Message(id, payload, trio.current_time(), **fields)  # type: ignore[arg-type]


def stored(server: NatsServer, subject: str, count: int) -> list[bytes]:
    return [one.payload for one in server.read(f"nats://{server.host}/{subject}", count)]


async def refusal(broker: Broker, id: str = "x", payload: bytes = b"payload") -> Exception:
    """What a send raises."""
    try:
        await broker.send(message(id, payload))
    except Exception as error:  # noqa: BLE001 (to be looked at)
        return error
    pytest.fail("it was taken")


# Throttled: each sign, provoked. 429 err_code 10167 is in tests/everyday/brokers/test_nats.py.


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"max_msgs": 2}, "maximum messages exceeded"), ({"max_bytes": 500}, "maximum bytes exceeded")],
)
async def test_a_full_stream_that_discards_the_new(
    server: NatsServer, limit: dict[str, int], said: str
) -> None:
    """503 err_code 10077 is `Throttled`, for a batch as a whole too, until there is room again."""
    subject = f"full.{next(iter(limit))}"
    server.make_stream(subject, allow_msg_schedules=False, discard="new", **limit)
    async with open_broker(f"nats://{server.host}/{subject}") as broker:
        await broker.send(message("1", b"x"))
        await broker.send(message("2", b"x" * 100))
        error = await refusal(broker)
        assert isinstance(error, Throttled)
        assert str(error) == f"503 {said} (err_code 10077)"
        assert isinstance(error.__cause__, nats.js.errors.ServiceUnavailableError)
        with pytest.raises(Throttled, match="10077"):
            await broker.send_batch([message("3"), message("4")])
        server.ask(f"STREAM.PURGE.{stream_of(subject)}", {"keep": 1})
        with pytest.raises(PartialSendError) as partial:
            await broker.send_batch([message("5", b"x"), message("6", b"x" * 200)])
        assert partial.value.failed is not None
        assert [type(one) for one in partial.value.failed.values()] == [Throttled]
    assert stored(server, subject, 2)[-1] == b"x"


async def test_a_server_without_room(own: Callable[..., NatsServer]) -> None:
    """503 err_code 10023: what all streams of the server may take together."""
    server = own(jetstream="max_file_store: 2MB")
    url = server.fresh()
    async with open_broker(url) as broker:
        for number in range(5):
            try:
                await broker.send(message(f"m{number}", bytes(1_000_000)))
            except Throttled as error:
                assert str(error) == "503 insufficient resources (err_code 10023)"
                assert isinstance(error.__cause__, nats.js.errors.ServiceUnavailableError)
                break
        else:
            pytest.fail("never refused")
        with pytest.raises(Throttled, match="10023"):
            await broker.publish_delayed(message("late"), 1.0)


async def test_an_account_without_room(server: NatsServer, url: str) -> None:
    """400 err_code 10002: it is no fault of the message's, whatever the code says."""
    async with open_broker(url) as broker:
        await broker.send(message("before", bytes(200)))
        with server.throttled(url):
            error = await refusal(broker)
            assert isinstance(error, Throttled)
            assert str(error) == "400 resource limits exceeded for account (err_code 10002)"
            assert isinstance(error.__cause__, nats.js.errors.BadRequestError)
        await broker.send(message("after"))


# Permanent: each.


@pytest.mark.parametrize(
    ("settings", "payload", "said"),
    [({"max_msg_size": 200}, bytes(1000), r"10054"), ({"sealed": True}, b"x", r"10109")],
    ids=["max_msg_size", "sealed"],
)
async def test_what_the_stream_never_takes(
    server: NatsServer, settings: dict[str, object], payload: bytes, said: str
) -> None:
    """Another 400 is permanent, and says what the server said."""
    subject = f"never.{next(iter(settings))}"
    sealed = settings.pop("sealed", False)
    server.make_stream(subject, allow_msg_schedules=False, **settings)
    if sealed:
        config = server.ask(f"STREAM.INFO.{stream_of(subject)}")["config"]
        server.ask(f"STREAM.UPDATE.{stream_of(subject)}", {**config, "sealed": True})
    async with open_broker(f"nats://{server.host}/{subject}") as broker:
        error = await refusal(broker, payload=payload)
        assert isinstance(error, PermanentSendError)
        assert said in str(error)
        assert isinstance(error.__cause__, nats.js.errors.BadRequestError)


async def test_a_subject_that_no_stream_holds(server: NatsServer) -> None:
    """It is permanent, for a batch too, and the client's own is the cause."""
    async with open_broker(f"nats://{server.host}/nobody.holds") as broker:
        for _ in range(2):
            error = await refusal(broker)
            assert isinstance(error, PermanentSendError)
            assert str(error) == "no stream holds nobody.holds"
            assert isinstance(error.__cause__, nats.js.errors.NotFoundError)
        with pytest.raises(PartialSendError) as partial:
            await broker.send_batch([message(f"m{number}") for number in range(300)])
        assert partial.value.failed is not None
        assert {type(one) for one in partial.value.failed.values()} == {PermanentSendError}
        assert len(partial.value.failed) == 300
        server.make_stream("nobody.holds")
        with trio.fail_after(20):
            await broker.send(message("now it is there"))
    assert stored(server, "nobody.holds", 1) == [b"payload"]


async def test_a_stream_without_the_subjects_of_the_schedules(server: NatsServer) -> None:
    """What is missing is named."""
    server.make_stream("half", subjects=["half"])
    async with open_broker(f"nats://{server.host}/half") as broker:
        await broker.send(message("fine"))
        with pytest.raises(PermanentSendError, match=r"^no stream holds half\.delayed\.\*$"):
            await broker.publish_delayed(message("late"), 1.0)


async def test_a_user_who_may_not_publish(own: Callable[..., NatsServer]) -> None:
    """Access refused is permanent and comes at once, for one subject and not for the other."""
    denied = f'deny: ["{SUBJECT}", "denied.>"]'
    rights = f"{{user: u, password: p, permissions: {{publish: {{{denied}}}}}}}"
    server = own(users=f"{_OWNER}, {rights}", owner=OWNER)
    server.make_stream(SUBJECT)
    server.make_stream("denied")
    async with open_broker(f"nats://u:p@{server.host}/{SUBJECT}", confirm_timeout=30.0) as broker:
        with trio.fail_after(20):
            error = await refusal(broker)
            assert isinstance(error, PermanentSendError)
            assert str(error) == f"the server does not let this user publish to {SUBJECT}"
            assert isinstance(error.__cause__, nats.errors.Error)
            with pytest.raises(PartialSendError) as partial:
                await broker.send_batch([message(f"m{number}") for number in range(200)])
            assert partial.value.failed is not None
            assert len(partial.value.failed) == 200
            await broker.publish_delayed(message("late"), 0.0)  # this is another subject
    async with open_broker(f"nats://u:p@{server.host}/denied", confirm_timeout=30.0) as broker:
        with trio.fail_after(20):
            await broker.send(message("fine"))
            with pytest.raises(PermanentSendError, match=schedule_subject("denied", "late")):
                await broker.publish_delayed(message("late"), 1.0)
    server.read(f"nats://{server.host}/denied", 1)


async def test_a_user_who_may_not_ask_for_streams(
    own: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell whether there is a stream, nothing is permanent."""
    monkeypatch.setattr(nats_line, "_LOOKUP_TIMEOUT", 0.3)
    rights = '{user: u, password: p, permissions: {publish: {deny: ["$JS.API.>"]}}}'
    server = own(users=f"{_OWNER}, {rights}", owner=OWNER)
    server.make_stream(SUBJECT)
    async with open_broker(f"nats://u:p@{server.host}/nobody.holds") as broker:
        assert isinstance(await refusal(broker), nats.js.errors.NoStreamResponseError)
    async with open_broker(f"nats://u:p@{server.host}/{SUBJECT}") as broker:
        await broker.send(message("x"))


async def test_a_user_who_may_not_listen(own: Callable[..., NatsServer]) -> None:
    """Nothing would ever be confirmed: it is said on opening, and another inbox helps."""
    rights = '{user: hearer, password: unheard, permissions: {subscribe: {allow: ["mine.>"]}}}'
    server = own(users=f"{_OWNER}, {rights}", owner=OWNER)
    server.make_stream(SUBJECT)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+: Permissions Violation for Subscription"):
        async with open_broker(f"nats://hearer:unheard@{server.host}/{SUBJECT}"):
            pass
    async with open_broker(f"nats://hearer:unheard@{server.host}/{SUBJECT}?inbox_prefix=mine") as broker:
        with trio.fail_after(20):
            await broker.send(message("x"))


async def test_a_message_cannot_say_where_its_schedule_goes(server: NatsServer, url: str) -> None:
    """The headers of the schedule are the broker's, in whatever letters the message has its own."""
    forged = {"Nats-Schedule-Target": "elsewhere", "nats-schedule": "@at 2999-01-01T00:00:00Z", "A": "b"}
    async with open_broker(url) as broker:
        await broker.publish_delayed(message("x", headers=forged), 0.1)
    (received,) = server.read(url, 1)
    assert received.headers["A"] == "b"


# Users and secrets.


AWKWARD = "p@ss/w:rd%20#?ü"
QUOTED = "p%40ss%2Fw%3Ard%2520%23%3F%C3%BC"


@pytest.mark.parametrize(
    ("users", "right", "wrong"),
    [(f'{{user: u, password: "{AWKWARD}"}}', f"u:{QUOTED}@", "u:hunter2@"), ("", f"{QUOTED}@", "hunter2@")],
    ids=["password", "token"],
)
async def test_who_may_come_in(
    own: Callable[..., NatsServer],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    users: str,
    right: str,
    wrong: str,
) -> None:
    """A user with a password, or a token; a wrong one, or none, is one line that shows nothing secret."""
    caplog.set_level(logging.DEBUG)
    token = "" if users else f'authorization {{ token: "{AWKWARD}" }}'
    server = own(users=users, more=token, owner=right)
    server.make_stream(SUBJECT)
    async with open_broker(f"nats://{right}{server.host}/{SUBJECT}") as broker:
        await broker.send(message("x"))
        assert AWKWARD not in repr(broker)
    for refused in (wrong, ""):
        with trio.fail_after(20), pytest.raises(ConnectionError) as raised:
            async with open_broker(f"nats://{refused}{server.host}/{SUBJECT}"):
                pass
        said = f"no connection to NATS at {server.host}: Authorization Violation"
        assert str(raised.value) == said
    secrets = ("hunter2", AWKWARD, QUOTED)
    told = caplog.text + "".join(capfd.readouterr())
    assert not [secret for secret in secrets if secret in told]
    assert "nats: encountered error" not in told


async def test_an_ipv6_address(own: Callable[..., NatsServer]) -> None:
    """The host comes without its brackets."""
    server = own(host="::1")
    server.make_stream(SUBJECT)
    async with open_broker(f"nats://[::1]:{server.port}/{SUBJECT}") as broker:
        await broker.send(message("x"))
    assert stored(server, SUBJECT, 1) == [b"payload"]


async def test_the_first_of_several_hosts_that_answers(server: NatsServer, url: str) -> None:
    """Where one is away, the next one is asked."""
    subject = urlsplit(url).path[1:]
    async with open_broker(f"nats://127.0.0.1:1,127.0.0.1:{server.port}/{subject}") as broker:
        await broker.send(message("x"))
    assert stored(server, subject, 1) == [b"payload"]


async def test_tls(
    own: Callable[..., NatsServer], certificate: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks for TLS gets it, if it is trusted; what asks for TLS sends nothing without."""
    key = certificate.parent / "key.pem"
    encrypted = own(more=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}', tls=str(certificate))
    encrypted.make_stream(SUBJECT)
    url = f"nats://{encrypted.host}/{SUBJECT}"
    with pytest.raises(ConnectionError, match="certificate"):
        async with open_broker(url):
            pass
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for asked in (url, f"{url}?tls=required"):
        with trio.fail_after(60):
            async with open_broker(asked) as broker:
                large = [message("large", bytes(1_000_000)) for _ in range(4)]
                await broker.send_batch([message(str(number)) for number in range(300)] + large)
                await broker.send(message("x"))
    assert len(stored(encrypted, SUBJECT, 610)) == 610
    with pytest.raises(ConnectionError, match="TLS"):
        async with open_broker(f"nats://{server.host}/{SUBJECT}?tls=required"):
            pass


# What is no subject.


async def test_a_subject_has_an_end() -> None:
    """One that would make a line of the protocol too long is a ValueError before anything is connected."""
    with pytest.raises(ValueError, match="subject"):
        async with open_broker(f"nats://127.0.0.1:1/{'x' * 3001}"):
            pass


async def test_the_longest_subject_works(server: NatsServer) -> None:
    """What is accepted as a subject, with the longest of its schedules, is no line too long."""
    subject = "x" * 3000
    server.make_stream("long", subjects=[subject, f"{subject}.delayed.*"])
    async with open_broker(f"nats://{server.host}/{subject}") as broker:
        await broker.send(message("x"))
        await broker.publish_delayed(message("y"), 0.0)
