"""A RocketMQ 5 of a test's own: a name server, and a proxy with its broker in one process.

Read back by a consumer of the official client's, which is the only one that there is for Python.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.kit.servers.artifacts import bring
from tests.kit.servers.process import (
    NotInstalled,
    OneProcess,
    Process,
    Received,
    free_port,
    listening,
    program,
)

TOPICS = 80
"""As many are there from the start: a command of RocketMQ's that makes one takes seconds."""
_GROUP = "readers"
_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true")
_OPENS = (
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
)
_NAMES = """\
listenPort={names_port}
bindAddress=127.0.0.1
kvConfigPath={directory}/kv.json
configStorePath={directory}/names.properties
"""
_BROKER = """\
brokerClusterName=DefaultCluster
brokerName=broker
brokerId=0
brokerIP1=127.0.0.1
brokerIP2=127.0.0.1
bindAddress=127.0.0.1
listenPort={broker_port}
namesrvAddr=127.0.0.1:{names_port}
storePathRootDir={store}
storePathCommitLog={store}/commitlog
flushDiskType=ASYNC_FLUSH
mappedFileSizeCommitLog=67108864
mappedFileSizeConsumeQueue=600000
mappedFileSizeTimerLog=16777216
diskMaxUsedSpaceRatio=98
autoCreateTopicEnable=false
autoCreateSubscriptionGroup=false
enableMixedMessageType=true
timerWheelEnable=true
timerPrecisionMs=100
recallMessageEnable=true
{more}
"""


