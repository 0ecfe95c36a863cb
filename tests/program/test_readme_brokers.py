"""What the README says about brokers, against a real one of each kind."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from localdelay.brokers import check_url
from tests.kit.servers.all import NAMES
from tests.kit.servers.process import Server
from tests.program.test_readme import README, blocks

COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if " relay --to " in line]
PROGRAM = next(block for block in blocks("python") if "brokers.open_broker" in block)


def command_for(scheme: str) -> str:
    [command] = [line for line in COMMANDS if f"--to {scheme}:" in line]
    return command.replace("localdelay relay", f"{shlex.quote(sys.executable)} -m localdelay relay")


@pytest.mark.parametrize("scheme", NAMES)
def test_relay_from_the_shell(scheme: str, start_server: Callable[[str], Server]) -> None:
    """The README's command, with a server of the test's own and a shorter delay: each line arrives once."""
    server = start_server(scheme)
    url = server.fresh()
    command = re.sub(r"--to \S+ --delay 2m", f"--to {url} --delay 200ms", command_for(scheme))
    command = command.replace("producer |", "seq 1 100 |")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    received = server.read(url, 100)
    assert sorted(int(one.payload) for one in received) == list(range(1, 101))


def test_relay_to_standard_output() -> None:
    """Lines go out as they came in, when they are due, and nothing else does."""
    command = command_for("stdout").replace("--delay 2m | consumer", "--delay 200ms | sort -n")
    command = command.replace("producer |", "seq 1 100 |")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(number) for number in range(1, 101)]


@pytest.mark.parametrize("scheme", NAMES)
def test_the_program_sends_to_each(scheme: str, start_server: Callable[[str], Server]) -> None:
    """The README's program, as printed, with the URL of a server of the test's own."""
    server = start_server(scheme)
    url = server.fresh()
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, url], check=True, timeout=60)
    (received,) = server.read(url, 1)
    assert received.payload == b"close order 7 if it is unpaid"


def test_the_program_with_redis_and_memory(start_server: Callable[[str], Server]) -> None:
    """Redis takes the message, and it is sent once it is due; without Redis it is refused in one line."""
    program = next(block for block in blocks("python") if "open_redis_delay_queue" in block)
    url = start_server("redis").fresh()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, url], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Route\.PRIMARY (\S+)\nsent \1 b'close order 7.*'\n", done.stdout)


def test_the_compare_command() -> None:
    """It runs as printed, but for its length and without Redis: `test_compare` has all of it."""
    short = ["--quick", "--rate", "50", "--delay", "300ms", "--seconds", "0.5", "--only", "memory"]
    done = subprocess.run(
        [sys.executable, "-m", "localdelay", "compare", *short], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    for row in ("lateness p99", "cpu busy, process", "a message, process", "lost by kill -9"):
        assert row in done.stdout
        assert f"\n{row}" in README


def test_the_table_names_every_broker() -> None:
    """One line for each, whose URL is accepted once host and port are filled in."""
    urls = re.findall(r"^\| `(\S+:\S*)` \|", README, flags=re.MULTILINE)
    assert [url.partition(":")[0] for url in urls] == [
        "kafka",
        "amqp",
        "redis",
        "beanstalkd",
        "nats",
        "stdout",
    ]
    for url in urls:
        check_url(url.replace("host:port", "host:1"))


def test_the_json_line_is_one_that_relay_reads() -> None:
    """The example of a line goes through."""
    [line] = re.findall(r'`(\{"payload".*?\})`', README)
    done = subprocess.run(
        [sys.executable, "-m", "localdelay", "relay", "--to", "stdout:", "--format", "jsonl"],
        input=line.replace("90s", "10ms"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "close order 7\n"), done.stderr


@pytest.mark.parametrize(
    ("world", "refused"), [("threads", False), ("threads", True), ("aio", False), ("aio", True)]
)
def test_the_programs_of_other_worlds(
    world: str, refused: bool, start_server: Callable[[str], Server]
) -> None:
    """As printed, on a real RabbitMQ: the message comes, whether or not the delayed publish is refused."""
    [program] = [block for block in blocks("python") if f"{world}.open_delay_queue(" in block]
    server: Any = start_server("amqp")
    with server.connection() as connection:
        channel = connection.channel()
        expire = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "orders"}
        full = {"x-max-length": 0, "x-overflow": "reject-publish"} if refused else {}
        for queue, arguments in (("orders", {}), ("orders.delayed", {**expire, **full})):
            channel.queue_delete(queue)
            channel.queue_declare(queue, durable=True, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program, f"amqp://guest:guest@127.0.0.1:{server.port}/"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    route, id = done.stdout.split()
    assert route == ("Route.LOCAL" if refused else "Route.PRIMARY")
    with server.connection() as connection:
        deadline = time.monotonic() + 20
        while (got := connection.channel().basic_get("orders"))[0] is None:
            assert time.monotonic() < deadline
        _, properties, payload = got
    assert (properties.message_id, payload) == (id, b"close order 7 if it is unpaid")


def test_the_metrics_program() -> None:
    """The lines about metrics are a piece of a program, and what they name is there."""
    [piece] = [block for block in blocks("python") if "REGISTRY" in block]
    compile(piece, "README.md", "exec")
    assert "from localdelay.metrics import Collector\n" in piece
    from localdelay.metrics import Collector

    assert {"queue", "fallback", "labels"} <= set(inspect.signature(Collector).parameters)
