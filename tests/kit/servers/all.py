"""All the servers there are, by name; each is imported when it is asked for, since each needs an extra."""

from __future__ import annotations

from importlib import import_module

from tests.kit.servers.process import Server

_CLASSES = {
    "nats": "NatsServer",
    "kafka": "KafkaServer",
    "kafka_mock_cluster": "MockKafka",
    "amqp": "RabbitServer",
    "redis": "RedisServer",
    "nsq": "NsqServer",
    "rocketmq": "RocketServer",
    "beanstalkd": "BeanstalkdServer",
}
NAMES = ("nats", "kafka", "amqp", "redis", "beanstalkd", "nsq", "rocketmq")
"""The brokers that `open_broker` knows, each by the server that is the real thing."""


def make(name: str, *, durable: bool = True) -> Server:
    """A server of this kind that has not been started; a durable one loses nothing that it has confirmed."""
    server: Server = getattr(import_module(f"tests.kit.servers.{name}"), _CLASSES[name])(durable=durable)
    return server
