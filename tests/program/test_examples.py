"""The whole programs in `tests/examples` do what they are there to show, against the real thing."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.examples import Orders, need, running, serving
from tests.kit.manuals import ROOT
from tests.kit.programs import python, ran
from tests.kit.servers.process import Server, free_port

EXAMPLES = ROOT / "tests" / "examples"

UVICORN = ["uvicorn", "--workers", "2", "fastapi_app:app", "--log-level", "warning", "--port"]
GUNICORN = ["gunicorn", "--config", "gunicorn_settings.py", "flask_app:app", "--bind"]
CELERY = [
    "celery",
    "--app",
    "celery_app",
    "worker",
    "--concurrency",
    "2",
    "--without-gossip",
    "--without-mingle",
]


@pytest.fixture
def orders(start_server: Callable[[str], Server]) -> Orders:
    return Orders(start_server("amqp"))


class Load:
    """Eight clients that place orders, each one after the other, until nobody answers any more."""

    def __init__(self, port: int) -> None:
        self.taken: list[dict[str, str]] = []
        self._port = port
        self._threads = [threading.Thread(target=self._place, args=(number,)) for number in range(8)]

    def start(self, count: int) -> None:
        """Returns when so many orders were taken."""
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 200
        while len(self.taken) < count:
            assert time.monotonic() < deadline, len(self.taken)
            time.sleep(0.01)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)

    def _place(self, number: int) -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=200)
            try:
                connection.request("POST", f"/orders/{number}")
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200:
                    self.taken.append(json.loads(body))
            except (OSError, http.client.HTTPException):
                return  # stopped
            finally:
                connection.close()


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["fastapi", "flask"])
def test_workers_that_are_stopped_under_load_lose_nothing(command: list[str], orders: Orders) -> None:
    """SIGTERM in mid-load: each order that was answered is published, natively or from memory."""
    port = free_port()
    at = f"127.0.0.1:{port}" if command is GUNICORN else str(port)
    framework = "flask" if command is GUNICORN else "fastapi"
    with (
        orders.server.policy("orders.after.2s", {"max-length": 5}),  # few: a busy machine places few in 2 s
        serving(EXAMPLES, [*command, at], port, needs=[framework], AMQP_URL=orders.url()) as process,
    ):
        load = Load(port)
        load.start(200)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=200)[0]
        load.join()
    assert {one["route"] for one in load.taken} == {"PRIMARY", "LOCAL"}, printed
    ids = {one["id"] for one in load.taken}
    assert ids - set(orders.take(ids)) == set(), printed


def test_a_task_of_celerys(orders: Orders) -> None:
    """What the processes of its pool hold is published before a warm shutdown ends them."""
    need("celery")
    orders.delete("celery")
    send = (
        "import celery, sys\n"
        "app = celery.Celery(broker=sys.argv[1])\n"
        "for number in range(30):\n"
        "    app.send_task('create', [number])\n"
    )
    with (
        orders.server.policy("orders.after.2s", {"max-length": 5}),
        running(EXAMPLES, CELERY, AMQP_URL=orders.url()) as process,
    ):
        subprocess.run([sys.executable, "-c", send, orders.url()], check=True, timeout=200)
        orders.take(at_least=1)  # the worker is at work
        orders.wait_until_empty("celery")
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=200)[0]
    expected = {b"close order %d if it is unpaid" % number for number in range(30)}
    orders.take(at_least=29)
    assert expected - orders.payloads == set(), printed


def test_plain_functions(orders: Orders) -> None:
    """What was published is sent before the process exits, where RabbitMQ refuses its delay as well."""
    need("flask")
    with orders.server.policy("orders.after.1s", {"max-length": 1}):
        done = python("plain.py", "1", "2", "3", cwd=EXAMPLES, env=os.environ | {"AMQP_URL": orders.url()})
    ids = set(done.stdout.split())
    assert (done.returncode, len(ids)) == (0, 3), done.stderr
    assert ids - set(orders.take(ids)) == set()


def test_a_journal_survives_kill_9(tmp_path: Path) -> None:
    """Each order that was said to be held has been sent in the end, by this life or the next."""
    program = [sys.executable, str(EXAMPLES / "trio_journal.py")]
    with subprocess.Popen([*program, "100000"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(300)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    again = ran(*program, "0", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    whole = [line.split() for line in (*lines, *again.stdout.splitlines(True)) if line.endswith("\n")]
    held, sent = ({id for did, id in whole if did == what} for what in ("held", "sent"))
    assert len(held) >= 100
    assert held - sent == set()


def test_the_tests_of_a_users_own(tmp_path: Path) -> None:
    """A file for each world: they pass where there is nothing of this repository beside them."""
    for file in EXAMPLES.glob("test_with_*.py"):
        shutil.copy(file, tmp_path)
    done = python("-m", "pytest", "--quiet", "-W", "error", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
