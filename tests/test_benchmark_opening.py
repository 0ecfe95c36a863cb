"""A broker by its URL: what is refused, in words that name the fix and show no secret."""

from __future__ import annotations

import sys

import pytest
import trio

from localdelay import Message
from localdelay.brokers.opening import check_url, hide_secrets, open_broker, without_secrets
from localdelay.demo.server import running_server

GOOD = "nats://127.0.0.1:4222/orders.due"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must begin with nats://"),
        ("127.0.0.1:4222/orders", "must begin with nats://"),
        ("amqp://user:hunter2@host/orders", "must begin with nats://"),
        ("nats:orders", "must be a host and a subject"),
        ("nats:///orders", "must be a host and a subject"),
        ("nats://:4222/orders", "must be a host and a subject"),
        ("nats://host/orders?batch=1", "must be a host and a subject"),
        ("nats://host/orders#due", "must be a host and a subject"),
        ("nats://host", "must end with the subject"),
        ("nats://host/", "must end with the subject"),
        ("nats://host/or ders", "must end with the subject"),
        ("nats://host/orders.*", "must end with the subject"),
        ("nats://host/orders.>", "must end with the subject"),
        ("nats://host/orders..due", "must end with the subject"),
        ("nats://host:99999/orders", "must be a broker's"),
        ("nats://user:hunter2#@host/orders", "must be a broker's"),
        ("nats://[::1/orders", "must be a broker's"),
    ],
)
async def test_a_url_that_is_none_is_refused(url: str, said: str) -> None:
    """The error names the argument and the form that is right, and quotes nothing that could be a secret."""
    with pytest.raises(ValueError, match=f"^url {said}.*nats://host:4222/SUBJECT") as refused:
        check_url(url)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ValueError, match=f"^url {said}"):
        async with open_broker(url):
            pass


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (GOOD, GOOD),
        ("nats://user:hunter2@host:4222/orders", "nats://***@host:4222/orders"),
        ("nats://token@host/a@b", "nats://***@host/a@b"),
        ("nats://user:p%40ss@host/orders", "nats://***@host/orders"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """User, password and token are left out; the rest is as it was."""
    check_url(url)
    assert without_secrets(url) == shown


def test_a_text_loses_the_urls_secrets() -> None:
    """Whatever a client says, it repeats neither the user nor the password, as written or as meant."""
    url = "nats://user:p%40ss@host/orders"
    assert hide_secrets("user can't log in with p@ss (p%40ss)", url) == "*** can't log in with *** (***)"
    assert hide_secrets("nothing to hide", GOOD) == "nothing to hide"


async def test_messages_reach_the_subject() -> None:
    """On a server that is started here: what is sent is confirmed by the stream."""
    import nats.aio.client
    import trio_asyncio

    from localdelay.brokers.nats import connected

    async with running_server(max_buffered=100_000) as server:
        client = nats.aio.client.Client()
        async with connected(client, server.url):
            jetstream = client.jetstream()
            await trio_asyncio.aio_as_trio(jetstream.add_stream)(name="T", subjects=["due"], storage="memory")
            async with open_broker(f"{server.url}/due") as broker:
                await broker.send(Message(id="a", payload=b"x", execute_at=trio.current_time()))
            info = await trio_asyncio.aio_as_trio(jetstream.stream_info)("T")
            assert info.state.messages == 1


async def test_no_server_is_a_connection_error() -> None:
    """Where nobody listens, the error says so and hides the password."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(ConnectionError, match="no connection to the NATS server") as refused:
        async with open_broker(f"nats://user:hunter2@127.0.0.1:{port}/orders"):
            pass
    assert "hunter2" not in str(refused.value)


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    """A ConnectionError that the caller raises is not taken for one of connecting."""
    own = ConnectionError("user of the block")
    async with running_server(max_buffered=100) as server:
        with pytest.raises(ConnectionError) as raised:
            async with open_broker(f"{server.url}/due"):
                raise own
    assert raised.value is own


@pytest.mark.parametrize("module", ["nats", "trio_asyncio"])
async def test_without_the_client_it_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing extra is named, with the command."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "localdelay.brokers.nats", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'localdelay\[demo\]'"):
        async with open_broker(GOOD):
            pass
