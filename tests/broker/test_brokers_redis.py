"""What is special about Redis, against a real one wherever it can be made to do it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import coredis.exceptions
import pytest
import redis.exceptions
import trio

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import Broker, ConnectionLost, open_broker
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID
from tests.kit.servers.network import network_to
from tests.kit.servers.process import free_port
from tests.kit.servers.redis import RedisServer

SERVER = "redis"

SEED = 20261121
SOON = 60.0
"""Seconds: what a busy machine may need."""


@pytest.fixture
def own(server: RedisServer, begin: Callable[[RedisServer], RedisServer]) -> Callable[..., RedisServer]:
    """`own(*settings)` is a server that the test may spoil."""
    return lambda *settings: begin(RedisServer(*settings))


def message(id: str, payload: bytes | None = None, **fields: object) -> Message:
    body = id.encode() if payload is None else payload
    return Message(id, body, trio.current_time(), **fields)  # type: ignore[arg-type]


async def ids(server: RedisServer, url: str, count: int) -> Counter[str]:
    received = await trio.to_thread.run_sync(lambda: server.read(url, count))
    return Counter(one.headers[ID] for one in received)


@contextmanager
def asked(server: RedisServer, *command: str | int) -> Iterator[redis.Redis]:
    """An independent client that has already run this command."""
    with server.client() as client:
        client.execute_command(*command)
        yield client


async def send_until_taken(broker: Broker, id: str) -> None:
    with trio.fail_after(SOON):
        while True:
            try:
                await broker.send(message(id))
            except Throttled:
                continue
            break


def drop_clients(client: redis.Redis) -> None:
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# ---------------------------------------------------------------- what travels


async def test_headers_keep_their_names_and_payload_stays_alone(server: RedisServer) -> None:
    """Fields of the entry are as documented; no header can pass for the payload or the id."""
    url = server.fresh()
    headers = {"payload": "mine", "header:x": "y", "Trace": "ü", ID: "forged", "empty": ""}
    async with open_broker(url) as broker:
        await broker.send(message("one", b"\x00\r\n\xff", headers=headers, attempt=3))
    with server.client() as client:
        ((_, fields),) = client.xrange(url.rpartition("/")[2])
    due = fields.pop(EXECUTE_AT.encode())
    assert due.endswith(b"+00:00")
    assert fields == {
        b"payload": b"\x00\r\n\xff",
        ID.encode(): b"one",
        ATTEMPT.encode(): b"3",
        b"header:payload": b"mine",
        b"header:header:x": b"y",
        b"Trace": "ü".encode(),
        b"empty": b"",
    }


async def test_max_length_trims_the_stream(server: RedisServer) -> None:
    """With `max_length` Redis drops the oldest entries, about."""
    url = server.fresh()
    async with open_broker(f"{url}?max_length=200") as broker:
        await broker.send_batch([message(f"m{number}") for number in range(2000)])
        await broker.send(message("last"))
    received = server.read(url, 200)
    assert 200 <= len(received) < 500
    assert received[-1].headers[ID] == "last"


async def test_db_of_the_url(server: RedisServer) -> None:
    """`?db=3` adds to that database."""
    url = server.fresh()
    async with open_broker(f"{url}?db=3") as broker:
        await broker.send(message("one"))
    assert server.read(url, 0) == []
    with server.client() as client:
        client.execute_command("SELECT", 3)
        assert client.xlen(url.rpartition("/")[2]) == 1


# ---------------------------------------------------------------- throttled


async def test_max_number_of_clients(own: Callable[..., RedisServer]) -> None:
    """A connection that is refused so is Throttled for all who wait for it, promptly; then all goes on."""
    server = own()
    url = server.fresh()
    async with open_broker(url) as broker:
        with asked(server, "CONFIG", "SET", "maxclients", 1) as client:
            drop_clients(client)
            with trio.fail_after(SOON), pytest.raises(Throttled, match="max number of clients") as raised:
                while True:
                    with suppress(ConnectionLost):  # it has not seen that yet
                        await broker.send(message("one"))
            assert raised.value.__cause__ is not None
            with trio.fail_after(SOON), pytest.raises(Throttled, match="max number of clients"):
                await broker.send_batch([message("a"), message("b")])
            with pytest.raises(ConnectionError, match="max number of clients"):
                async with open_broker(url):
                    pass
            client.config_set("maxclients", 100)
        with trio.fail_after(SOON):
            await broker.send(message("after"))
    assert await ids(server, url, 1) == Counter(["after"])


@pytest.mark.parametrize("mode", ["WRITE", "ALL"])
async def test_client_pause_is_throttled(own: Callable[..., RedisServer], mode: str) -> None:
    """Silence for `confirm_timeout` is Throttled, caused by a TimeoutError; when it is over all goes on."""
    server = own()
    url = server.fresh()
    async with open_broker(url, confirm_timeout=0.4) as broker:
        await send_until_taken(broker, "before")
        with asked(server, "CLIENT", "PAUSE", 2500, mode):
            for number in range(2):
                begun = trio.current_time()
                with pytest.raises(Throttled, match="answer") as raised:
                    await broker.send(message(f"m{number}"))
                assert trio.current_time() - begun >= 0.39
                assert isinstance(raised.value.__cause__, TimeoutError)
            with pytest.raises(Throttled, match="answer"):
                await broker.send_batch([message("a"), message("b")])
        await send_until_taken(broker, "after")
    arrived = await ids(server, url, 2)
    assert set(arrived) >= {"before", "after"}


# ---------------------------------------------------------------- never


async def test_a_key_that_is_no_stream(server: RedisServer) -> None:
    """WRONGTYPE is a PermanentSendError, in a batch for each message."""
    url = server.fresh()
    with asked(server, "SET", url.rpartition("/")[2], "text"):
        async with open_broker(url) as broker:
            with pytest.raises(PermanentSendError, match="WRONGTYPE") as raised:
                await broker.send(message("one"))
            assert isinstance(raised.value.__cause__, coredis.exceptions.WrongTypeError)
            with pytest.raises(PartialSendError) as partial:
                await broker.send_batch([message("a"), message("b")])
    assert set(partial.value.failed or ()) == {"a", "b"}


async def test_one_key_of_many_is_refused(own: Callable[..., RedisServer]) -> None:
    """NOPERM is a PermanentSendError; a user who may only add can use the broker all the same."""
    server = own()
    acl = "ACL SETUSER orders on >secret ~allowed resetchannels -@all +xadd"
    with asked(server, *acl.split()):
        for stream in ("allowed", "other"):
            url = f"redis://orders:secret@127.0.0.1:{server.port}/{stream}"
            async with open_broker(url) as broker:
                if stream == "allowed":
                    await broker.send(message("one"))
                    # It can't ask how much the server takes, and the server ends the connection.
                    refused = pytest.raises(PermanentSendError, match="invalid bulk length")
                    with trio.fail_after(SOON), refused:
                        await broker.send(message("large", bytes(server.too_large)))
                    with trio.fail_after(SOON):
                        await broker.send(message("two"))
                    continue
                with pytest.raises(PermanentSendError, match="NOPERM") as raised:
                    await broker.send(message("never"))
                assert "secret" not in str(raised.value)
    assert await ids(server, f"redis://127.0.0.1:{server.port}/allowed", 2) == Counter(["one", "two"])


async def test_access_refused_after_a_reconnect(own: Callable[..., RedisServer]) -> None:
    """Where the password is no longer right, sends wait: that says nothing of a message."""
    server = own()
    url = server.fresh().replace("//", "//:old@")
    with asked(server, "CONFIG", "SET", "requirepass", "old") as client:
        client.execute_command("AUTH", "old")
        async with open_broker(url) as broker:
            await broker.send(message("one"))
            client.config_set("requirepass", "new")
            drop_clients(client)
            with trio.fail_after(SOON):  # what is written before it has seen that is lost
                while "errorstat_WRONGPASS" not in client.info("errorstats"):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            with trio.fail_after(SOON):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(broker.send, message("two"))
                    await trio.sleep(0.3)
                    client.config_set("requirepass", "old")


async def test_no_such_command(own: Callable[..., RedisServer]) -> None:
    """A Redis without XADD refuses for good; it quotes the payload, which is not to appear in a log."""
    server = own("--rename-command", "XADD", "")
    async with open_broker(server.fresh()) as broker:
        with pytest.raises(PermanentSendError, match="unknown command") as raised:
            await broker.send(message("one", b"hush" * 10))
    assert isinstance(raised.value.__cause__, coredis.exceptions.UnknownCommandError)
    assert "hush" not in repr(raised.value) + repr(raised.value.__cause__)


async def test_too_large_is_found_out_here(server: RedisServer) -> None:
    """A payload, a header or an id over the server's limit fails for good, and the connection lives on."""
    url = server.fresh()
    limit = server.too_large - 1
    async with open_broker(url) as broker:
        with server.client() as client:
            client.config_resetstat()
            for large in (
                message("a", bytes(limit + 1)),
                message("x" * (limit + 1)),
                message("b", headers={"name": "x" * (limit + 1)}),
                message("c", headers={"x" * (limit + 1): ""}),
            ):
                with pytest.raises(PermanentSendError, match=str(limit)):
                    await broker.send(large)
            await broker.send(message("fits", bytes(limit)))
            assert client.info("stats")["total_connections_received"] <= 1
    assert await ids(server, url, 1) == Counter(["fits"])


