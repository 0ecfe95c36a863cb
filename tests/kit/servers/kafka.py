"""A Kafka of a test's own: KRaft brokers, each its own controller; read back by kafka-python.

kafka-python shares no code with confluent-kafka. For what no broker does when it is told to there is the mock
cluster of `kafka_mock_cluster.py`.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attrs

from tests.kit.servers.artifacts import bring
from tests.kit.servers.process import NotInstalled, Process, Received, Server, free_port, program

USER, PASSWORD = "user", "hunter2"  # of the port that asks for them
_READY = "ready"
_CLUSTER = "localdelaylocaldelayla"  # an id, as its storage tool makes them
_JAVA = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LINGER = 0.1
_POLL = 10  # milliseconds
_LOGGING = """\
<Configuration status="OFF">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1} %m%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""
_PROPERTIES = """\
process.roles=broker,controller
node.id={node.number}
controller.quorum.voters={voters}
listeners=PLAIN://127.0.0.1:{node.port},SASL://127.0.0.1:{node.sasl_port},CONTROLLER://127.0.0.1:{node.controller_port}
advertised.listeners=PLAIN://127.0.0.1:{node.port},SASL://127.0.0.1:{node.sasl_port}
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
log.dirs={node.data}
auto.create.topics.enable=false
default.replication.factor={replicas}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=300
log.cleaner.dedupe.buffer.size=4194304
{more}
"""


@attrs.define(eq=False)
class _Node:
    """One broker."""

    number: int
    process: Process
    port: int = attrs.field(factory=free_port)
    sasl_port: int = attrs.field(factory=free_port)
    controller_port: int = attrs.field(factory=free_port)

    @property
    def data(self) -> Path:
        return self.process.directory / "data"

    @property
    def configuration(self) -> Path:
        return self.process.directory / "properties"


