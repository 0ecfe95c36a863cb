"""What is made of what a broker says about itself. The real ones are in `broker/test_check.py`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
from confluent_kafka import KafkaError

from localdelay.brokers.checks import amqp, kafka, nats, redis
from localdelay.brokers.checks.finding import Finding
from localdelay.cli.check import report
from localdelay.cli.output import laid_out
from tests.kit.commands import run


def wrong(found: Sequence[Finding]) -> list[str]:
    return [one.what for one in found if one.is_well is False]


def unseen(found: Sequence[Finding]) -> list[str]:
    return [one.what for one in found if one.is_well is None]


REFUSAL = (
    "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'o''s' in vhost '/': received {} but current is {}"
)


@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        (REFUSAL.format("durable", "'true'", "'false'"), {"durable": False}),
        (REFUSAL.format("x-max-length", "none", "the value '10' of type 'signedint'"), {"x-max-length": 10}),
        (
            REFUSAL.format("x-overflow", "none", "the value 'drop-head' of type 'longstr'"),
            {"x-overflow": "drop-head"},
        ),
        (
            REFUSAL.format("x-single-active-consumer", "none", "the value 'true' of type 'bool'"),
            {"x-single-active-consumer": True},
        ),
        (REFUSAL.format("x-max-length", "the value '10' of type 'signedint'", "none"), {}),
        ("ACCESS_REFUSED - configure access to queue 'orders' in vhost '/' refused", {}),
    ],
)
def test_how_a_queue_was_declared_is_learnt_from_refusals(text: str, learnt: dict[str, object]) -> None:
    """One argument each, of its own type; where nothing is learnt there is no use in asking again."""
    properties: dict[str, amqp.Argument] = {}
    arguments: dict[str, amqp.Argument] = {}
    assert amqp.learnt(text, properties, arguments) is bool(learnt)
    assert properties | arguments == learnt


def test_a_queue_that_can_not_be_seen() -> None:
    """What nobody can see is no reason to change anything, and is told."""
    found = amqp.findings("orders", None, may_delay=True, delays_by_quorum=False)
    assert (wrong(found), unseen(found)) == ([], ["confirms", "overflow"])
    locked = amqp.not_there("orders", 405, "RESOURCE_LOCKED - cannot obtain exclusive access")
    assert "RESOURCE_LOCKED" in locked.found


def test_a_bounded_queue_loses_what_classic_delays_hand_on() -> None:
    """It refuses publishes, and classic dead-lettering does not mind: with quorum nothing is lost."""
    declared = {"durable": True, "x-max-length-bytes": 10, "x-overflow": "reject-publish-dlx"}
    for by_quorum, notes in ((False, ["native delay"]), (True, [])):
        found = amqp.findings("orders", declared, may_delay=True, delays_by_quorum=by_quorum)
        assert (wrong(found), unseen(found)) == ([], notes)


@pytest.mark.parametrize(
    ("replicas", "told", "acks", "is_well"),
    [
        (1, {"min.insync.replicas": "1"}, "all", None),
        (3, {}, "-1", None),
        (3, {"min.insync.replicas": "1"}, "all", False),
        (3, {"min.insync.replicas": "2"}, "all", True),
        (3, {"min.insync.replicas": "2"}, "1", False),
    ],
)
def test_how_many_replicas_confirm(
    replicas: int, told: dict[str, str], acks: str, is_well: bool | None
) -> None:
    """Two of several at least: one that confirms alone may take it to its grave."""
    found = {one.what: one for one in kafka.findings("orders", replicas, told, acks)}
    assert found["confirms"].is_well is is_well
    assert bool(found["confirms"].change) is (is_well is False)


@pytest.mark.parametrize(
    ("code", "said"),
    [(KafkaError.UNKNOWN_TOPIC_OR_PART, "not there"), (KafkaError.TOPIC_AUTHORIZATION_FAILED, "authoriz")],
)
def test_a_topic_that_is_not_shown(code: int, said: str) -> None:
    """It is not there, or this user may not have it: that is not mended by making it."""
    found = kafka.not_there("orders", KafkaError(code))
    assert (found.is_well, said in found.found) == (False, True)
    assert ("--create" in found.change) is (said == "not there")


def test_streams_of_nats() -> None:
    """No JetStream, no acknowledgements, an age that ends what waits, and a server before schedules."""
    assert "no JetStream" in nats.findings("orders", "2.12.0", {})[0].found
    config = {"name": "S", "subjects": ["orders.>", "orders"], "storage": "file"}
    found = nats.findings("orders", "2.11.3", {**config, "no_ack": True, "max_age": 60 * 10**9})
    assert (wrong(found), unseen(found)) == (["confirms"], ["age", "native delay"])
    assert wrong(nats.findings("orders", "2.12.0-RC.1", {**config, "allow_msg_schedules": True})) == []


@pytest.mark.parametrize(("replicas", "amiss"), [("0", ["replica"]), ("1", [])])
def test_a_master_of_a_redis_cluster_needs_a_replica(replicas: str, amiss: list[str]) -> None:
    """Without one nothing is taken once it has gone; a Redis of its own is not asked for one."""
    told = {"maxmemory_policy": "noeviction", "aof_enabled": "1", "connected_slaves": replicas}
    assert wrong(redis.findings(told, "none", "orders", may_evict=False, most=0)) == []
    told["cluster_enabled"] = "1"
    assert wrong(redis.findings(told, "none", "orders", may_evict=False, most=0)) == amiss


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("a.b", True),
        ("a.*", True),
        ("a.>", True),
        (">", True),
        ("a", False),
        ("a.b.>", False),
        ("*.c", False),
    ],
)
def test_patterns_of_subjects(pattern: str, matches: bool) -> None:
    """A star is a word, and an arrow is one or more at the end."""
    assert nats.matches(pattern, "a.b") is matches


@pytest.mark.parametrize("width", [79, 39])
def test_what_is_shown(width: int) -> None:
    """Marks in a column, what is found beside or below them, and a change in a line however long it is."""
    command = "kafka-configs.sh " + "x" * 100
    found = [Finding("topic", True, "there"), Finding("confirms", False, "word " * 30, command)]
    *lines, last = laid_out(report("kafka://h/t", found, width), width)
    assert lines[0] == "kafka://h/t"
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()).startswith(
        "kafka://h/t topic ok there confirms CHANGE word word"
    )
    assert last == f"  confirms: {command}"
    *_, fit = laid_out(report("kafka://h/t", found[:1], width), width)
    assert fit == "It is fit."


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("stdout:", "Invalid value for 'URL': must be a broker's: there is nothing to look at about stdout:"),
        ("kafka://host", "Invalid value for 'URL': must end with the topic to publish to"),
        ("redis://host/s?eviction=never", "Invalid value for 'URL': eviction must be allowed"),
        (
            "kafka://u:hunter2@host/t?nonsense=1",
            "Invalid value for 'URL': options that librdkafka does not take",
        ),
        (
            "nats://user:hunter2@127.0.0.1:1/orders",
            "no connection to NATS at 127.0.0.1:1: Connection refused",
        ),
        ("kafka://user:hunter2@127.0.0.1:1/orders?security.protocol=SASL_PLAINTEXT", "Connection refused"),
    ],
)
def test_where_it_can_not_look(url: str, said: str) -> None:
    """One line, exit code 2, and no password."""
    result = run("check", url)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert said in result.stderr
    assert "hunter2" not in result.stderr


def test_the_url_comes_from_the_environment() -> None:
    """As that of the relay does: a password does not have to stand on the command line."""
    result = run("check", LOCALDELAY_TO="stdout:")
    assert "nothing to look at" in result.stderr
    assert "Missing argument 'URL'" in run("check").stderr


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqps://{}/orders", "no connection to RabbitMQ at {}: it does not speak TLS"),
        ("rediss://{}/orders", "no connection to Redis at {}: it does not speak TLS"),
        ("beanstalkd://{}/orders", "no connection to beanstalkd at {}: what it says is none of beanstalkd's"),
        ("nats://{}/orders", "no connection to NATS at {}: "),
        ("nsq://{}/orders", "no connection to NSQ at {}: "),
    ],
)
def test_where_somebody_else_listens(url: str, says: str) -> None:
    """It is said in a line that it is none of these, and not with what a client makes of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):  # the test has ended
                while True:
                    with listening.accept()[0] as connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.recv(9999)

        threading.Thread(target=answer, daemon=True).start()
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        result = run("check", url.format(place))
        listening.shutdown(socket.SHUT_RDWR)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says.format(place) in result.stderr
