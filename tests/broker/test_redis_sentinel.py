"""A stream, and a queue, in a Redis that sentinels look after."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from localdelay import Message
from localdelay.brokers import open_broker
from localdelay.redis_plan import open_redis_delay_queue
from tests.kit.commands import in_python, run
from tests.kit.redis_clusters import SEED, World, arrived_in, opened_on, running, streaming
from tests.kit.redis_plan_worker import real_time
from tests.kit.redis_queues import Sent
from tests.kit.servers.process import Process, free_port, listening, program
from tests.kit.servers.redis import RedisServer
from tests.kit.servers.redis_sentinel import SERVICE, RedisSentinels

MANY = 2000


@pytest.fixture
def sentinels(start_server: Callable[[str], object]) -> Iterator[RedisSentinels]:
    with running(start_server, RedisSentinels()) as one:
        yield one


@pytest.mark.parametrize("blow", ["kill", "freeze"])
async def test_the_master_of_a_stream_goes(sentinels: RedisSentinels, blow: str) -> None:
    """Lost is only what was confirmed just before and not copied; twice there is what was under way."""
    url, victim = sentinels.fresh(), sentinels.master()
    async with streaming(url, MANY, over=1.5, connect_timeout=1.0) as confirmed:
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(getattr(victim, blow))
        struck = real_time()
        await trio.to_thread.run_sync(sentinels.wait_until_taken_over, victim)
    if blow == "freeze":
        victim.thaw()  # it takes itself for the master still, until the sentinels tell it
        await trio.to_thread.run_sync(sentinels.wait_until_replica, victim)
    assert sentinels.master() is not victim
    arrived = await arrived_in(sentinels, url, MANY - 100)
    lost = confirmed.keys() - arrived.keys()
    twice = arrived.total() - len(arrived)
    print(f"{len(lost)} lost, {twice} twice")
    assert arrived.keys() <= confirmed.keys()
    assert all(struck - 0.5 <= confirmed[id] <= struck + 0.5 for id in lost)
    assert len(lost) <= 100
    assert twice <= 50  # one a worker


@pytest.mark.parametrize("replicas", [None, 1])
async def test_the_master_of_a_queue_dies(sentinels: RedisSentinels, replicas: int | None) -> None:
    """Lost is only what was put just before and not copied; with WAIT, nothing."""
    print("seed", SEED)
    world, url, victim = World(), sentinels.fresh(), sentinels.master()
    async with opened_on(sentinels, world.send, url, replicas=replicas, put_timeout=2.0) as queue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.fill, queue, MANY)
            await world.until_put(MANY // 4)
            await trio.to_thread.run_sync(victim.kill)
            killed = real_time()
            await trio.to_thread.run_sync(sentinels.wait_until_taken_over, victim)
            if replicas:
                await trio.to_thread.run_sync(victim.restart)
        await world.until_empty(queue)
        assert queue.statistics().connections == 2
    print(world.show(), f"earliest {world.earliest:.6f}")
    assert len(world.put) == MANY
    assert world.earliest >= 0
    assert max(world.sent.values()) <= 3
    assert all(killed - 0.5 <= world.put[id] <= killed + 0.5 for id in world.lost)
    if replicas:
        assert not world.lost


def test_the_commands(sentinels: RedisSentinels) -> None:
    """`relay` sends there and holds there, and `check` tells of the master; one sentinel of three will do."""
    url, held = sentinels.fresh(), sentinels.fresh()
    for _, process in sentinels.sentinels[:2]:
        process.kill()
    done = in_python("relay", "--to", url, "--hold", held, "--delay", "50ms", given="a\nb\n")
    assert done.returncode == 0, done.stderr
    assert sorted(one.payload for one in sentinels.read(url, 2)) == [b"a", b"b"]
    found = json.loads(run("check", url, "--json").stdout)["findings"]
    assert [one["what"] for one in found if one["is_well"] is False] == []


async def test_who_has_a_password(start_server: Callable[[str], object]) -> None:
    """The servers know the user of the URL; the sentinels, who have no users, want its password, or none."""
    acl = ["--user", "adder", "on", ">right", "~*", "&*", "+@all"]
    for password in ("", "right"):
        with running(start_server, RedisSentinels(1, *acl, password=password)) as one:
            url = one.fresh().replace("//", "//adder:right@")
            async with open_broker(url) as broker:
                await broker.send(Message("one", b"", 0.0))
            with pytest.raises(ConnectionError, match=r"invalid username|WRONGPASS") as raised:
                async with open_broker(url.replace("right", "hunter2")):
                    pass
            assert "hunter2" not in repr(raised.value)
            with pytest.raises(ConnectionError, match="no sentinel answers: it knows no such service"):
                async with open_broker(url.replace(f"/{SERVICE}/", "/nobody/")):
                    pass


@pytest.mark.parametrize("what", ["nobody", "redis"])
async def test_what_can_not_be_reached(start_server: Callable[[str], RedisServer], what: str) -> None:
    """A ConnectionError of one line that says where, and what was wrong."""
    port = free_port() if what == "nobody" else start_server("redis").port
    says = "refused" if what == "nobody" else "unknown command"
    for opening in (open_broker, lambda url: open_redis_delay_queue(Sent(), url=url, workers=1)):
        with pytest.raises(ConnectionError, match=f"sentinels at 127.0.0.1:{port}: .*{says}") as raised:
            async with opening(f"redis+sentinel://127.0.0.1:{port}/orders/s"):
                pass
        assert "\n" not in str(raised.value)


async def test_tls(
    start_server: Callable[[str], object], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rediss+sentinel:// both are encrypted: the sentinel, and the server that it names."""
    start_server("redis")
    sentinel, port, tls = Process("redis-sentinel"), free_port(), free_port()
    key = certificate.parent / "key.pem"
    settings = [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificate}"]
    server = RedisServer(*f"--tls-port {tls} --{' --'.join(settings)} --tls-auth-clients no".split())
    lines = [f"dir {sentinel.directory}", f"tls-port {port}", "port 0", "bind 127.0.0.1", *settings]
    lines += ["tls-auth-clients no", "tls-replication yes", f"sentinel monitor {SERVICE} 127.0.0.1 {tls} 1"]
    file = sentinel.directory / "sentinel.conf"
    file.write_text("\n".join(lines))
    try:
        server.start()
        sentinel.start([program("redis-server", "redis-server"), str(file), "--sentinel"], listening(port))
        url = f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}/s"
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*certificate"):
            async with open_broker(url):
                pass
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with open_broker(url) as broker:
            await broker.send(Message("one", b"", 0.0))
        assert len(server.read(url.replace(f"{SERVICE}/", ""), 1)) == 1
    finally:
        sentinel.stop()
        server.stop()