async def test_a_limit_that_is_lowered_later(own: Callable[..., RedisServer]) -> None:
    """The server ends the connection; then the limit is known anew, and the message fails for good."""
    server = own("--proto-max-bulk-len", "2mb")
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("first", bytes(server.too_large)))
        with asked(server, "CONFIG", "SET", "proto-max-bulk-len", "1mb"):
            with trio.fail_after(SOON), pytest.raises(PermanentSendError, match="invalid bulk length"):
                await broker.send(message("second", bytes(server.too_large)))
            with trio.fail_after(SOON):
                await broker.send(message("small"))  # not over a connection that is about to end
            with pytest.raises(PermanentSendError, match="at most"):
                await broker.send(message("third", bytes(server.too_large)))
    assert await ids(server, url, 2) == Counter(["first", "small"])


async def test_what_can_not_be_encoded(server: RedisServer) -> None:
    """A lone surrogate or a payload that is no bytes harms its message only."""
    url = server.fresh()
    async with open_broker(url) as broker:
        with pytest.raises(PermanentSendError, match="Unicode"):
            await broker.send(message("\ud800", b""))
        with pytest.raises(PermanentSendError, match="Unicode"):
            await broker.send(message("a", headers={"name": "\ud800"}))
        for payload in ("text", None, bytearray(b"x")):
            with pytest.raises(TypeError, match="payload"):
                await broker.send(Message("a", payload, 0.0))  # type: ignore[arg-type]
        with pytest.raises(PartialSendError) as raised:
            await broker.send_batch([message("\ud800", b""), message("b")])
    assert set(raised.value.failed or ()) == {"\ud800"}
    assert await ids(server, url, 1) == Counter(["b"])