class RocketServer(OneProcess):
    """Topics of all kinds are there: `topicN` (MIXED), `normal` and `delay`."""

    name: ClassVar[str] = "rocketmq"
    too_large: ClassVar[int] = 4 * 1024 * 1024 + 1
    takes_empty: ClassVar[bool] = False
    keeps_order: ClassVar[bool] = False  # its client has no batches
    throttles_delayed: ClassVar[bool] = True

    def __init__(self, *, durable: bool = True, **properties: str) -> None:
        """Properties of the broker. A process that is killed loses nothing here."""
        super().__init__()
        self._properties = properties
        self._names = Process("rocketmq-names")
        self._received: dict[str, list[Received]] = {}
        self._lib = Path()
        self._names_port = 0
        self._broker_port = 0

    def start(self) -> None:
        if find_spec("rocketmq") is None:
            raise NotInstalled("rocketmq is not installed: pip install 'localdelay[rocketmq]'")
        self._lib = bring("rocketmq") / "lib"
        self._names_port, self.port = free_port(), free_port()
        self._broker_port = free_port(beside=1)  # the broker takes the next one, too
        directory, store = self.directory, self.directory / "store"
        ports = {"names_port": self._names_port, "broker_port": self._broker_port}
        names = self._names.directory / "names.conf"
        names.write_text(_NAMES.format(directory=self._names.directory, **ports))
        more = "\n".join(f"{name}={value}" for name, value in self._properties.items())
        (directory / "broker.conf").write_text(_BROKER.format(store=store, more=more, **ports))
        (directory / "proxy.json").write_text(
            json.dumps(
                {
                    "rocketMQClusterName": "DefaultCluster",
                    "namesrvAddr": f"127.0.0.1:{self._names_port}",
                    "localServeAddr": "127.0.0.1",
                    "grpcServerPort": self.port,
                    "remotingListenPort": free_port(),
                    "grpcShutdownTimeSeconds": 1,
                    "enablePrintJstack": False,
                    "grpcClientConsumerMinLongPollingTimeoutMillis": 100,
                }
            )
        )
        (store / "config").mkdir(parents=True)
        (store / "config" / "topics.json").write_text(json.dumps(_topics()))
        (store / "config" / "subscriptionGroup.json").write_text(json.dumps(_groups()))
        command = self._java(self._names, "-Xmx64m", "org.apache.rocketmq.namesrv.NamesrvStartup")
        self._names.start(
            [*command, "-c", str(names)],
            listening(self._names_port),
            ROCKETMQ_HOME=str(self._names.directory),
        )
        self.restart()

    def stop(self) -> None:
        for process in (self._process, self._names):
            process.kill()  # a gentle end takes many seconds, and nothing of it is kept
            process.stop()

    def restart(self) -> None:
        directory = self.directory
        self._process.log.write_text("")
        proxy = self._java(self._process, "-Xmx256m", *_OPENS, "org.apache.rocketmq.proxy.ProxyStartup")
        # It rewrites the file that it was started with.
        configuration = directory / "broker.conf.own"
        configuration.write_text((directory / "broker.conf").read_text())
        files = ("-bc", str(configuration), "-pc", str(directory / "proxy.json"))
        self._process.start(
            [*proxy, "-pm", "local", "-n", f"127.0.0.1:{self._names_port}", *files],
            lambda: "rocketmq-proxy startup successfully" in self._process.log.read_text(errors="replace"),
            ROCKETMQ_HOME=str(directory),
        )
        self._until_it_takes_messages()

    def fresh(self) -> str:
        number = next(self._numbers)
        assert number <= TOPICS
        return self.url(f"topic{number}")

    def url(self, topic: str, options: str = "") -> str:
        """The URL of a topic that may be there or not."""
        return f"rocketmq://127.0.0.1:{self.port}/{topic}{options}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        topic = urlsplit(url).path[1:]
        # To read takes out: what earlier calls have read is kept here.
        received = self._received.setdefault(topic, [])
        until = time.monotonic() + timeout
        with self._consumer(topic) as consumer:
            empty = 0
            while len(received) < count or not empty:
                try:
                    messages = consumer.receive(32, 30)
                except Exception:  # of many kinds, for as long as it has just begun
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
                    continue
                empty = 0 if messages else empty + 1
                for one in messages:
                    received.append(Received(one.body, dict(one.properties or {}), time.time()))
                    consumer.ack(one)
                if time.monotonic() > until:
                    break
        return list(received)

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """What is delayed is refused by the timer's flow control; what is ordinary passes."""
        self.configure("timerCongestNumEachSlot", "-1")
        try:
            yield
        finally:
            self.configure("timerCongestNumEachSlot", "2147483647")

    def configure(self, key: str, value: str) -> None:
        """Change a property of the broker's, at once (UPDATE_BROKER_CONFIG, 25): its own tool takes seconds.

        A frame is its length, the length of its header, the header and a body.
        """
        header = json.dumps({"code": 25, "language": "OTHER", "version": 0, "opaque": 1, "flag": 0}).encode()
        body = f"{key}={value}\n".encode()
        frame = struct.pack(">ii", 4 + len(header) + len(body), len(header)) + header + body
        with socket.create_connection(("127.0.0.1", self._broker_port), timeout=60) as connection:
            connection.sendall(frame)
            with connection.makefile("rb") as answers:
                _, size = struct.unpack(">ii", answers.read(8))
                answer = json.loads(answers.read(size & 0xFFFFFF))  # its first byte says that it is JSON
        if answer["code"]:
            raise RuntimeError(f"{key}={value}: {answer}")

    def _until_it_takes_messages(self) -> None:
        """It says that it has started some time before."""
        until = time.monotonic() + 300
        while True:
            configuration = _client().ClientConfiguration(f"127.0.0.1:{self.port}", _client().Credentials())
            producer = _client().Producer(configuration)
            try:
                producer.startup()
                message = _client().Message()
                message.topic, message.body = "normal", b"ready"
                producer.send(message)
                return
            except Exception:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            finally:
                producer.shutdown()

    @contextmanager
    def _consumer(self, topic: str) -> Iterator[Any]:
        rocketmq = _client()
        configuration = rocketmq.ClientConfiguration(f"127.0.0.1:{self.port}", rocketmq.Credentials())
        consumer = rocketmq.SimpleConsumer(
            configuration, _GROUP, {topic: rocketmq.FilterExpression()}, await_duration=1
        )
        consumer.startup()
        try:
            yield consumer
        finally:
            consumer.shutdown()

    def _java(self, process: Process, *command: str) -> Sequence[str]:
        java = program("java", "default-jre-headless")
        # Its logs go below this, and not into the home of whoever runs the tests.
        return [java, *_JAVA, f"-Duser.home={process.directory}", "-cp", f"{self._lib}/*", *command]


def _client() -> Any:
    """Imported when it is there, and as the driver does: no log in the home, no loop of trio-asyncio's."""
    from localdelay.brokers.rocketmq_client import client, own_loop

    own_loop()
    return client


def _topics() -> dict[str, object]:
    kinds = {
        **{f"topic{number}": "MIXED" for number in range(1, TOPICS + 1)},
        "normal": "NORMAL",
        "delay": "DELAY",
    }
    table = {
        name: {
            "topicName": name,
            "readQueueNums": 1,
            "writeQueueNums": 1,
            "perm": 6,
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": 0,
            "order": False,
            "attributes": {"message.type": kind},
        }
        for name, kind in kinds.items()
    }
    return {"topicConfigTable": table, "dataVersion": _VERSION}


_VERSION = {"counter": 1, "stateVersion": 0, "timestamp": 1_700_000_000_000}


def _groups() -> dict[str, object]:
    group = {
        "groupName": _GROUP,
        "consumeEnable": True,
        "consumeFromMinEnable": True,
        "consumeBroadcastEnable": True,
        "retryQueueNums": 1,
        "retryMaxTimes": 16,
        "brokerId": 0,
        "whichBrokerWhenConsumeSlowly": 1,
        "notifyConsumerIdsChangedEnable": True,
    }
    return {"subscriptionGroupTable": {_GROUP: group}, "dataVersion": _VERSION}
