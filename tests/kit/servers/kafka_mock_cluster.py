"""librdkafka's mock cluster, in a process of its own: it speaks Kafka's protocol, and can be told to fail."""

from __future__ import annotations

import itertools
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.kit.servers import kafka_mock
from tests.kit.servers.kafka import import_clients, received, records, topic_of
from tests.kit.servers.process import Process, Received, Server

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22  # API keys of the protocol
THROTTLING_QUOTA_EXCEEDED = 89
_MANY = 2000  # requests that fail until the throttling ends


class MockKafka(Server):
    """`kill` cuts all connections and accepts none, until `restart`: what it holds is in memory.

    `freeze` is SIGSTOP. `vanish` is SIGKILL, after which there is no restart: the ports are chosen anew.
    """

    name: ClassVar[str] = "kafka"
    too_large: ClassVar[int] = 1_100_000  # message.max.bytes is a million

    def __init__(self, brokers: int = 1, *, durable: bool = True) -> None:
        """What it holds it keeps in memory either way, and only a `vanish` takes it."""
        self._brokers = brokers
        self._process: Process | None = None
        self._numbers = itertools.count(1)
        self.hosts = ""

    def start(self) -> None:
        import_clients()
        self._process = Process("kafka")
        # -P: beside the program lies kafka.py, which is not the package of that name.
        program = [sys.executable, "-P", str(Path(kafka_mock.__file__))]
        self._process.start([*program, str(self._control), str(self._brokers)], self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def fresh(self, partitions: int = 1) -> str:
        """One partition has an order of arrival; several have none."""
        topic = f"orders-{next(self._numbers)}"
        self.do("create_topic", topic, partitions)
        return self.url(topic)

    def url(self, topic: str) -> str:
        """The URL of a topic that may be there or not."""
        return f"kafka://{self.hosts}/{topic}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        return [received(record) for record in self.records(url, count, timeout)]

    def records(self, url: str, count: int, timeout: float = 30.0) -> list[Any]:
        """As `read`, as kafka-python has them."""
        # The mock does not answer a later client's question for versions as it should.
        return records(self.hosts, topic_of(url), count, timeout, api_version=(2, 3))

    def kill(self) -> None:
        self.do("down")

    def restart(self) -> None:
        self.do("up")

    def vanish(self) -> None:
        """SIGKILL, for good."""
        self._running.kill()

    def freeze(self) -> None:
        self._running.freeze()

    def thaw(self) -> None:
        self._running.thaw()

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        with self.failing(PRODUCE, [THROTTLING_QUOTA_EXCEEDED] * _MANY):
            yield

    @contextmanager
    def failing(self, api_key: int, codes: Sequence[int]) -> Iterator[None]:
        """Inside this block the requests of this kind fail with these errors, one after the other."""
        self.do("push_errors", api_key, list(codes))
        try:
            yield
        finally:
            self.do("clear_errors", api_key)

    def do(self, name: str, *arguments: object) -> Any:
        """Have the mock cluster do something; kafka_mock.py says what it can."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(self._control))
            with control.makefile("rw") as lines:
                lines.write(json.dumps([name, *arguments]) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _answers(self) -> bool:
        self.hosts = self.do("bootstraps")
        return True

    @property
    def _running(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def _control(self) -> Path:
        return self._running.directory / "control"
