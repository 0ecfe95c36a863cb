"""What the README and the manuals print does what it says: programs and commands that need no broker."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from localdelay import SqliteJournal
from tests.kit.examples import serving
from tests.kit.manuals import PAGES, ROOT, block, blocks, claimed, text
from tests.kit.programs import python, ran
from tests.kit.servers.process import free_port

HELD = r"Route\.LOCAL (\S+) 429: .*\nsent \1 b'close order 7.*'\n"
PROGRAMS = {  # each prints what its comments promise
    "Trio": (block("", "python", "trio.run"), HELD),
    "threads": (block("", "python", "threads.open_delay_queue"), HELD),
    "the queue alone": (block("localdelay", "python", "queue.resize"), r"True\n1 \[True\]\nTrue\n"),
    "batches": (block("localdelay", "python", "send_batch"), r"(sent \d+\n)+"),
    "a test's clock": (block("localdelay", "python", "MovableClock"), r"\[\]\n\[b'close order 7'\]\n"),
}
FASTAPI = block("", "python", "fastapi")
SURVIVES = block("localdelay/journal", "python", "run_until_signal")
JOURNAL = block("localdelay/journal", "sh", "localdelay journal")
WORKER = block("localdelay/journal", "python", "first_free")
PLAN = block("localdelay", "sh", "localdelay plan")
BENCH = block("bench", "sh", "localdelay bench")
COMPARE = block("localdelay/redis_plan", "sh", "localdelay compare")
DEMO, TESTS = block("", "sh", "localdelay demo"), block("", "sh", "pytest")
METRICS, PORTS = block("localdelay", "python", "REGISTRY"), block("localdelay", "python", "range(9100")


def run(*command: str, input: str | None = None, timeout: float = 200.0) -> subprocess.CompletedProcess[str]:
    return ran(*command, input=input, timeout=timeout, cwd=ROOT)


def run_printed(command: str) -> subprocess.CompletedProcess[str]:
    """A line of a block, by this environment instead of the one that the README makes."""
    return run(sys.executable, "-m", *shlex.split(command.removeprefix(".venv/bin/")))


SAID = re.compile(r"(the broker refuses calls|the queue is ending, and waits for).*\n")
"""What the library says of itself: a queue begins to be limited, or its block ends with messages pending."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run_as_printed(name: str) -> None:
    """Each whole program runs, and prints what its comments promise."""
    program, printed = PROGRAMS[name]
    done = run(sys.executable, "-W", "error", "-c", program)
    assert (done.returncode, SAID.sub("", done.stderr)) == (0, "")
    assert re.fullmatch(printed, done.stdout), done.stdout
    if name == "batches":
        assert sum(map(int, re.findall(r"\d+", done.stdout))) == 1000


def test_the_application(tmp_path: Path) -> None:
    """Saved as `app.py` and served by uvicorn it holds a message, and loses none when it is stopped."""
    (tmp_path / "app.py").write_text(FASTAPI)
    port = free_port()
    with serving(tmp_path, ["uvicorn", "app:app", "--port", str(port)], port, needs=("fastapi",)) as process:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/orders/7")
        held = json.loads(connection.getresponse().read())
        connection.close()
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        printed = process.communicate(timeout=200)[0]
    assert held["route"] == "local"
    assert f"sent {held['id']} b'close order 7 if it is unpaid'" in printed
    assert time.monotonic() - begun < 15


def test_the_program_that_survives(tmp_path: Path) -> None:
    """Stopped by SIGTERM it leaves its message in the journal; killed, too; and the commands show both."""

    def lives(*signals: int) -> str:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SURVIVES],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        for signum in signals:
            process.send_signal(signum)
        rest, errors = process.communicate(timeout=200)
        assert (process.returncode, SAID.sub("", errors)) in ((0, ""), (-signal.SIGKILL, ""))
        return "".join(lines) + rest

    first = lives(signal.SIGTERM)
    told = re.fullmatch(
        r"recovered 0\non disk (\S+)\n"
        r"planned: of 1 messages within .* s: send 0, hand back 1, leave 0\nspooled 1 remaining 0\n",
        first,
    )
    assert told, first
    second = lives(signal.SIGKILL)
    assert re.fullmatch(r"recovered 1\non disk (\S+)\n", second), second
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number, command in enumerate(JOURNAL.replace(".venv/bin/", "").replace(" &&\n", "\n").splitlines()):
        if number == 2:
            command = command.replace("relay ", "relay --quiet --grace 0s --unsent unsent ")
            command = f"timeout --signal=TERM 3 sh -c {shlex.quote(command)}; true"
        done = ran("bash", "-c", command, cwd=tmp_path, env=environment)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    assert SqliteJournal(tmp_path / "orders.journal").read() == []


