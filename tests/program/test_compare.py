"""`localdelay compare`: real runs, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import trio
from click.testing import Result

from localdelay.benchmark import compare as comparing
from localdelay.benchmark.comparison import Comparison, Job, Plan
from localdelay.benchmark.contenders import Opening, open_plan
from localdelay.cli.compare import NAMES
from tests.kit import commands
from tests.kit.commands import running
from tests.kit.servers.process import Server
from tests.kit.servers.redis import RedisServer

SMALL = ["--quick", "--rate", "200", "--delay", "100ms", "--seconds", "0.3", "--shards", "8"]
LATE = """\
import time
print("step begun", flush=True)
time.sleep(1.0)
print("stored 7", flush=True)
time.sleep(60.0)
"""


def run(*args: str, **environ: str) -> Result:
    return commands.run("compare", *args, **environ)


# For one test: where one has failed the next one gets another server.
@pytest.fixture
def redis(start_server: Callable[[str], Server]) -> RedisServer:
    return _redis(start_server)


def _redis(start_server: Callable[[str], Server]) -> RedisServer:
    server = start_server("redis")
    assert isinstance(server, RedisServer)
    return server


@pytest.fixture(scope="module")
def compared(
    start_server: Callable[[str], Server], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Result]:
    """One run of all plans on a server of the tests'."""
    picture = tmp_path_factory.mktemp("compare") / "compare.svg"
    url = f"redis://127.0.0.1:{_redis(start_server).port}/5"
    result = run(*SMALL, "--redis", url, "--json", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), picture, result


def test_all_plans_are_measured(compared: tuple[dict[str, Any], Path, Result]) -> None:
    """One object: each plan has sent all it was given, on time, and never early."""
    shown, _, result = compared
    assert result.stderr == ""
    assert list(shown) == ["settings", "machine", "redis", "seconds", "plans", "formula"]
    assert [plan["plan"] for plan in shown["plans"]] == [plan.value for plan in Plan]
    assert re.fullmatch(r"\d+\.\d+.*", shown["redis"])
    for plan in shown["plans"]:
        busy = plan["busy"]
        assert busy["offered"] == busy["stored"] == busy["sent"] == 130, plan
        assert (busy["refused"], busy["early"]) == (0, 0)
        assert 0 <= busy["p50"] <= busy["p99"] <= busy["longest"] + 1e-6
        assert plan["carried_rate"] in (200.0, None)
        assert plan["tried"] == [[200.0, busy["carried"]]]
        assert 0 < busy["cost"]["cpu"] < 4
        assert plan["waiting"]["messages"] == (2_000 if plan["plan"].startswith("redis") else 20_000)


def test_measured_commands_are_those_of_the_formula(compared: tuple[dict[str, Any], Path, Result]) -> None:
    """Polling costs what the write-up says, busy or idle; without it a heartbeat is all that is left."""
    shown, _, _ = compared
    literal, ours, *in_memory = shown["plans"]
    assert shown["formula"]["setnx"] == shown["formula"]["zrange"] == 40
    # One that gets no processor polls less often, and never more often; no put and no removal is spared.
    assert 20 < literal["idle"]["sent_per_s"] < 80 * 1.3
    assert ours["idle"]["sent_per_s"] < 5
    assert ours["busy"]["cost"]["sent_per_message"] < literal["busy"]["cost"]["sent_per_message"]
    for plan in in_memory:
        assert plan["idle"]["sent_per_s"] == plan["busy"]["cost"]["sent_per_s"] == 0


def test_where_messages_wait_is_where_memory_grows(compared: tuple[dict[str, Any], Path, Result]) -> None:
    """Payloads of 500 bytes are in Redis or in the process, with what comes on top of them."""
    literal, ours, memory_literal, memory = compared[0]["plans"]
    for plan in (literal, ours):
        assert 500 < plan["waiting"]["redis_bytes"] < 1500
    for plan in (memory_literal, memory):
        assert plan["waiting"]["redis_bytes"] is None
        assert 450 < plan["waiting"]["process_bytes"] < 1500


def test_a_kill_loses_what_was_in_memory_alone(compared: tuple[dict[str, Any], Path, Result]) -> None:
    """What waited in Redis another process sends; what waited in the killed one is lost."""
    literal, ours, memory_literal, memory = compared[0]["plans"]
    for plan in (literal, ours):
        assert plan["crash"]["lost"] == 0, plan
        assert plan["crash"]["recovered_in"] is not None
        assert plan["crash"]["stored"] > plan["crash"]["sent_before"]
    for plan in (memory_literal, memory):
        crash = plan["crash"]
        assert crash["lost"] == crash["stored"] - crash["sent_before"] > 0
        assert (crash["twice"], crash["recovered_in"]) == (0, None)


def test_nothing_is_left_in_somebody_elses_redis(
    compared: tuple[dict[str, Any], Path, Result], redis: RedisServer
) -> None:
    """No key, in that database or another one, has the comparison's name."""
    del compared
    with redis.client() as client:
        for database in (0, 5):
            client.execute_command("SELECT", database)
            assert list(client.scan_iter("*compare*", count=1000)) == []


