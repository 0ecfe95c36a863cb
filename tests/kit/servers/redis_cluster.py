"""A Redis Cluster of a test's own: three masters, each with a replica, on loopback."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
from redis import Redis, RedisError

from tests.kit.servers.process import Process, Received, free_port, program
from tests.kit.servers.redis import read_stream

_NODES = 6
_BUS = 10_000
"""The port of a node's bus is beyond its own by so much."""
_POLL = 0.05
_TIMEOUT = 150.0


@attrs.define
class Node:
    """One redis-server of the cluster."""

    port: int
    process: Process
    name: str = ""

    def client(self) -> Redis:
        """An independent client, to be closed by the caller."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=10.0, retry=None)

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")


class RedisCluster:
    """Six processes. Where a master does not answer for two seconds its replica takes over."""

    def __init__(self) -> None:
        self.nodes = [Node(_port(), Process("redis-cluster")) for _ in range(_NODES)]
        self._names = itertools.count(1)

    def start(self) -> None:
        """Start them, and wait until every slot has its master, and each master its replica."""
        self._cli = program("redis-cli", "redis-tools")
        for node in self.nodes:
            self.run(node)
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        self._command("create", *addresses, "--cluster-replicas", "1")
        self.wait_until_well()

    def run(self, node: Node) -> None:
        """Start a node, for the first time or again."""
        command = [program("redis-server", "redis-server"), "--port", f"{node.port}", "--bind", "127.0.0.1"]
        command += ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", ""]
        command += ["--cluster-config-file", "nodes.conf", "--dir", str(node.process.directory)]
        command += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        node.process.start(command, node.answers)

    def stop(self) -> None:
        for node in self.nodes:
            node.process.kill()  # or a master would wait for its replica
            node.process.stop()

    def fresh(self) -> str:
        """The URL of a queue, or a stream, that is new and empty."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{hosts}/queue{next(self._names)}"

    def masters(self) -> list[Node]:
        """The nodes that have slots and answer."""
        return [node for node in self.nodes if self._role(node) == "master"]

    def slots_of(self, node: Node) -> list[range]:
        """The slots that it has, as it says itself."""
        with node.client() as client:
            found = client.execute_command("CLUSTER SLOTS")
        return [range(first, last + 1) for first, last, master, *_ in found if master[1] == node.port]

    def owner(self, url: str) -> Node:
        """The master of the stream of this URL."""
        key = url.partition("?")[0].rpartition("/")[2]
        masters = self.masters()
        with masters[0].client() as client:
            slot = client.cluster("KEYSLOT", key)
        return next(node for node in masters if any(slot in some for some in self.slots_of(node)))

    def replica_of(self, master: Node) -> Node:
        """The node that copies this one."""
        for node in self.nodes:
            with node.client() as client:
                if client.info("replication").get("master_port") == master.port:
                    return node
        raise RuntimeError("it has no replica")

    def everywhere(self, *command: str | int) -> None:
        """Have every node run this command."""
        for node in self.nodes:
            with node.client() as client:
                client.execute_command(*command)

    def read(self, url: str, count: int, timeout: float = 10.0) -> list[Received]:
        """What the stream has, as of a single Redis."""
        with self.owner(url).client() as client:
            return read_stream(client, url, count, timeout)

    def move_slots(self, source: Node, target: Node, slots: Sequence[int]) -> None:
        """Move these slots, one after the other, as `redis-cli` does."""
        for slot in slots:
            with self.moving(source, target, slot):
                pass

    @contextmanager
    def moving(self, source: Node, target: Node, slot: int) -> Iterator[None]:
        """In this block the slot's keys are on the target, and the slot is still the source's."""
        with source.client() as one, target.client() as other:
            names = [client.cluster("MYID").decode() for client in (one, other)]
            other.cluster("SETSLOT", slot, "IMPORTING", names[0])
            one.cluster("SETSLOT", slot, "MIGRATING", names[1])
            while keys := one.cluster("GETKEYSINSLOT", slot, 10):
                one.migrate("127.0.0.1", target.port, keys, 0, 5000)
            yield
            for client in (other, one):
                client.cluster("SETSLOT", slot, "NODE", names[1])

    def wait_until_taken_over(self, victim: Node) -> None:
        """Wait until every slot has a master that is not this node, in the eyes of all that run."""
        until = time.monotonic() + _TIMEOUT
        while time.monotonic() < until:
            others = [node for node in self.masters() if node is not victim]
            if sum(len(slots) for node in others for slots in self.slots_of(node)) == 16384:
                return
            time.sleep(_POLL)
        raise RuntimeError("nobody takes over")

    def wait_until_down(self, node: Node) -> None:
        """Wait until this node takes the cluster to be down."""
        until = time.monotonic() + _TIMEOUT
        with node.client() as client:
            while client.cluster("INFO")["cluster_state"] == "ok":
                if time.monotonic() > until:
                    raise RuntimeError("the cluster does not go down")
                time.sleep(_POLL)

    def wait_until_well(self) -> None:
        """Wait until all that run agree that every slot is served and that each master has a replica."""
        until = time.monotonic() + _TIMEOUT
        while time.monotonic() < until:
            if all(self._is_well(node) for node in self.nodes if node.process.runs):
                return
            time.sleep(_POLL)
        raise RuntimeError("the cluster does not get well")

    def _is_well(self, node: Node) -> bool:
        with node.client() as client:
            state = client.cluster("INFO")
            replication = client.info("replication")
        copied = replication.get("connected_slaves", 0) or replication.get("master_link_status") == "up"
        return state.get("cluster_state") == "ok" and bool(copied)

    def _role(self, node: Node) -> str | None:
        try:
            with node.client() as client:
                return str(client.info("replication")["role"])
        except (RedisError, OSError):
            return None

    def _command(self, *arguments: str) -> None:
        command = [self._cli, "--cluster", *arguments, "--cluster-yes"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(f"redis-cli: {done.stdout} {done.stderr}")


def _port() -> int:
    while True:
        port = free_port()
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
        return port