def test_each_worker_finds_a_journal(tmp_path: Path) -> None:
    """As printed, by two at a time; who comes later takes the first again."""
    both = f"first, second = {{}}, {{}}\nexec({WORKER!r}, first)\nexec({WORKER!r}, second)\n"
    for program in (f"{both}first['queue'].close()\nsecond['queue'].close()", f"{WORKER}\nqueue.close()"):
        done = python("-W", "error", "-c", program, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        names = ["orders-0.journal 0", "orders-1.journal 0"][: 1 + ("second" in program)]
        assert done.stdout.splitlines() == names


def test_the_set_up_commands() -> None:
    """The first two blocks are the demo and the tests; each makes its own environment."""
    assert blocks("", "sh") == [DEMO, TESTS]
    assert DEMO.splitlines()[0] == TESTS.splitlines()[0] == "python3 -m venv .venv &&"
    assert DEMO.splitlines()[-1] == ".venv/bin/localdelay demo"
    assert TESTS.splitlines()[-1] == ".venv/bin/python -m pytest --quiet --numprocesses 2"


def test_the_plan_command() -> None:
    """The planning command runs as printed."""
    done = run_printed(PLAN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "24,000" in done.stdout


def test_the_bench_command() -> None:
    """The benchmark runs as printed, but for its length; and the other options that are named exist."""
    assert " --seconds 20\n" in BENCH
    done = run_printed(BENCH.replace("--seconds 20", "--seconds 0.3 --delay 100ms"))
    assert done.returncode == 0
    assert "3,000 of 3,000 put, 3,000 sent, 0 unsent, 0 early" in done.stdout
    [section] = re.findall(r"## How late, and how fast\n(.*?)\n## ", text("bench"), flags=re.DOTALL)
    shown = run(sys.executable, "-m", "localdelay", "bench", "--help").stdout
    for option in re.findall(r"`(--[a-z]+)", section):
        assert option in shown, option


def test_the_compare_command() -> None:
    """It runs as printed, but for its length and without Redis: `test_compare` has all of it."""
    assert COMPARE == ".venv/bin/localdelay compare --plot compare.svg\n"
    short = ["--quick", "--rate", "50", "--delay", "300ms", "--seconds", "0.5", "--only", "memory"]
    done = run(sys.executable, "-m", "localdelay", "compare", *short)
    assert done.returncode == 0, done.stderr
    for row in ("lateness p99", "cpu busy, process", "a message, process", "lost by kill -9"):
        assert row in done.stdout
        assert f"\n{row}" in text("localdelay/redis_plan")


def test_the_lines_about_metrics() -> None:
    """Pieces of programs: a queue's figures are served, and each of two workers finds a port of its own."""
    frame = (
        "import localdelay.threads, urllib.request\n"
        "with localdelay.threads.open_delay_queue(print, capacity=1, workers=1) as queue:\n"
        "    fallback = localdelay.threads.Fallback(print, queue)\n"
        "    exec({piece!r})\n"
        "    read = urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode()\n"
        "    print('localdelay_accepted_messages_total{{queue=\"orders\"}} 0.0' in read)\n"
    )
    port = free_port()
    piece = METRICS.replace("9100", str(port))
    done = run(sys.executable, "-c", frame.format(piece=piece, port=port))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    base = free_port()
    worker = PORTS.replace("9100", str(base)).replace("9108", str(base + 8)) + "print(port)\n"
    both = f"exec({worker!r}, {{}})\nexec({worker!r}, {{}})"
    first, second = map(int, run(sys.executable, "-c", both).stdout.split())
    assert base <= first < second < base + 8


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` reads the everyday suite's command out of the README and has none of its own."""
    script = (ROOT / ".ci" / "run").read_text()
    [awk] = re.findall(r"awk '(.*?)' README\.md", script, flags=re.DOTALL)
    assert run("awk", awk, str(ROOT / "README.md")).stdout == TESTS


def test_the_readme_is_short() -> None:
    """It is a front door, and 220 lines are one."""
    assert len(text("").splitlines()) <= 220


def test_pages_lead_somewhere() -> None:
    """Every relative link is a file of the repository, and every module that is named is there."""
    for folder, page in PAGES.items():
        for target, _ in re.findall(r"\]\(([^)#:]+)(#[^)]*)?\)", text(folder)):
            assert (page.parent / target).exists(), (page, target)
        for module in re.findall(r"python -m ((?:bench|tests)[.\w]*)", text(folder)):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (page, module)


def test_every_block_is_run() -> None:
    """Each program and command that is printed is in a test of this folder, which asks for it by `block`."""
    import tests.program.test_readme_brokers  # noqa: F401 (it claims the others)

    printed = [
        one for folder in PAGES for language in ("python", "sh", "toml") for one in blocks(folder, language)
    ]
    assert [one for one in printed if one not in claimed] == []
    assert all(tomllib.loads(one) for folder in PAGES for one in blocks(folder, "toml"))
