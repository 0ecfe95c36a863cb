"""A broker by its URL: what is refused, in words that name the fix and show no secret."""

from __future__ import annotations

import re
import sys

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from localdelay import brokers
from localdelay.brokers import address, check_url, hide_secrets, open_broker, without_secrets
from localdelay.brokers.address import Address, Form

GOOD = "nats://127.0.0.1:4222/orders.due"
SCHEMES = [
    "kafka",
    "amqp",
    "amqps",
    "redis",
    "rediss",
    "redis+cluster",
    "redis+sentinel",
    "beanstalkd",
    "nats",
    "nsq",
    "rocketmq",
]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must begin with one of kafka://, amqp://"),
        ("127.0.0.1:4222/orders", "must begin with one of"),
        ("mqtt://user:hunter2@host/orders", "must begin with one of"),
        ("nats:orders", "must begin with one of"),
        ("nats:/host/orders", "must begin with one of"),
        ("stdout", "must begin with one of .*or be stdout:; did you mean stdout:"),
        ("stdout:/file", "must begin with one of"),
        ("nats:///orders", "must name a host"),
        ("nats://:4222/orders", "must name a host"),
        ("kafka://a:1,:2/orders", "must name a host"),
        ("redis://a:1,b:2/orders", "must be a broker's"),
        ("nats://host/orders?batch=hunter2", "has an option that nats:// does not know, batch; it knows"),
        ("amqp://host/orders?vhst=a", "has an option that amqp:// does not know, vhst; it knows delay_queue"),
        ("amqp://host/orders?vhost", "must be a broker's"),
        ("nats://host/orders#due", "must be a broker's"),
        ("nats://host", "must end with the subject"),
        ("nats://host/", "must end with the subject"),
        ("nats://host/or ders", "must end with the subject"),
        ("nats://host/orders.*", "must end with the subject"),
        ("nats://host/orders.>", "must end with the subject"),
        ("nats://host/orders..due", "must end with the subject"),
        ("kafka://host/or/ders", "must end with the topic"),
        ("amqp://host/", "must end with the queue"),
        ("redis://host", "must end with the stream"),
        ("redis+sentinel://host/stream", "must end with the service, and the stream"),
        ("redis+sentinel://host//stream", "must end with the service, and the stream"),
        ("beanstalkd://host/-a", "must end with the tube"),
        ("beanstalkd://user:hunter2@host/a", "can't have a user: beanstalkd:// knows none"),
        ("nats://host:99999/orders", "must have a port from 1 to 65535"),
        ("nats://a:1,b:x/orders", "must have a port from 1 to 65535"),
        ("nats://user:hunter2#@host/orders", "must be a broker's"),
        ("nats://[::1/orders", "must be a broker's"),
        ("amqp://user:%ff@host/orders", "must be a broker's"),
        ("amqp://host/%ff", "must be a broker's"),
        ("redis://u:12/hunter2@127.0.0.1:1/stream", "must be a broker's"),
        ("redis://host/\udcff", "must be a broker's"),
    ],
)
async def test_a_url_that_is_none_is_refused(url: str, said: str) -> None:
    """The error names the argument and what is wrong, and quotes nothing that could be a secret."""
    with pytest.raises(ValueError, match=f"^url {said}") as refused:
        check_url(url)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=f"^url {said}"):
        async with open_broker(url):
            pass


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_error_shows_a_url_that_is_right(scheme: str) -> None:
    """What is quoted as an example is accepted."""
    with pytest.raises(ValueError, match="like ") as refused:
        check_url(f"{scheme}://host")
    example = str(refused.value).rpartition("like ")[2]
    check_url(example)
    assert scheme.startswith(example.partition(":")[0])


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("x://host/a", Address("x", (("host", 99),), "a")),
        ("x://host:7/a", Address("x", (("host", 7),), "a")),
        ("x://[::1]:7/a", Address("x", (("::1", 7),), "a")),
        ("x://u@host/a", Address("x", (("host", 99),), "a", "u")),
        ("x://u:@host/a", Address("x", (("host", 99),), "a", "u", "")),
        ("x://u%3A:p%40%2Fq@host/a", Address("x", (("host", 99),), "a", "u:", "p@/q")),
        ("x://host/%61", Address("x", (("host", 99),), "a")),
        ("x://host/a?o=1%26&p=", Address("x", (("host", 99),), "a", options={"o": "1&", "p": ""})),
        ("x://a,b:2/a", Address("x", (("a", 99), ("b", 2)), "a")),
    ],
)
def test_a_url_is_taken_apart(url: str, parsed: Address) -> None:
    """Hosts, target, user and options come out decoded, and a port that is not given is the usual one."""
    form = Form("x://host:99/T", "[a-z]+", options=None, many_hosts=True)
    assert address.parse(url, {"x": form}) == parsed
    assert (parsed.host, parsed.port) == parsed.hosts[0]


