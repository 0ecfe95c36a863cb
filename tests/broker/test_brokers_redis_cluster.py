"""A stream in a Redis Cluster of three masters with a replica each."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from localdelay import Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import open_broker
from tests.kit.commands import in_python, run
from tests.kit.redis_clusters import arrived_in, running, streaming
from tests.kit.servers.process import Server, free_port
from tests.kit.servers.redis import RedisServer
from tests.kit.servers.redis_cluster import RedisCluster

MANY = 2000
ALL = Counter({f"m{number}": 1 for number in range(MANY)})


@pytest.fixture(scope="module")
def shared(start_server: Callable[[str], Server]) -> Iterator[RedisCluster]:
    with running(start_server, RedisCluster()) as one:
        yield one


@pytest.fixture
def cluster(shared: RedisCluster) -> RedisCluster:
    """All tests share it: each leaves it well."""
    shared.wait_until_well()
    return shared


def message(id: str, payload: bytes | None = None) -> Message:
    return Message(id, id.encode() if payload is None else payload, trio.current_time())


@pytest.mark.parametrize("stream", ["plain", "orders:{7}:due", "{}"])
async def test_a_stream_has_one_master(cluster: RedisCluster, stream: str) -> None:
    """Whichever node the URL names; sends, a batch, and a message that comes back as it was sent."""
    owner = cluster.owner(f"/{stream}")
    for number, node in enumerate(cluster.nodes):
        url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}/{stream}?max_length=1000"
        async with open_broker(url) as broker:
            await broker.send(Message(f"{number}", b"\x00\r\n\xff", 0.0, {"payload": "ü"}))
            await broker.send_batch([message(f"{number}-{one}") for one in range(100)])
    received = await trio.to_thread.run_sync(cluster.read, url, 606)
    assert len({one.headers["Localdelay-Id"] for one in received}) == len(received) == 606
    assert received[0].payload == b"\x00\r\n\xff"
    assert received[0].headers["header:payload"] == "ü"
    assert cluster.owner(url) is owner


async def test_a_slot_moves_meanwhile(cluster: RedisCluster) -> None:
    """Each of 2,000 messages is there once, also while the key is on one node and its slot is another's."""
    url = cluster.fresh()
    source = cluster.owner(url)
    target = next(node for node in cluster.masters() if node is not source)
    with source.client() as client:
        slot = client.cluster("KEYSLOT", url.rpartition("/")[2])

    def there_and_back(pause: float) -> None:
        for one, other in ((source, target), (target, source)):
            with cluster.moving(one, other, slot):
                time.sleep(pause)

    async with streaming(url, MANY, over=2.5):
        await trio.sleep(0.2)
        await trio.to_thread.run_sync(there_and_back, 0.0)
        await trio.to_thread.run_sync(there_and_back, 1.1)  # it asks for a second, and is sent back then
    assert await arrived_in(cluster, url, MANY) == ALL


async def test_a_replica_takes_over_by_order(cluster: RedisCluster) -> None:
    """Nothing is lost or there twice: the master that was says so of what it has not taken."""
    url = cluster.fresh()
    master = cluster.owner(url)
    replica = cluster.replica_of(master)

    def take_over() -> None:
        with replica.client() as client:
            client.cluster("FAILOVER")
        cluster.wait_until_taken_over(master)

    async with streaming(url, MANY, over=1.5):
        await trio.sleep(0.3)
        await trio.to_thread.run_sync(take_over)
    assert await arrived_in(cluster, url, MANY) == ALL


async def test_what_can_never_work_and_what_can_not_now(cluster: RedisCluster) -> None:
    """Of the one message, as its master says it; the others go through."""
    url, text = cluster.fresh(), cluster.fresh()
    with cluster.owner(text).client() as client:
        client.set(text.rpartition("/")[2], "text")
    async with open_broker(text) as broker:
        with pytest.raises(PermanentSendError, match="WRONGTYPE"):
            await broker.send(message("one"))
    with cluster.owner(url).client() as client:
        client.config_set("proto-max-bulk-len", "1mb")
        async with open_broker(url) as broker:
            with pytest.raises(PartialSendError) as raised:
                await broker.send_batch([message("a"), message("large", bytes(1024 * 1024 + 1))])
            assert {id: type(error) for id, error in (raised.value.failed or {}).items()} == {
                "large": PermanentSendError
            }
            client.config_set("maxmemory", 1)
            with pytest.raises(Throttled, match="OOM"):
                await broker.send(message("full"))
            client.config_set("maxmemory", 0)
            await broker.send(message("b"))
        client.config_set("proto-max-bulk-len", "512mb")
    assert await arrived_in(cluster, url, 2) == Counter(["a", "b"])


@pytest.mark.parametrize("user", ["adder:hunter2", "nobody:hunter2"])
async def test_who_is_not_let_in(cluster: RedisCluster, user: str) -> None:
    """One line that shows no password; who has the right one gets in."""
    cluster.everywhere("ACL", "SETUSER", "adder", "on", ">right", "~*", "+@all")
    url = cluster.fresh()
    with pytest.raises(ConnectionError, match=r"Redis Cluster at 127\.0\.0\.1:.*invalid username") as raised:
        async with open_broker(url.replace("//", f"//{user}@")):
            pass
    assert "hunter2" not in repr(raised.value)
    assert "\n" not in str(raised.value)
    async with open_broker(url.replace("//", "//adder:right@")) as broker:
        await broker.send(message("one"))


@pytest.mark.parametrize("is_there", [False, True])
async def test_what_is_no_cluster(start_server: Callable[[str], RedisServer], is_there: bool) -> None:
    """A ConnectionError of one line that says where."""
    port = start_server("redis").port if is_there else free_port()
    says = "cluster support disabled" if is_there else "Connection refused"
    with pytest.raises(ConnectionError, match=f"Redis Cluster at 127.0.0.1:{port}: .*{says}") as raised:
        async with open_broker(f"redis+cluster://127.0.0.1:{port}/s"):
            pass
    assert "\n" not in str(raised.value)


async def test_tls(
    start_server: Callable[[str], Server], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rediss+cluster:// every connection is encrypted: to who is asked, and to who is named."""
    start_server("redis")
    key, tls = certificate.parent / "key.pem", free_port()
    files = f"--tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate}"
    settings = f"--cluster-enabled yes --tls-cluster yes --tls-port {tls} {files} --tls-auth-clients no"
    server = RedisServer(*settings.split())
    server.start()
    url = f"rediss+cluster://127.0.0.1:{tls}/s"
    try:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*certificate"):
            async with open_broker(url):
                pass
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with open_broker(url) as broker:  # it takes a moment until it takes anything
            await broker.send_batch([message(f"{number}") for number in range(100)])
        assert len(server.read(url, 100)) == 100
    finally:
        server.stop()


def test_the_commands(cluster: RedisCluster) -> None:
    """`relay` sends there, and `check` tells of the stream's master, by whichever node it is asked."""
    url = cluster.fresh()
    done = in_python("relay", "--to", url, "--delay", "0", given="a\nb\n")
    assert done.returncode == 0, done.stderr
    assert [one.payload for one in cluster.read(url, 2)] == [b"a", b"b"]
    assert [one["what"] for one in looked(url) if one["is_well"] is False] == ["confirms"]
    with cluster.owner(url).client() as client:
        client.config_set("appendonly", "yes")
    assert not [one for one in looked(url) if one["is_well"] is False]


def looked(url: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("check", url, "--json").stdout)["findings"]
    return found