# ---------------------------------------------------------------- not fit for it


async def test_a_replica_is_left(own: Callable[..., RedisServer]) -> None:
    """After a failover READONLY costs no message: all wait for a master; and nothing opens on a replica."""
    server = own()
    url = server.fresh()
    async with open_broker(url) as broker:
        await broker.send(message("before"))
        with asked(server, "REPLICAOF", "127.0.0.1", free_port()) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(broker.send, message("alone"))
                nursery.start_soon(broker.send_batch, [message("a"), message("b")])
                await trio.sleep(0.5)
                with pytest.raises(ConnectionError, match="replica"):
                    async with open_broker(url):
                        pass
                client.execute_command("REPLICAOF", "NO", "ONE")
        await broker.send(message("after"))
    assert await ids(server, url, 5) == Counter(["before", "alone", "a", "b", "after"])


async def test_a_policy_that_evicts_is_refused(own: Callable[..., RedisServer]) -> None:
    """At the opening, by the setting's name, and not where it is allowed."""
    server = own("--maxmemory-policy", "allkeys-lru")
    url = server.fresh()
    with pytest.raises(ConnectionError, match=r"maxmemory-policy is allkeys-lru.*\?eviction=allowed"):
        async with open_broker(url):
            pass
    async with open_broker(f"{url}?eviction=allowed") as broker:
        await broker.send(message("one"))


# ---------------------------------------------------------------- as coredis raises it


async def test_a_busy_script(own: Callable[..., RedisServer]) -> None:
    """BUSY comes through as coredis raises it, and passes with the script."""
    server = own("--busy-reply-threshold", "1")

    def run_script() -> None:
        with server.client() as client, pytest.raises(redis.exceptions.ResponseError):
            client.eval("while true do end", 0)

    async with open_broker(server.fresh()) as broker:
        script = threading.Thread(target=run_script)
        script.start()
        with trio.fail_after(SOON), pytest.raises(coredis.exceptions.ResponseError, match="BUSY"):
            while True:
                await broker.send(message("one"))
        with server.client() as client:
            client.execute_command("SCRIPT", "KILL")
        await trio.to_thread.run_sync(script.join)
        await broker.send(message("two"))


