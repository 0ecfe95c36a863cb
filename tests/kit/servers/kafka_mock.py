"""librdkafka's mock cluster as a program of its own: `python kafka_mock.py CONTROL_SOCKET BROKERS`.

It speaks Kafka's own protocol on free loopback ports. On the control socket, a Unix one, each line is a JSON
list of a function's name and its arguments, and each answer a line of JSON: what it came to.
The cluster is reached by ctypes, in the library that confluent-kafka brings along: its Python side has no
way to it. What it holds is in memory, the newest 5 MB and 100,000 messages of each partition.
"""

from __future__ import annotations

import ctypes
import json
import socket
import sys
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_int, c_int16, c_int32, c_size_t, c_void_p
from typing import Any

from confluent_kafka import cimpl

_PRODUCER = 0
_ALL = -1


class Cluster:
    """The functions of rdkafka_mock.h that tests need. Each raises a `RuntimeError` with what was wrong."""

    def __init__(self, brokers: int) -> None:
        library = ctypes.CDLL(cimpl.__file__)  # what it is linked with is found through it
        new_conf = _function(library, "rd_kafka_conf_new", c_void_p)
        new = _function(library, "rd_kafka_new", c_void_p, c_int, c_void_p, c_char_p, c_size_t)
        set_log_level = _function(library, "rd_kafka_set_log_level", None, c_void_p, c_int)
        new_cluster = _function(library, "rd_kafka_mock_cluster_new", c_void_p, c_void_p, c_int)
        why = ctypes.create_string_buffer(512)
        handle = new(_PRODUCER, new_conf(), why, len(why))
        if not handle:
            raise RuntimeError(why.value.decode())
        set_log_level(handle, 0)
        self._library = library
        self._cluster = new_cluster(handle, brokers)

    def bootstraps(self) -> str:
        """Where the brokers listen: `host:port`, with commas between them."""
        of = _function(self._library, "rd_kafka_mock_cluster_bootstraps", c_char_p, c_void_p)
        found: bytes = of(self._cluster)
        return found.decode()

    def create_topic(self, topic: str, partitions: int) -> None:
        self._call("topic_create", (c_char_p, c_int, c_int), topic.encode(), partitions, 1)

    def topic_error(self, topic: str, code: int) -> None:
        """What the brokers answer from now on to who asks for this topic; 0: that it is there."""
        self._call("topic_set_error", (c_char_p, c_int), topic.encode(), code, answers=False)

    def down(self) -> None:
        """Cut all connections, and accept none."""
        self._call("broker_set_down", (c_int32,), _ALL)

    def up(self) -> None:
        self._call("broker_set_up", (c_int32,), _ALL)

    def push_errors(self, api_key: int, codes: Sequence[int]) -> None:
        """The next requests of this kind fail with these errors, one after the other."""
        array = (c_int * len(codes))(*codes)
        types = (c_int16, c_size_t, type(array))
        self._call("push_request_errors_array", types, api_key, len(codes), array, answers=False)

    def clear_errors(self, api_key: int) -> None:
        self._call("clear_request_errors", (c_int16,), api_key, answers=False)

    def _call(self, name: str, types: Sequence[Any], *arguments: Any, answers: bool = True) -> None:
        result = c_int if answers else None
        function = _function(self._library, f"rd_kafka_mock_{name}", result, c_void_p, *types)
        error = function(self._cluster, *arguments)
        if error:
            raise RuntimeError(f"{name}: error {error}")


def _function(library: ctypes.CDLL, name: str, result: Any, *types: Any) -> Callable[..., Any]:
    function = getattr(library, name)
    function.restype, function.argtypes = result, types
    return function  # type: ignore[no-any-return]


def serve(listener: socket.socket, cluster: Cluster) -> None:
    """Do what each connection asks for, one connection after the other, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                name, *arguments = json.loads(line)
                try:
                    answer = {"result": getattr(cluster, name)(*arguments)}
                except RuntimeError as error:
                    answer = {"error": str(error)}
                lines.write(json.dumps(answer) + "\n")
                lines.flush()


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(sys.argv[1])
        control.listen()
        serve(control, Cluster(int(sys.argv[2])))
