"""A Redis for the tests of queues in it, and what TLS needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.servers.process import NotInstalled, program
from tests.kit.servers.redis import RedisServer


@pytest.fixture
def redis(start_server: Callable[[str], RedisServer]) -> RedisServer:
    return start_server("redis")


@pytest.fixture
def own_redis(redis: RedisServer) -> Iterator[RedisServer]:
    """A server that the test may spoil."""
    one = RedisServer()
    one.start()
    yield one
    one.stop()


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