async def test_while_it_loads_its_disk_sends_wait(own: Callable[..., RedisServer]) -> None:
    """After a restart Redis is there before its data is: what is sent meanwhile waits, and is confirmed."""
    server = own("--key-load-delay", "400")  # µs; it looks after its clients after every 1,024 commands
    url = server.fresh()
    async with open_broker(url) as broker:
        for start in range(0, 5000, 1000):
            await broker.send_batch([message(f"m{start + number}") for number in range(1000)])
        await trio.to_thread.run_sync(server.kill)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, server.restart)
            said = ""
            with trio.fail_after(SOON):
                while " loading" not in said:
                    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1") as raised:
                        async with open_broker(url):
                            pass
                    said = str(raised.value)
                    assert " loading" in said or "refused" in said  # it is not there yet
            with trio.fail_after(SOON):
                await broker.send(message("after"))
    assert (await ids(server, url, 5001)).total() == 5001


# ---------------------------------------------------------------- connections


async def test_resets_in_the_middle_of_batches(server: RedisServer) -> None:
    """A batch that a reset cuts in two says which messages are in doubt: those it does not name are there."""
    print("seed", SEED)
    chance = random.Random(SEED)
    url = server.fresh()
    doubtful: set[str] = set()
    sent: set[str] = set()
    async with network_to(server.port) as network:
        async with open_broker(f"redis://127.0.0.1:{network.port}/{url.rpartition('/')[2]}") as broker:
            for round in range(30):
                batch = [message(f"m{round}-{number}", bytes(500)) for number in range(200)]
                sent |= {one.id for one in batch}
                network.reset_after = chance.randrange(1, 120_000)
                with trio.fail_after(SOON):
                    try:
                        await broker.send_batch(batch)
                    except PartialSendError as error:
                        assert error.failed is not None
                        assert all(isinstance(one, ConnectionLost) for one in error.failed.values())
                        doubtful |= error.failed.keys()
                    except ConnectionError:
                        doubtful |= {one.id for one in batch}
    arrived = await ids(server, url, len(sent - doubtful))
    assert network.resets == 30
    assert set(arrived) >= sent - doubtful
    assert max(arrived.values()) == 1


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("", "it asks for a password, as in redis:"),
        (":hunter2@", "invalid username"),
        ("nobody:hunter2@", "invalid username"),
    ],
)
async def test_who_is_not_let_in(own: Callable[..., RedisServer], user: str, says: str) -> None:
    """No password, a wrong one, an unknown user: one line that shows neither."""
    server = own("--requirepass", "right")
    with pytest.raises(ConnectionError, match=says) as raised:
        async with open_broker(f"redis://{user}127.0.0.1:{server.port}/s"):
            pass
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert f"127.0.0.1:{server.port}" in str(raised.value)
    async with open_broker(f"redis://:right@127.0.0.1:{server.port}/s") as broker:
        await broker.send(message("one"))


async def test_db_that_is_not_there(server: RedisServer) -> None:
    """A number that is too high is a ConnectionError that says so."""
    with pytest.raises(ConnectionError, match="DB index is out of range"):
        async with open_broker(f"{server.fresh()}?db=500"):
            pass


# ---------------------------------------------------------------- TLS


async def test_tls(
    own: Callable[..., RedisServer], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rediss:// refuses a certificate that it does not trust, and sends where it does."""
    port = free_port()
    key = certificate.parent / "key.pem"
    files = f"--tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate}"
    server = own("--tls-port", str(port), *files.split(), "--tls-auth-clients", "no")
    url = f"rediss://127.0.0.1:{port}/s"
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*certificate") as raised:
        async with open_broker(url):
            pass
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with open_broker(url) as broker:
        await broker.send_batch([message(f"m{number}", bytes(500)) for number in range(1000)])
        await trio.to_thread.run_sync(server.kill)
        await trio.to_thread.run_sync(server.restart)
        with trio.fail_after(SOON):
            await broker.send(message("after"))
        server.freeze()
        begun = trio.current_time()
    assert trio.current_time() - begun < 5.0  # no confirm_timeout, which is 10
    server.thaw()
    assert (await ids(server, "redis://127.0.0.1/s", 1001)).total() == 1001