class KafkaServer(Server):
    """Topics have a replica on each node, and `kill` is SIGKILL of all."""

    name: ClassVar[str] = "kafka"
    too_large: ClassVar[int] = 1_100_000  # message.max.bytes is a million

    def __init__(self, nodes: int = 1, *, durable: bool = True, **properties: str) -> None:
        """Properties of the brokers, with `_` for each dot. A process that is killed loses nothing here."""
        self._properties = properties
        self._numbers = itertools.count(1)
        self._lib = Path()
        self.nodes = [_Node(number, Process("kafka")) for number in range(1, nodes + 1)]

    @property
    def hosts(self) -> str:
        """Those that run, or all where none does."""
        there = [node for node in self.nodes if node.process.runs] or self.nodes
        return ",".join(f"127.0.0.1:{node.port}" for node in there)

    def start(self) -> None:
        import_clients()
        self._lib = bring("kafka") / "lib"
        voters = ",".join(f"{node.number}@127.0.0.1:{node.controller_port}" for node in self.nodes)
        more = "\n".join(f"{name.replace('_', '.')}={value}" for name, value in self._properties.items())
        for node in self.nodes:
            (node.process.directory / "log4j2.xml").write_text(_LOGGING)
            node.configuration.write_text(
                _PROPERTIES.format(
                    node=node,
                    voters=voters,
                    replicas=len(self.nodes),
                    user=USER,
                    password=PASSWORD,
                    more=more,
                )
            )
            # What its storage tool makes, in seconds: all else it makes itself at its first start.
            node.data.mkdir()
            (node.data / "meta.properties").write_text(
                f"version=1\ncluster.id={_CLUSTER}\nnode.id={node.number}\n"
            )
        self.restart()

    def stop(self) -> None:
        for node in self.nodes:
            node.process.kill()  # a gentle end takes seconds, and nothing of it is kept
            node.process.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.process.kill()

    def restart(self) -> None:
        for node in self.nodes:
            command = self._command("kafka.Kafka", str(node.configuration), cwd=node.process.directory)
            node.process.start(command, lambda: True)
        self._until_it_takes_messages()

    def freeze(self) -> None:
        for node in self.nodes:
            node.process.freeze()

    def thaw(self) -> None:
        for node in self.nodes:
            node.process.thaw()

    def fresh(self, partitions: int = 1, **settings: str) -> str:
        """One partition has an order of arrival, several have none. Settings are the topic's, `_` for `.`."""
        topic = f"orders-{next(self._numbers)}"
        self.make_topic(topic, partitions, **settings)
        return self.url(topic)

    def make_topic(self, topic: str, partitions: int = 1, **settings: str) -> None:
        """A topic of this name, whose leader is the first node."""
        from confluent_kafka.admin import NewTopic

        config = {name.replace("_", "."): value for name, value in settings.items()}
        replicas = [[node.number for node in self.nodes]] * partitions
        new = NewTopic(topic, num_partitions=partitions, replica_assignment=replicas, config=config)
        admin = self._admin()  # a name of its own: one that nobody keeps never answers
        admin.create_topics([new], request_timeout=20)[topic].result(30)

    def delete_topic(self, url: str) -> None:
        admin = self._admin()
        admin.delete_topics([topic_of(url)])[topic_of(url)].result(30)

    def url(self, topic: str, options: str = "") -> str:
        """The URL of a topic that may be there or not."""
        return f"kafka://{self.hosts}/{topic}{options}"

    def sasl_url(self, topic: str, password: str = PASSWORD) -> str:
        """The same by the port that asks who it is."""
        hosts = ",".join(f"127.0.0.1:{node.sasl_port}" for node in self.nodes)
        return f"kafka://{USER}:{password}@{hosts}/{topic}?security.protocol=SASL_PLAINTEXT"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        return [received(record) for record in records(self.hosts, topic_of(url), count, timeout)]

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """No answer comes in time: what is over the quota the broker takes no more of."""
        with self.quota(1):
            yield

    @contextmanager
    def quota(self, bytes_per_second: int) -> Iterator[None]:
        """Inside this block a producer may write no faster."""
        self._alter_quota(bytes_per_second)
        try:
            yield
        finally:
            self._alter_quota(None)

    def _alter_quota(self, bytes_per_second: int | None) -> None:
        """AlterClientQuotas (49), version 0, of all clients: Kafka's own tool takes seconds for it."""
        quota = struct.pack(">d?", bytes_per_second or 0, bytes_per_second is None)
        entity, change = _string("client-id") + _string(None), _string("producer_byte_rate") + quota
        entry = struct.pack(">i", 1) + entity + struct.pack(">i", 1) + change
        request = struct.pack(">hhi", 49, 0, 1) + _string("tests") + struct.pack(">i", 1) + entry + b"\0"
        port = next(node.port for node in self.nodes if node.process.runs)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answers:
                (size,) = struct.unpack(">i", answers.read(4))
                _, _, _, error = struct.unpack_from(">iiih", answers.read(size))
        if error:
            raise RuntimeError(f"AlterClientQuotas: error {error}")

    def _until_it_takes_messages(self) -> None:
        """Metadata are answered long before."""
        from confluent_kafka import KafkaException, Producer

        until = time.monotonic() + 300
        taken: list[bool] = []
        producer = Producer({**self._settings(), "linger.ms": 0, "message.timeout.ms": 2000})
        while True:
            with suppress(KafkaException, TimeoutError):  # it may be there from before
                self.make_topic(_READY)
            with suppress(KafkaException):
                producer.produce(_READY, b"ready", on_delivery=lambda error, _: taken.append(error is None))
                producer.flush()
            if any(taken):
                return
            ended = [node for node in self.nodes if not node.process.runs]
            if ended or time.monotonic() > until:
                raise RuntimeError((ended or self.nodes)[0].process.last_words())

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient(self._settings())

    def _settings(self) -> dict[str, object]:
        """For clients that look again at once, and say nothing meanwhile."""
        quick = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100, "retry.backoff.ms": 20}
        return {"bootstrap.servers": self.hosts, "log_level": 0, **quick}

    def _command(self, *command: str, cwd: Path) -> Sequence[str]:
        logging = f"-Dlog4j2.configurationFile={cwd / 'log4j2.xml'}"
        java = program("java", "default-jre-headless")
        return [java, *_JAVA, logging, "-cp", f"{self._lib}/*", *command]


def _string(text: str | None) -> bytes:
    """As Kafka's protocol has it."""
    return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text)) + text.encode()


def import_clients() -> None:
    """Raises `NotInstalled`."""
    for module, package in (("confluent_kafka", "localdelay[kafka]"), ("kafka", "kafka-python")):
        if find_spec(module) is None:
            raise NotInstalled(f"{module} is not installed: pip install '{package}'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python's, of how it reads its files
        import_module("kafka")


def records(hosts: str, topic: str, count: int, timeout: float = 30.0, **settings: Any) -> list[Any]:
    """What kafka-python finds in a topic: at least `count`, or what there is after `timeout` seconds."""
    from kafka import KafkaConsumer, TopicPartition  # `import_clients` has seen to its warnings

    consumer = KafkaConsumer(
        bootstrap_servers=hosts.split(","),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        # The mock answers nothing else on a connection while it holds a fetch back for want of records.
        fetch_max_wait_ms=_POLL,
        **settings,
    )
    try:
        numbers = consumer.partitions_for_topic(topic) or set()
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        found: list[Any] = []
        ends = time.monotonic() + timeout
        lingering = False
        while True:
            for polled in consumer.poll(timeout_ms=_POLL).values():
                found += polled
            now = time.monotonic()
            if len(found) >= count and not lingering:
                lingering, ends = True, now + _LINGER
            if now >= ends:
                there = consumer.end_offsets(partitions)
                if all(consumer.position(partition) >= there[partition] for partition in partitions):
                    return found
    finally:
        consumer.close()


def topic_of(url: str) -> str:
    return urlsplit(url).path[1:]


def received(record: Any) -> Received:
    headers: Mapping[str, str] = {name: value.decode() for name, value in record.headers}
    return Received(record.value or b"", headers, record.timestamp / 1000)
