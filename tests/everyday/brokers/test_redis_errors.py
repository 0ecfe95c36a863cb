"""Redis without a real one: what its errors mean, and servers that only pretend."""

from __future__ import annotations

import coredis.exceptions
import pytest
import trio
from coredis.parser import Parser

from localdelay import Message, PermanentSendError, Throttled
from localdelay.brokers import open_broker
from localdelay.brokers.redis import classified, escaped
from tests.kit.servers.network import listening
from tests.kit.servers.process import free_port
from tests.kit.servers.redis_faults import SlowRedis


def message(id: str) -> Message:
    return Message(id, id.encode(), trio.current_time())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Throttled),
        ("ERR max number of clients reached", Throttled),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", PermanentSendError),
        ("NOPERM User orders has no permissions to run the 'xadd' command", PermanentSendError),
        ("NOAUTH Authentication required.", PermanentSendError),
        ("WRONGPASS invalid username-password pair or user is disabled.", PermanentSendError),
        ("ERR unknown command 'XADD', with args beginning with: 's' '*'", PermanentSendError),
        ("ERR Protocol error: invalid bulk length", PermanentSendError),
        ("ERR Elements are too large to be stored", PermanentSendError),
        ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", PermanentSendError),
        ("LOADING Redis is loading the dataset in memory", None),
        ("BUSY Redis is busy running a script.", None),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", None),
        ("READONLY You can't write against a read only replica.", None),
        ("NOREPLICAS Not enough good replicas to write.", None),
        ("CLUSTERDOWN The cluster is down", None),
        ("MOVED 3999 127.0.0.1:6381", None),
        ("TRYAGAIN Multiple keys request during rehashing of slot", None),
        ("ERR something else", None),
    ],
)
def test_what_redis_says_is_classified(line: str, kind: type[Exception] | None) -> None:
    """A limit is Throttled, what can never work PermanentSendError, and the rest what coredis makes of it."""
    error = Parser().parse_error(line)
    verdict = classified(error)
    if kind is None:
        assert verdict is error
    else:
        assert type(verdict) is kind
        assert line.partition(" ")[2].partition(", with args")[0] in str(verdict)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("Redis has not answered within 10 s"), Throttled),
        (coredis.exceptions.ConnectionError("Connection lost while receiving response"), ConnectionError),
        (coredis.exceptions.InvalidResponse("Protocol Error"), ConnectionError),
        (OSError("odd"), ConnectionError),
        (coredis.exceptions.DataError("no reply"), None),
        (ConnectionError("known"), None),
    ],
)
def test_what_the_client_says_is_classified(error: Exception, kind: type[Exception] | None) -> None:
    """A time-out is Throttled, a lost connection a ConnectionError as everywhere else in Python."""
    verdict = classified(error)
    assert verdict is error if kind is None else type(verdict) is kind


def test_escaping_can_be_undone() -> None:
    """What begins with `header:` without it is the header's name, and no two names become one."""
    names = ["payload", "header:", "header:payload", "Payload", "x", "", "header"]
    fields = [escaped(name) for name in names]
    assert [field.removeprefix("header:") for field in fields] == names
    assert "payload" not in fields


async def test_a_slow_redis_is_not_a_silent_one() -> None:
    """What takes longer than `confirm_timeout` in all is confirmed, as long as answers keep coming."""
    slow = SlowRedis(0.1)
    async with listening(slow.handle) as port:
        async with open_broker(f"redis://127.0.0.1:{port}/s", confirm_timeout=0.3) as broker:
            begun = trio.current_time()
            await broker.send_batch([message(f"m{number}") for number in range(10)])
            assert trio.current_time() - begun > 0.9
    assert slow.added == 10


async def test_somebody_who_is_no_redis() -> None:
    """Answers in other protocols, and one who hangs up, are ConnectionErrors."""

    async def web(client: trio.SocketStream) -> None:
        await client.receive_some()
        await client.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await client.aclose()

    async def hang_up(client: trio.SocketStream) -> None:
        await client.aclose()

    async def babble(client: trio.SocketStream) -> None:
        await client.receive_some()
        await client.send_all(b"-\xff\r\n")
        await client.receive_some()

    async def other_version(client: trio.SocketStream) -> None:
        await client.receive_some()
        await client.send_all(b"%3\r\n+proto\r\n:2\r\n+id\r\n:1\r\n+version\r\n+7.0.0\r\n")
        await client.receive_some()

    for handle in (web, hang_up, babble, other_version):
        async with listening(handle) as port:
            with trio.fail_after(3), pytest.raises(ConnectionError, match="no connection to Redis"):
                async with open_broker(f"redis://127.0.0.1:{port}/s"):
                    pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("redis+sentinel://{}/orders/s", "no sentinel answers"),
        ("redis+cluster://{}/s", "no node of the cluster answers"),
    ],
)
async def test_somebody_who_knows_no_master(address: str, says: str) -> None:
    """An answer that is none of theirs is a ConnectionError, too."""
    async with listening(SlowRedis(0.0).handle) as port:
        with trio.fail_after(3), pytest.raises(ConnectionError, match=says):
            async with open_broker(address.format(f"127.0.0.1:{port}")):
                pass


@pytest.mark.parametrize("option", ["db=x", "db=-1", "db=1.5", "max_length=-1", "eviction=yes"])
async def test_wrong_options(option: str) -> None:
    """Each is a ValueError that names it, before anything is connected."""
    with pytest.raises(ValueError, match=f"^{option.partition('=')[0]} must be"):
        async with open_broker(f"redis://127.0.0.1:{free_port()}/s?{option}"):
            pass
