"""`localdelay check`: each real broker, as it should be and as it should not, and one that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.commands import run
from tests.kit.servers.all import make
from tests.kit.servers.process import Server


def looked(url: str, code: int) -> dict[str, str]:
    """What is to be changed, by what it is about, of a broker that is looked at."""
    result = run("check", url, "--json")
    assert (result.exit_code, result.stderr) == (code, "")
    found = json.loads(result.stdout)
    assert found["fit"] is (code == 0)
    wrong = {one["what"]: one["change"] for one in found["findings"] if one["is_well"] is False}
    assert all(wrong.values()), "what is wrong comes with what to do about it"
    assert not any(one["change"] for one in found["findings"] if one["is_well"] is not False)
    return wrong


@pytest.mark.parametrize("name", ["kafka", "amqp", "redis", "beanstalkd", "nats", "nsq", "rocketmq"])
def test_a_broker_of_the_tests_is_fit(name: str, start_server: Callable[[str], Server]) -> None:
    """They are what the other tests publish to: nothing is to be changed, and nothing stays behind."""
    url = start_server(name).fresh()
    assert looked(url, 0) == {}
    assert looked(url, 0) == {}


def test_amqp_that_is_not_fit(start_server: Callable[[str], Any]) -> None:
    """A queue that is not there, is not durable, or drops what it has; a user who may not delay."""
    rabbit = start_server("amqp")
    assert list(looked(rabbit.url("nowhere"), 1)) == ["queue"]
    bounded = {"x-max-length": 10, "x-queue-type": "classic", "x-single-active-consumer": True}
    with rabbit.connection() as connection:
        channel = connection.channel()
        channel.queue_declare("check-fleeting", durable=False)
        channel.queue_declare("check-drops", durable=True, arguments=bounded)
        channel.queue_declare(
            "check-refuses", durable=True, arguments={**bounded, "x-overflow": "reject-publish"}
        )
    assert list(looked(rabbit.url("check-fleeting"), 1)) == ["confirms"]
    assert list(looked(rabbit.url("check-drops"), 1)) == ["overflow"]
    assert looked(rabbit.url("check-refuses"), 0) == {}
    rabbit.call(
        'rabbit_auth_backend_internal:add_user(<<"plain">>, <<"secret">>, <<"test">>),'
        'rabbit_auth_backend_internal:set_permissions(<<"plain">>, <<"/">>, <<"^check-">>, <<".*">>,'
        ' <<".*">>, <<"test">>)'
    )
    assert list(looked(rabbit.url("check-refuses", "plain:secret"), 1)) == ["native delay"]
    assert "secret" not in run("check", rabbit.url("check-refuses", "plain:secret")).output
    with rabbit.connection() as connection:
        for queue in ("check-fleeting", "check-drops", "check-refuses"):
            connection.channel().queue_delete(queue)


def test_kafka_that_is_not_fit(start_server: Callable[[str], Any]) -> None:
    """A topic that is not there, one that is compacted, and confirmation before the replicas have it."""
    kafka = start_server("kafka")
    assert list(looked(kafka.url("check-nowhere"), 1)) == ["topic"]
    assert list(looked(kafka.fresh(cleanup_policy="compact"), 1)) == ["cleanup"]
    assert list(looked(f"{kafka.fresh()}?acks=1&enable.idempotence=false", 1)) == ["confirms"]


def test_redis_that_is_not_fit(start_server: Callable[[str], Any], own_redis: Any) -> None:
    """One that evicts and keeps nothing on disk, a key that holds no stream, and a replica."""
    url = own_redis.fresh()
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        client.set("text", "text")
        assert list(looked(url, 1)) == ["eviction", "confirms"]
        assert list(looked(f"{url}?eviction=allowed", 1)) == ["confirms"]
        assert list(looked(f"redis://127.0.0.1:{own_redis.port}/text", 1)) == [
            "stream",
            "eviction",
            "confirms",
        ]
        client.execute_command("ACL", "SETUSER", "adder", "on", ">hunter2", "~*", "+xadd")
        adder = url.replace("//", "//adder:hunter2@")
        assert looked(adder, 0) == {}, "it may ask for nothing, so that nothing can be said"
        client.replicaof("127.0.0.1", start_server("redis").port)  # type: ignore[attr-defined]
        assert list(looked(url, 1)) == ["role"]


def test_beanstalkd_that_is_not_fit(begin: Callable[[Server], Any]) -> None:
    """One without a binlog, which drains."""
    server = begin(make("beanstalkd", durable=False))
    assert list(looked(server.fresh(), 1)) == ["confirms"]
    server.drain()
    assert list(looked(server.fresh(), 1)) == ["jobs", "confirms"]


def test_nats_that_is_not_fit(start_server: Callable[[str], Any]) -> None:
    """A subject that no stream holds; a stream in memory, that drops, and without schedules."""
    server = start_server("nats")
    assert list(looked(f"nats://{server.host}/check.nowhere", 1)) == ["stream"]
    server.make_stream("check.bad", storage="memory", max_msgs=10, allow_msg_schedules=False)
    assert list(looked(f"nats://{server.host}/check.bad", 1)) == ["confirms", "overflow", "native delay"]
    server.make_stream("check.old", max_msgs=10)
    assert "--max-msgs=-1" in looked(f"nats://{server.host}/check.old", 1)["overflow"]
    server.make_stream("check.new", max_msgs=10, discard="new", allow_msg_schedules=False)
    assert list(looked(f"nats://{server.host}/check.new", 1)) == ["native delay"]
    server.make_stream("check.alone", subjects=["check.alone"])
    assert list(looked(f"nats://{server.host}/check.alone", 1)) == ["native delay"]


def test_rocketmq_that_is_not_fit(start_server: Callable[[str], Any]) -> None:
    """A topic that is not there or takes no delayed messages; beside one for these it is fit."""
    server = start_server("rocketmq")
    assert list(looked(server.url("nowhere"), 1)) == ["topic"]
    assert list(looked(server.url("normal"), 1)) == ["topic"]
    assert list(looked(server.url("normal", "?delay_topic=normal2"), 1)) == ["delay topic"]
    assert looked(server.url("normal", "?delay_topic=delay"), 0) == {}


@pytest.mark.parametrize("scheme", ["kafka", "amqp", "redis", "beanstalkd", "nats", "nsq", "rocketmq"])
def test_where_nobody_is_there(scheme: str) -> None:
    """One line, without the password, and exit code 2."""
    user = "" if scheme == "beanstalkd" else "user:hunter2@"
    result = run("check", f"{scheme}://{user}127.0.0.1:1/orders")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.stderr
