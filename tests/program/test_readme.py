"""The README's programs and commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localdelay import SqliteJournal

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


PROGRAMS = [
    block
    for block in blocks("python")
    if "trio.run" in block
    and not any(word in block for word in ("open_broker", "run_until_signal", "open_redis_delay_queue"))
]  # the others need a broker, or a signal: test_readme_brokers


@pytest.mark.parametrize("program", PROGRAMS, ids=["wrap a client", "the queue alone", "batches"])
def test_programs_run_as_printed(program: str) -> None:
    """Each whole program of the README runs, and prints what its comments promise."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "Fallback" in program:
        assert re.fullmatch(r"Route\.LOCAL (\S+) 429: .*\nsent \1 b'close order 7.*'\n", done.stdout)
    elif "send_batch" in program:
        assert sum(int(line.removeprefix("sent ")) for line in done.stdout.splitlines()) == 1000
    else:
        assert done.stdout == "True\n1 [True]\nTrue\n"


def test_the_program_that_survives(tmp_path: Path) -> None:
    """Stopped by SIGTERM it leaves its message in the journal; killed, too; and the commands show both."""
    [program] = [block for block in blocks("python") if "run_until_signal" in block]

    def run(*signals: int) -> str:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        for signum in signals:
            process.send_signal(signum)
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) in ((0, ""), (-signal.SIGKILL, ""))
        return "".join(lines) + rest

    first = run(signal.SIGTERM)
    told = re.fullmatch(
        r"recovered 0\non disk (\S+)\n"
        r"planned: of 1 messages within .* s: send 0, hand back 1, leave 0\nspooled 1 remaining 0\n",
        first,
    )
    assert told, first
    second = run(signal.SIGKILL)
    assert re.fullmatch(r"recovered 1\non disk (\S+)\n", second), second
    [commands] = [block for block in blocks("sh") if "localdelay journal" in block]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number, command in enumerate(commands.replace(".venv/bin/", "").replace(" &&\n", "\n").splitlines()):
        if number == 2:
            command = command.replace("relay ", "relay --quiet --grace 0s --unsent unsent ")
            command = f"timeout --signal=TERM 3 sh -c {shlex.quote(command)}; true"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    assert SqliteJournal(tmp_path / "orders.journal").read() == []


def test_the_set_up_commands() -> None:
    """The first two blocks are the demo and the tests; each makes its own environment."""
    demo, tests = blocks("sh")[:2]
    assert demo.splitlines()[0] == tests.splitlines()[0] == "python3 -m venv .venv &&"
    assert demo.splitlines()[-1] == ".venv/bin/localdelay demo"
    assert tests.splitlines()[-1] == ".venv/bin/python -m pytest --quiet --numprocesses 2"


def test_the_plan_command() -> None:
    """The planning command runs as printed."""
    [command] = [block for block in blocks("sh") if block.startswith(".venv/bin/localdelay plan")]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command.removeprefix(".venv/bin/"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "24,000" in done.stdout


def test_the_bench_command() -> None:
    """The benchmark runs as printed, but for its length; and the other options that are named exist."""
    [command] = [block for block in blocks("sh") if block.startswith(".venv/bin/localdelay bench")]
    assert " --seconds 20\n" in command
    shorter = command.removeprefix(".venv/bin/").replace("--seconds 20", "--seconds 0.3 --delay 100ms")
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(shorter)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "3,000 of 3,000 put, 3,000 sent, 0 unsent, 0 early" in done.stdout
    [section] = re.findall(r"## How late, and how fast\n(.*?)\n## ", README, flags=re.DOTALL)
    shown = subprocess.run(
        [sys.executable, "-m", "localdelay", "bench", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in re.findall(r"`(--[a-z]+)", section):
        assert option in shown, option
    for module in re.findall(r"python -m (bench\.[a-z]+)", section):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` reads the everyday suite's command out of the README and has none of its own."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert "everyday" not in script
    [awk] = re.findall(r"awk '(.*?)' README\.md", script, flags=re.DOTALL)
    done = subprocess.run(["awk", awk, str(ROOT / "README.md")], capture_output=True, text=True, check=True)
    assert done.stdout == blocks("sh")[1]


def test_links_lead_somewhere() -> None:
    """Every relative link of the README is a file of the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
