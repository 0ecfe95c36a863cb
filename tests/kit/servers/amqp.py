"""A RabbitMQ of a test's own, with an epmd of its own; read back by a pika connection of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

import pika

from tests.kit.servers.process import (
    NotInstalled,
    OneProcess,
    Process,
    Received,
    free_port,
    listening,
    program,
)

# Debian's command changes to the user rabbitmq and to a directory of that user; this is what it calls.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_COOKIE = "localdelay"
_SETTLE = 0.1

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.certfile = {directory}/cert.pem
ssl_options.keyfile = {directory}/key.pem
max_message_size = {largest}
disk_free_limit.absolute = 1MB
log.file = false
log.console = true
log.console.level = warning
"""


class RabbitServer(OneProcess):
    """One node, in one process: no cluster, no plugins."""

    name: ClassVar[str] = "amqp"
    too_large: ClassVar[int] = 1024 * 1024 + 1

    def __init__(self, *, durable: bool = True) -> None:
        super().__init__()
        self._durable = durable
        self._epmd = Process("epmd")
        self._environ: dict[str, str] = {}
        self.tls_port = 0
        self._dist_port = 0

    @property
    def certificate(self) -> Path:
        """What a client of the TLS port must trust."""
        return self.directory / "cert.pem"

    def start(self) -> None:
        if not _SERVER.exists():
            raise NotInstalled(f"{_SERVER} is not installed: apt-get install rabbitmq-server")
        self.port, self.tls_port, self._dist_port = free_port(), free_port(), free_port()
        epmd_port = free_port()
        directory = self.directory
        make_certificate(directory)
        configuration = directory / "rabbitmq.conf"
        configuration.write_text(
            CONFIGURATION.format(
                port=self.port, tls_port=self.tls_port, directory=directory, largest=self.too_large - 1
            )
        )
        plugins = directory / "enabled_plugins"
        plugins.write_text("[].\n")
        self._environ = {
            "HOME": str(directory),
            "RABBITMQ_NODENAME": f"localdelay{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            # Two cores are all that there is here; the rest of the first switches keeps an idle node idle.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 1:1 +A 4 +sbwt none -setcookie {_COOKIE}"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            # The script then becomes the node itself, so that the pid is the one to kill and to stop.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
        }
        # Left to itself the node starts one that stays behind, and that nobody knows the pid of.
        epmd = [program("epmd", "erlang-base"), "-address", "127.0.0.1", "-port", str(epmd_port)]
        self._epmd.start(epmd, listening(epmd_port))
        self.restart()

    def restart(self) -> None:
        self._process.start([str(_SERVER)], self._answers, **self._environ)

    def stop(self) -> None:
        self._process.kill()  # a gentle end takes seconds, and nothing of it is kept
        self._process.stop()
        self._epmd.kill()
        self._epmd.stop()

    def fresh(self) -> str:
        queue = f"queue{next(self._numbers)}"
        with self.connection() as connection:
            connection.channel().queue_declare(queue, durable=self._durable)
        return self.url(queue)

    def url(self, queue: str, user: str = "guest:guest", options: str = "") -> str:
        """The URL of a queue that need not be there."""
        return f"amqp://{user}@127.0.0.1:{self.port}/{quote(queue, safe='')}{options}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        """Nothing is taken out: what is not acknowledged goes back to its place."""
        got: list[Received] = []
        queue = unquote(urlsplit(url).path[1:])
        until = time.monotonic() + timeout
        with self.connection() as connection:
            channel = connection.channel()
            channel.basic_consume(
                queue, lambda _channel, _method, properties, body: got.append(_received(properties, body))
            )
            while len(got) < count and time.monotonic() < until:
                connection.process_data_events(0.02)
            waiting, news = 1, -1
            while waiting or news != len(got):
                news, settled = len(got), time.monotonic() + _SETTLE
                while time.monotonic() < settled:
                    connection.process_data_events(0.02)
                waiting = channel.queue_declare(queue, passive=True).method.message_count
        return got

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """The queue is full, and rejects: nack."""
        queue = urlsplit(url).path[1:]
        with self.connection() as connection:
            count = connection.channel().queue_declare(queue, passive=True).method.message_count
        with self.policy(queue, {"max-length": count, "overflow": "reject-publish"}):
            yield

    @contextmanager
    def policy(self, queue: str, definition: dict[str, object]) -> Iterator[None]:
        """A policy for one queue."""
        name, definition_text = f'<<"{queue}">>', json.dumps(json.dumps(definition))
        self.call(
            f'rabbit_policy:parse_set(<<"/">>, {name}, <<"^{queue}$">>, <<{definition_text}>>,'
            ' <<"0">>, <<"queues">>, <<"test">>)'
        )
        try:
            yield
        finally:
            self.call(f'rabbit_policy:delete(<<"/">>, {name}, <<"test">>)')

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Memory is used up: connections that publish are blocked."""
        self.call("vm_memory_monitor:set_vm_memory_high_watermark(0.000001)")
        try:
            yield
        finally:
            self.call("vm_memory_monitor:set_vm_memory_high_watermark(0.8)")

    def call(self, expression: str) -> str:
        """Have the node evaluate an Erlang expression, in 10 ms; rabbitmqctl takes one or two seconds."""
        at = ["-address", f"127.0.0.1:{self._dist_port}", "-c", _COOKIE]
        answer = _run([program("erl_call", "erlang-base"), *at, "-timeout", "60", "-e"], f"{expression}.\n")
        if not answer.startswith("{ok, ") or answer.startswith("{ok, {error"):
            raise RuntimeError(f"{expression}: {answer or 'no answer'}")
        return answer

    def connection(self, **settings: object) -> pika.BlockingConnection:
        """A connection of its own, to be closed by the caller."""
        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port, **settings))

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return len(connection.recv(64)) > 0


def make_certificate(directory: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    _run([*command, "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")])


def _run(command: Sequence[str], input: str = "") -> str:
    ended = subprocess.run(command, input=input, capture_output=True, text=True, timeout=100, check=False)
    if ended.returncode:
        raise RuntimeError(f"{command[0]}: {ended.stderr or ended.stdout}")
    return ended.stdout.strip()


def _received(properties: Any, body: bytes) -> Received:
    headers = properties.headers or {}
    # What dead-lettering adds is the broker's own.
    shown = {
        name: value for name, value in headers.items() if not name.startswith(("x-death", "x-first-death-"))
    }
    return Received(body, shown, time.time())
