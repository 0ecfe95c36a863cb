from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from localdelay import DelayQueue, Statistics
from tests.kit.conserving import conserve
from tests.kit.servers.all import make
from tests.kit.servers.process import NotInstalled, Server

HERE = Path(__file__).parent
# How long an example takes says nothing on a busy machine; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
_SERVERS = ("kafka_mock", "kafka", "amqp", "redis", "beanstalkd", "nats", "nsq", "rocketmq")
_BY_FIXTURE = {"servers": "rocketmq", "orders": "amqp"}
"""Who starts all of them has started the one that takes longest, too."""
_SECONDS = {"broker": 400, "program": 400, "fault": 600, "soak": 600}
"""How long a test may take in layers that are slower than `timeout` in `pyproject.toml` allows: it ends what
hangs, and no more, for a busy machine may take ten times what a quiet one does."""


def pytest_configure() -> None:
    """Ctrl-C and a hang-up do what they do: a shell takes that away from what it starts in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under `nohup`
        # What is ignored would be so in every program that a test starts; what has a handler is not.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test carries its folder's name as a marker, and the time that is allowed there."""
    for item in items:
        layer = item.path.relative_to(HERE).parts[0]
        item.add_marker(layer)
        asked = getattr(item, "fixturenames", ())
        if "start_server" in asked:
            # Tests of one server share it, in one worker.
            server = next((name for name in _SERVERS if name in item.nodeid), item.path.stem)
            server = next((name for fixture, name in _BY_FIXTURE.items() if fixture in asked), server)
            item.add_marker(pytest.mark.xdist_group(server))
        if layer in _SECONDS:
            item.add_marker(pytest.mark.timeout(_SECONDS[layer]))


def pytest_collection_finish() -> None:
    """What has been imported and collected stays to the end: no full collection need walk all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are exact: whatever is drawn at random is 0."""
    monkeypatch.setattr(random, "random", lambda: 0.0)


@pytest.fixture
def conserved() -> Callable[[DelayQueue], Statistics]:
    """`conserved(queue)` checks the conservation equation and returns the statistics."""
    return conserve


_SHARED: dict[str, Server] = {}
"""The servers that run, by name."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that fails may leave a server dead or frozen: the next one gets a new one."""
    if report.failed:
        while _SHARED:
            _SHARED.popitem()[1].stop()


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[[str], Server]]:
    """`start_server(name)` is a running broker, started when it is first asked for and shared from then on.

    Where its program is not installed the test is skipped, or fails with LOCALDELAY_REQUIRE_BROKERS=1.
    """

    def started(name: str) -> Server:
        if name not in _SHARED:
            server = make(name)
            try:
                server.start()
            except NotInstalled as missing:
                server.stop()
                if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
                    pytest.fail(str(missing))
                pytest.skip(str(missing))
            except BaseException:
                server.stop()
                raise
            _SHARED[name] = server
        return _SHARED[name]

    yield started
    while _SHARED:
        _SHARED.popitem()[1].stop()