def test_an_address_does_not_show_its_secrets() -> None:
    """Neither user nor password nor the options are in its repr."""
    shown = repr(Address("x", (("host", 99),), "a", "user", "hunter2", {"sasl.password": "swordfish"}))
    assert not {"user'", "hunter2", "swordfish"} & set(re.split(r"\W(?<!')", shown))
    assert "hunter2" not in shown
    assert "swordfish" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (GOOD, GOOD),
        ("stdout:", "stdout:"),
        ("nats://user:hunter2@host:4222/orders", "nats://***@host:4222/orders"),
        ("nats://token@host/a@b", "nats://***@host/a@b"),
        ("nats://user:p%40ss@host/orders", "nats://***@host/orders"),
        ("kafka://a:1,b:2/t?sasl.password=x", "kafka://a:1,b:2/t?***"),
        ("kafka://u:p@a:1,b:2/t?linger.ms=1", "kafka://***@a:1,b:2/t?***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """User, password, token and the values of options are left out; the rest is as it was."""
    check_url(url)
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No such command 'amqp://u:p a@s@h/q?x=y'.", "No such command 'amqp://***@h/q?***'."),
        ("'/tmp/amqp:/u:p@h/q' is no file", "'/tmp/amqp:/***@h/q' is no file"),
        ("'amqp://user:passwor...' is no number", "'amqp://***' is no number"),
        ("must begin with one of kafka://, amqp://", "must begin with one of kafka://, amqp://"),
        ("like redis://host:6379/NAME; mail a@b", "like redis://***@b"),  # better too much
        ("like amqp://user:password@host:5672/QUEUE", "like amqp://user:password@host:5672/QUEUE"),
        ("what is a@b?c=d...", "what is a@b?c=d..."),
    ],
)
def test_a_text_loses_what_may_be_secret_of_any_url(text: str, shown: str) -> None:
    """Whole, as a path, or cut off; what names none stays."""
    assert address.hide_urls(text) == shown


def test_a_text_loses_the_urls_secrets() -> None:
    """Whatever a client says, it repeats neither the user nor the password, as written or as meant."""
    url = "nats://user:p%40ss@host/orders"
    assert hide_secrets("user can't log in with p@ss (p%40ss)", url) == "user can't log in with *** (***)"
    assert hide_secrets("user:p%40ss", url) == "***"
    assert hide_secrets("no token", "nats://token@host/orders") == "no ***"
    assert hide_secrets("nothing to hide", GOOD) == "nothing to hide"
    kafka = "kafka://host/topic?linger.ms=50&sasl.password=sw%40+rd&x=1"
    assert hide_secrets("sw@ rd sw%40+rd 50", kafka) == "*** *** 50"


@given(st.text() | st.from_regex(r"(nats|kafka|amqp|redis)://[^/]{0,20}@?[^/]{0,20}/[^/]{0,9}(\?.{0,20})?"))
def test_no_text_breaks_it(url: str) -> None:
    """Any text is a URL or a ValueError of one line, and one that is accepted can be shown."""
    try:
        check_url(url)
    except ValueError as refused:
        assert str(refused).startswith("url ")
        assert "\n" not in str(refused)
    else:
        assert without_secrets(url)
        hide_secrets("text", url)


CLIENTS = [
    ("nats", "nats", "nats"),
    ("kafka", "confluent_kafka", "kafka"),
    ("amqps", "pika", "amqp"),
    ("redis", "coredis", "redis"),
    ("beanstalkd", "greenstalk", "beanstalkd"),
    ("rocketmq", "rocketmq", "rocketmq"),
]


@pytest.mark.parametrize(("scheme", "client", "extra"), CLIENTS)
async def test_without_the_client_it_says_what_to_install(
    scheme: str, client: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing extra is named, with the command."""
    for name in [name for name in sys.modules if name.partition(".")[0] == client]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, client, None)
    for name in [name for name in sys.modules if name.startswith("localdelay.brokers.")]:
        if name not in ("localdelay.brokers.opening", "localdelay.brokers.address"):
            monkeypatch.delitem(sys.modules, name)
    fix = re.escape(f"{scheme}:// needs a client: pip install 'localdelay[{extra}]'")
    with pytest.raises(ModuleNotFoundError, match=f"^{fix}$"):
        async with open_broker(f"{scheme}://host/orders"):
            pass


def test_the_package_offers_what_is_needed() -> None:
    """`import localdelay` alone gives `localdelay.brokers.open_broker`, and imports no client."""
    assert brokers.open_broker is open_broker
    assert not set(brokers.__all__) - set(dir(brokers))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_an_opening_that_is_cancelled_already_ends(scheme: str) -> None:
    """Whatever it has begun by then is cut off, and nobody waits for it."""
    service = "service/" if scheme.endswith("sentinel") else ""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_broker(f"{scheme}://127.0.0.1:1/{service}orders"):
            pass
    assert scope.cancelled_caught
