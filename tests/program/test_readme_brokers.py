"""What the manuals of brokers, relay and Redis print, against a real broker of each kind."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from localdelay.brokers import check_url
from tests.kit.examples import Orders
from tests.kit.manuals import block, text
from tests.kit.programs import python, ran
from tests.kit.servers.all import NAMES
from tests.kit.servers.process import Server

COMMANDS = block("localdelay/relay", "sh", "relay --to").splitlines()
SETTINGS = block("localdelay/relay", "toml", "[relay]")
PROGRAM = block("localdelay/brokers", "python", "brokers.open_broker")
CHECK = block("localdelay/brokers", "sh", "localdelay check")
IN_REDIS = block("localdelay/redis_plan", "python", "open_redis_delay_queue")
AIO_PIKA = block("localdelay/brokers", "python", "import aio_pika")
PIKA = block("localdelay/brokers", "python", "import pika")


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
    done = ran("sh", "-c", command)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    received = server.read(url, 100)
    assert sorted(int(one.payload) for one in received) == list(range(1, 101))


def test_relay_to_standard_output() -> None:
    """Lines go out as they came in, when they are due, and nothing else does."""
    command = command_for("stdout").replace("--delay 2m | consumer", "--delay 200ms | sort -n")
    command = command.replace("producer |", "seq 1 100 |")
    done = ran("sh", "-c", command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(number) for number in range(1, 101)]


@pytest.mark.parametrize("scheme", NAMES)
def test_the_program_sends_to_each(scheme: str, start_server: Callable[[str], Server]) -> None:
    """The README's program, as printed, with the URL of a server of the test's own."""
    server = start_server(scheme)
    url = server.fresh()
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, url], check=True, timeout=200)
    (received,) = server.read(url, 1)
    assert received.payload == b"close order 7 if it is unpaid"


def test_the_check(start_server: Callable[[str], Server]) -> None:
    """The manual's command, on a RabbitMQ of the test's own."""
    command = CHECK.replace("localdelay check", f"{shlex.quote(sys.executable)} -m localdelay check")
    command = re.sub(r"amqp://\S+", start_server("amqp").fresh(), command)
    done = ran("sh", "-c", command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("It is fit.\n")


def test_the_program_with_redis_and_memory(start_server: Callable[[str], Server]) -> None:
    """Redis takes the message, and it is sent once it is due; without Redis it is refused in one line."""
    url = start_server("redis").fresh()
    done = python("-W", "error", "-c", IN_REDIS, url)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Route\.PRIMARY (\S+)\nsent \1 b'close order 7.*'\n", done.stdout)


def test_the_table_names_every_broker() -> None:
    """One line for each, whose URL is accepted once host and port are filled in."""
    urls = re.findall(r"^\| `(\S+:\S*)` \|", text("localdelay/brokers"), flags=re.MULTILINE)
    assert [url.partition(":")[0] for url in urls] == [
        "kafka",
        "rocketmq",
        "amqp",
        "redis",
        "redis+cluster",
        "redis+sentinel",
        "beanstalkd",
        "nats",
        "nsq",
        "stdout",
    ]
    for url in urls:
        check_url(url.replace("host:port", "host:1"))


def test_the_json_line_is_one_that_relay_reads() -> None:
    """The example of a line goes through."""
    [line] = re.findall(r'`(\{"payload".*?\})`', text("localdelay/relay"))
    done = python(
        "-m", "localdelay", "relay", "--to", "stdout:", "--format", "jsonl", input=line.replace("90s", "10ms")
    )
    assert (done.returncode, done.stdout) == (0, "close order 7\n"), done.stderr


def test_the_settings_file_is_read(tmp_path: Path) -> None:
    """As printed, but for the broker and the delay."""
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS.replace("nats://127.0.0.1:4222/orders", "stdout:").replace("2m", "10ms"))
    done = python("-m", "localdelay", "--config", str(file), "relay", input="close order 7\n")
    assert (done.returncode, done.stdout) == (0, "close order 7\n"), done.stderr


@pytest.fixture
def orders(start_server: Callable[[str], Server]) -> Orders:
    return Orders(start_server("amqp"))


def run(program: str, url: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """A RabbitMQ program that has ended, and the words of its lines: the route and the id of each message."""
    done = python("-c", program, url)
    return done, [line.split() for line in done.stdout.splitlines()]


BOTH = pytest.mark.parametrize("program", [AIO_PIKA, PIKA], ids=["aio-pika", "pika"])


@BOTH
def test_a_delay_does_not_wait_behind_a_longer_one(program: str, orders: Orders) -> None:
    """As printed, on a real RabbitMQ: it takes both messages, and the one of 1 s comes before that of 3 s."""
    done, routes = run(program, orders.url())
    assert (done.returncode, [route for route, _ in routes]) == (0, ["Route.PRIMARY"] * 2), done.stderr
    assert orders.take({id for _, id in routes}) == [id for _, id in reversed(routes)]


@BOTH
def test_a_full_delay_queue_degrades(program: str, orders: Orders) -> None:
    """It refuses, and drops nothing: both are held here, and sent when they are due."""
    full = {"max-length": 0}  # of the two limits, argument and policy, the lower one counts
    with orders.server.policy("orders.after.1s", full), orders.server.policy("orders.after.3s", full):
        done, routes = run(program, orders.url())
    assert (done.returncode, [route for route, _ in routes]) == (0, ["Route.LOCAL"] * 2), done.stderr
    assert orders.take({id for _, id in routes}) == [id for _, id in reversed(routes)]


def published(program: str, wait: float, times: int = 2) -> str:
    """The same program, which publishes so often, says what is raised, and waits in between."""
    sleep = "await asyncio.sleep" if program is AIO_PIKA else "__import__('time').sleep"

    def loop(found: re.Match[str]) -> str:
        body = textwrap.indent(textwrap.dedent(found[2]), " " * 8)
        lines = (
            f"for delay, wait in [(1.0, 0.0), *[(1.0, {wait})] * {times - 1}]:\n"
            f"    {sleep}(wait)\n"
            f"    try:\n{body}"
            "    except Exception as error:\n"
            "        print(type(error).__name__, flush=True)\n"
        )
        return textwrap.indent(lines, found[1])

    return re.sub(r"^( *)for delay in .*:\n((?: +.*\n)+)", loop, program, flags=re.MULTILINE)


@BOTH
def test_a_missing_queue_is_an_error_and_then_declared_anew(program: str, orders: Orders) -> None:
    """What goes nowhere is neither taken for published nor held: the caller is told, and tries again."""
    process = subprocess.Popen(
        [sys.executable, "-c", published(program, wait=2.0, times=3), orders.url()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    orders.delete("orders.after.1s")
    rest, errors = process.communicate(timeout=200)
    error, again = rest.splitlines()
    assert error == ("PublishError" if program is AIO_PIKA else "UnroutableError"), errors
    assert (first.split()[0], again.split()[0], process.returncode) == ("Route.PRIMARY", "Route.PRIMARY", 0)


@BOTH
def test_a_connection_that_was_idle_is_made_anew(program: str, orders: Orders) -> None:
    """The broker has closed it, for want of heartbeats, and the next message is published all the same."""
    done, routes = run(published(program, wait=4.0), orders.url("?heartbeat=1"))
    assert (done.returncode, [route for route, *_ in routes]) == (0, ["Route.PRIMARY"] * 2), done.stderr
    assert orders.take({id for _, id in routes}) == [id for _, id in routes]
