"""The server that a file's tests are about, and servers of a test's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from tests.kit.servers.amqp import RabbitServer
from tests.kit.servers.process import NotInstalled, Server, program
from tests.kit.servers.redis import RedisServer

AnyServer = TypeVar("AnyServer", bound=Server)


@pytest.fixture
def server(request: pytest.FixtureRequest, start_server: Callable[[str], Server]) -> Server:
    """The one that the file names as its `SERVER`."""
    return start_server(request.module.SERVER)


@pytest.fixture
def url(server: Server) -> str:
    return server.fresh()


@pytest.fixture
def begin() -> Iterator[Callable[[AnyServer], AnyServer]]:
    """`begin(server)` starts one that the test may spoil, and that ends with it."""
    with ExitStack() as stack:

        def begun(one: AnyServer) -> AnyServer:
            stack.callback(one.stop)
            one.start()
            return one

        yield begun


@pytest.fixture
def rabbit(start_server: Callable[[str], RabbitServer]) -> RabbitServer:
    return start_server("amqp")


@pytest.fixture
def redis(start_server: Callable[[str], RedisServer]) -> RedisServer:
    return start_server("redis")


@pytest.fixture
def own_redis(redis: RedisServer, begin: Callable[[RedisServer], RedisServer]) -> RedisServer:
    """A server that the test may spoil."""
    return begin(RedisServer())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself; its key is beside it."""
    try:
        openssl = program("openssl", "openssl")
    except NotInstalled as missing:
        if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    made = tmp_path / "certificate.pem"
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = "-subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = f"-keyout {tmp_path}/key.pem -out {made}"
    subprocess.run(f"{command} {subject} {files}".split(), check=True, capture_output=True)
    return made