def test_the_picture_is_well_formed(compared: tuple[dict[str, Any], Path, Result]) -> None:
    """An SVG with a title, and every plan in it by name."""
    root = ElementTree.parse(compared[1]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "How late sends begin: 200 messages/s of 500 bytes, each due after 100 ms" in text
    for name in NAMES.values():
        assert name in text


def test_the_table_of_a_run_without_redis() -> None:
    """80 columns at most, progress on the other stream; and no Redis is asked for."""
    result = run(*SMALL, "--only", "memory", "--delay", "20ms..100ms", PATH="/nonexistent")
    assert result.exit_code == 0, result.output
    printed = result.stdout.splitlines()
    assert printed[0] == "200 messages/s of 500 bytes, each due after 20 ms to 100 ms"
    assert printed[1].startswith("20 workers, ")
    assert printed[3].split() == ["memory,"]
    assert printed[4].split() == ["localdelay"]
    assert [line[:18].strip() for line in printed[5:8]] == [
        "messages/s carried",
        "lateness p50",
        "lateness p99",
    ]
    assert max(map(len, printed)) <= 80
    assert "\x1b" not in result.output
    assert result.output.isascii()
    assert "formula" not in result.stdout
    lost = next(line for line in printed if line.startswith("lost by kill -9"))
    assert all(int(count) > 0 for count in lost.split()[4:])
    assert re.search(r"^ +\d+ s  1/1 memory: under the load$", result.stderr, re.MULTILINE)
    assert re.search(r"^ +\d+ s  all: killed half-way$", result.stderr, re.MULTILINE)


def test_the_table_says_formula_beside_measurement(redis: RedisServer) -> None:
    """The real thing on a Redis of the tests': the formulas below what was measured, and no wide line."""
    del redis  # it is there: the comparison starts one of its own
    result = run(*SMALL, "--only", "redis-literal")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^  by the formula +([\d,.]+)$", result.stdout, re.MULTILINE) == ["480", "80"]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_without_a_redis_server_one_line_says_what_to_install() -> None:
    """The package's name, and the ways around it."""
    result = run(PATH="/nonexistent")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith(
        "Error: there is no redis-server: install it (apt-get install redis-server)"
    )
    assert "--redis URL" in result.output


def test_without_the_client_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra's name."""
    monkeypatch.setattr("localdelay.benchmark.compare.find_spec", lambda name: None)
    result = run("--redis", "redis://127.0.0.1")
    assert (result.exit_code, result.output) == (
        2,
        "Error: the plans in Redis need a client: pip install 'localdelay[redis]'\n",
    )


def test_a_redis_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """It says where there is none, and not the password; no directory is left."""
    result = run("--redis", "redis://user:secret@127.0.0.1:1", TMPDIR=str(tmp_path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "\nError: no connection to Redis at 127.0.0.1:1" in f"\n{result.stderr}"
    assert result.output.count("\n") == 1
    assert "secret" not in result.output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(signum: signal.Signals, redis: RedisServer, tmp_path: Path) -> None:
    """No server, process or file: after Ctrl-C, SIGTERM, and even where nobody could clean up."""
    del redis  # it is installed
    options = ("compare", *SMALL, "--delay", "60s", "--only", "redis")
    with running(*options, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        assert process.stderr is not None
        assert "waiting and idle" in process.stderr.readline()
        assert len(_processes_of(tmp_path)) >= 4, "itself, Redis, its guard, and the plan"
        process.send_signal(signum)
        printed, told = process.communicate(timeout=200)
    assert printed == ""
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum
        assert told.splitlines()[-1] == "Stopped. No Redis, process or file is left behind."
        assert _processes_of(tmp_path) == []
        assert _files_in(tmp_path) == []
    until = time.monotonic() + 100
    while (_processes_of(tmp_path) or _files_in(tmp_path)) and time.monotonic() < until:
        time.sleep(0.02)
    assert _processes_of(tmp_path) == []
    assert _files_in(tmp_path) == []


async def test_a_process_that_begins_late_is_killed_once_it_has_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a busy machine half the time may be over before it has any, and there would be nothing to lose."""
    (tmp_path / "late.py").write_text(LATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(comparing, "_CHILD", "late")
    told: dict[str, list[int]] = {"stored": [], "sent": []}
    job = Job(Plan.MEMORY, Comparison(), "", "", "be killed")
    assert await comparing._result(job, tmp_path, lambda *_: None, told, kill_after=0.0) is None
    assert told == {"stored": [7], "sent": []}


def _files_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _processes_of(directory: Path) -> list[str]:
    """The processes that were started with this directory for their files."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # Redis overwrites its environment, and works in its directory.
            ours = f"TMPDIR={directory}\0".encode() in (path / "environ").read_bytes()
            if ours or (path / "cwd").readlink().is_relative_to(directory):
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("plan", list(Plan))
async def test_each_plan_sends_all_and_nothing_early(
    plan: Plan, start_server: Callable[[str], Server]
) -> None:
    """The four behind one face: mixed delays come in due order of each, never before they are due."""
    server = ""
    if plan.in_redis:
        server = f"redis://127.0.0.1:{_redis(start_server).port}"
    sent: dict[bytes, float] = {}
    stored: list[bytes] = []
    refused: list[bytes] = []

    def begin(_: float, payload: bytes) -> None:
        sent[payload] = trio.current_time()

    delays = {b"%08d" % number: number % 4 / 20 for number in range(20)}
    opening = Opening(
        job=Job(plan, Comparison(shards=4), server, ""),
        name=f"face-{plan}-{time.time_ns()}",
        capacity=100,
        begin=begin,
        stored=stored.append,
        refuse=refused.append,
    )
    async with open_plan(opening) as opened:
        begun = trio.current_time()
        for payload, delay in delays.items():
            opened.put_nowait(payload, delay=delay)
        with trio.fail_after(60):
            while len(sent) < 20 or await opened.left():  # noqa: ASYNC110 (Redis tells nobody)
                await trio.sleep(0.01)
        assert (opened.commands() > 0) == plan.in_redis
    assert sorted(stored) == sorted(delays)
    assert refused == []
    assert all(sent[payload] >= begun + delay - 0.002 for payload, delay in delays.items())
